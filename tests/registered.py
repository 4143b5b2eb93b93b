"""Parts that a test registers, which the next one must not find; and the files of docs/extending.md."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from psa import plugins
from psa.data import DATASETS
from psa.inference.initialisers import INITIALISERS
from psa.inference.readouts import READOUTS
from psa.inference.updates import UPDATES
from psa.inference.variants import VARIANTS
from psa.models.decoders import DECODERS
from psa.registry import Registry

PAGE = Path(__file__).resolve().parents[1] / "docs" / "extending.md"
REGISTRIES: tuple[Registry, ...] = (VARIANTS, UPDATES, INITIALISERS, READOUTS, DECODERS, DATASETS)


def write_page(folder: Path) -> list[Path]:
    """The files that the page shows whole."""
    for name, code in re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        (folder / name).write_text(code)
    return sorted(folder.iterdir())


def forget(registries: tuple[Registry, ...] = REGISTRIES) -> None:
    """Take out what was registered."""
    for registry in registries:
        for name in [name for name in registry if name not in registry.own]:
            registry.remove(name)


@contextmanager
def forgetting() -> Iterator[None]:
    """Afterwards nothing is registered, and no module of a test's is imported."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "path", list(sys.path))
        patched.setattr(plugins, "_loaded", {})
        try:
            yield
        finally:
            forget()
            for name in set(sys.modules) - before:
                if not name.startswith(("psa.", "torch")):
                    del sys.modules[name]
