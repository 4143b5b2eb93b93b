"""Shapes are checked in every test (jaxtyping with beartype); one thread; Hypothesis repeats itself in CI."""

import os
from collections.abc import Iterator

import jaxtyping
import pytest
import torch
from hypothesis import settings

jaxtyping.install_import_hook("psa", "typechecking.check")  # before anything imports psa

torch.set_num_threads(1)

settings.register_profile("psa", deadline=None, max_examples=10)
settings.register_profile("ci", settings.get_profile("psa"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "psa")


@pytest.fixture(scope="session", params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device there is. Session-wide, so that Hypothesis tests may use it."""
    return torch.device(request.param)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Shapes unchecked, as in production: the code's own errors, its timing and its memory."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
