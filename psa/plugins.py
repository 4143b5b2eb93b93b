"""A user's own modules, which register variants, decoders and data sets when they are imported.

They are imported because someone names them here or imports them himself; never because a run directory or a
configuration does, which may come from others.
"""

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

from psa.errors import ConfigError

_loaded: dict[str, None] = {}


def loaded_plugins() -> tuple[str, ...]:
    """What was loaded in this process, in order: what another process has to load to know the same names."""
    return tuple(_loaded)


def with_plugins(command: str) -> str:
    """A command of psa's in words, with the options that load the same plugins: ``psa --plugin rings.py train ...``."""
    return " ".join(("psa", *(f"--plugin {name}" for name in _loaded), command))


def load_plugins(names: Iterable[str]) -> None:
    """Import modules: each a file, ``path/to/rings.py``, or the dotted name of one that is installed.

    A file's folder is put at the end of the path of imports, so that it can import its neighbours, and processes that
    are started know its classes.

    Raises:
        ConfigError: If there is none, another module has its name, or importing it fails.
    """
    for name in names:
        module = _module_of(Path(name).resolve()) if name.endswith(".py") else name
        try:
            importlib.import_module(module)
        except Exception as error:
            raise ConfigError(f"--plugin {name}: {_reason(error, module)}") from error
        _loaded[str(Path(name).resolve()) if name.endswith(".py") else name] = None


def _module_of(path: Path) -> str:
    """The name that a file is imported by."""
    if not path.is_file():
        raise ConfigError(f"--plugin {path}: expected a Python file, found none")
    if not path.stem.isidentifier():
        raise ConfigError(f"--plugin {path}: expected a file named as a module can be, letters, digits and _")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    importlib.invalidate_caches()
    try:
        found = importlib.util.find_spec(path.stem)
    except ValueError:  # of what runs as a script
        found = None
    if found is None or found.origin is None or Path(found.origin).resolve() != path:
        raise ConfigError(f"--plugin {path}: another module is named {path.stem}; give the file another name")
    return path.stem


def _reason(error: Exception, module: str) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]:
        return "expected a file ending in .py or the name of an installed module, found none"
    place = traceback.extract_tb(error.__traceback__)[-1]
    message = " ".join(str(error).split())
    return f"its import failed with {type(error).__name__}: {message} ({Path(place.filename).name}:{place.lineno})"
