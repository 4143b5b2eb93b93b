"""What the commands share: where progress goes, how a result is printed, and where it stays until it is complete."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from psa.cli.bars import Bar, progress_console
from psa.errors import ConfigError

result_console = Console()

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of standard output.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the configuration; repeatable.")
]
DataOption = Annotated[
    str | None, typer.Option("--data", help="sprites (generated), a folder of images, an HDF5 or TFRecord file.")
]
VariantOption = Annotated[
    str | None, typer.Option("--variant", help="A member of the family as published: sa, psa, smm, bo-qsa, ...")
]


def progress_bar() -> Bar:
    """A bar on standard error, shown within ``with``: description, steps, time left, and a line of figures."""
    return Bar()


def figures(row: Mapping[str, float]) -> str:
    """Loss and foreground ARI of a row of metrics, in words."""
    parts = [f"loss {row['loss']:.4f}"] if "loss" in row else []
    if not math.isnan(row.get("foreground_ari", math.nan)):
        parts.append(f"FG-ARI {row['foreground_ari']:.3f}")
    if row.get("skipped"):
        parts.append(f"{row['skipped']:.0f} steps not finite, skipped")
    return "  ".join(parts)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def print_json(result: Mapping[str, Any]) -> None:
    """One JSON object on one line; numbers that are not finite become null."""
    print(json.dumps(_plain(result)), flush=True)


def print_result(result: Mapping[str, Any], title: str, as_json: bool) -> None:
    """A command's result: a table, or with ``--json`` one JSON object as the last line."""
    if as_json:
        print_json(result)
        return
    table = Table(title=title, show_header=False)
    for key, value in result.items():
        if not isinstance(value, Mapping | list | tuple):
            table.add_row(key.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value))
    result_console.print(table)


def write_line(text: str) -> None:
    """Text on standard output as it is: a user's path is no markup, and no line is broken in two."""
    result_console.print(text, markup=False, highlight=False, soft_wrap=True)


def warn(text: str) -> None:
    """A line on standard error, marked a warning."""
    progress_console.print(f"warning: {text}", markup=False, highlight=False, soft_wrap=True)


def number(value: float | None, digits: int) -> str:
    """A cell of a table; None, for what is not finite, is a dash."""
    return "\N{EN DASH}" if value is None else f"{value:.{digits}f}"


def with_error(value: float | None, error: float | None, digits: int) -> str:
    """A cell of a table, with its standard error where there is one above 0."""
    return number(value, digits) + (f" ± {error:.{digits}f}" if error else "")


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder on the same disk as ``out``, a folder or a file, for what is not complete yet; afterwards it is gone.

    Raises:
        ConfigError: If it, or ``out``, cannot be written.
    """
    nearest = next(folder for folder in (out, *out.parents) if folder.is_dir())
    try:
        with TemporaryDirectory(prefix=".psa-", dir=nearest) as folder:
            yield Path(folder)
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror or error})") from None
