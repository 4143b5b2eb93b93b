"""Files that are whole or not there."""

from pathlib import Path

from psa.files import write_atomically


def save(path: str | Path, content: bytes) -> None:
    """Write a file in one step, and its folder if need be: a reader sees the old content or the new, never a part.

    Raises:
        OSError: If the folder cannot be written; the old file stays and nothing is left beside it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    write_atomically(path, write)
