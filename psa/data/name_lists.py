"""Names of files and folders that a user's files list, such as those of a split, one a line."""

from pathlib import Path

from psa.errors import DataError


def read_names(path: Path) -> list[str]:
    """The names in the file's order, without repetitions; each the name of something in a folder, no path.

    Raises:
        DataError: A file that cannot be read, or is empty, or a line that would lead elsewhere.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(f"{path}: expected a list of names, one a line, got {reason}") from error
    names = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not names:
        raise DataError(f"{path}: expected names, one a line, got none")
    for name in names:
        require_name(name, str(path))
    return names


def require_name(name: str, source: str) -> None:
    """Refuse what a user's file calls a name, but is a path that leads elsewhere, or no name at all."""
    if name == ".." or not name.isprintable() or Path(name).name != name:
        raise DataError(f"{source}: expected the name of a file or folder, got {name[:40]!r}")
