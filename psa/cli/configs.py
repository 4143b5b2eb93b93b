"""``psa configs``."""

from typing import Annotated

import typer
from rich import box
from rich.table import Table

from psa.cli.common import JsonOption, print_json, result_console


def configs(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A row; left out, all of them are listed.")] = None,
    json: JsonOption = False,
) -> None:
    """Rows of published tables that psa train takes by name; with NAME, its configuration as a TOML file.

    psa configs NAME > mine.toml writes a copy to edit.
    """
    from psa.experiments.published.registry import PUBLISHED, find_published

    chosen = list(PUBLISHED.values()) if name is None else [find_published(name)]
    if json:
        print_json({"configs": [row.to_json() for row in chosen]})
    elif name is not None:
        print(chosen[0].to_toml(), end="")
    else:
        table = Table(box=box.SIMPLE_HEAD)
        for heading in ("name", "data"):
            table.add_column(heading, no_wrap=heading == "name", overflow="fold")
        for row in chosen:
            table.add_row(row.name, row.dataset.name)
        result_console.print(table)
