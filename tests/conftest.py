"""Shapes are checked where parts are tested (jaxtyping with beartype); one thread; Hypothesis repeats itself in CI."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import jaxtyping
import pytest
import torch
from hypothesis import settings

jaxtyping.install_import_hook("psa", "typechecking.check")  # before anything imports psa

torch.set_num_threads(1)

WHOLE_RUNS = ("cli", "experiments", "report", "test_docs.py")  # folders, or files

settings.register_profile("psa", deadline=None, max_examples=10)
settings.register_profile("ci", settings.get_profile("psa"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "psa")


@pytest.fixture(scope="session", params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device there is. Session-wide, so that Hypothesis tests may use it."""
    return torch.device(request.param)


@contextmanager
def _without_checks() -> Iterator[None]:
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Shapes unchecked, as in production: the code's own errors, its timing and its memory."""
    with _without_checks():
        yield


@pytest.fixture(autouse=True, scope="module")
def _whole_runs_as_users_have_them(request: pytest.FixtureRequest) -> Iterator[None]:
    """The command line and the experiments go unchecked: half of what they take were checks of every small call."""
    with _without_checks() if {request.path.name, request.path.parent.name} & set(WHOLE_RUNS) else nullcontext():
        yield
