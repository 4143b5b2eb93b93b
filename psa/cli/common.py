"""What the commands share: where progress goes, and how a result is printed."""

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

progress_console = Console(stderr=True)
result_console = Console()

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of standard output.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the configuration; repeatable.")
]
DataOption = Annotated[
    str | None, typer.Option("--data", help="A generator's name (sprites), a folder of images, or an HDF5 file.")
]
VariantOption = Annotated[
    str | None, typer.Option("--variant", help="A member of the family as published: sa, psa, smm, bo-qsa, ...")
]


def progress_bar() -> Progress:
    """A bar on standard error, shown within ``with``: description, steps, time left, and a line of figures."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    return Progress(*columns, console=progress_console, refresh_per_second=4)


def figures(row: Mapping[str, float]) -> str:
    """Loss and foreground ARI of a row of metrics, in words."""
    parts = [f"loss {row['loss']:.4f}"] if "loss" in row else []
    if not math.isnan(row.get("foreground_ari", math.nan)):
        parts.append(f"FG-ARI {row['foreground_ari']:.3f}")
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
