"""``psa experiment list`` and ``psa experiment run``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich import box
from rich.table import Table

from psa.cli.common import JsonOption, print_json, progress_bar, result_console, write_line
from psa.errors import Stopped

experiment = typer.Typer(
    name="experiment", help="Claims of the papers, each put to the test.", no_args_is_help=True, rich_markup_mode=None
)


@experiment.command("list")
def list_experiments(json: JsonOption = False) -> None:
    """What can be run: names, claims and where they are made."""
    from psa.experiments.registry import EXPERIMENTS  # not at the top: it brings every experiment

    if not json:
        table = Table(box=box.SIMPLE_HEAD)
        for heading in ("name", "claim", "source"):
            table.add_column(heading, no_wrap=heading == "name", overflow="fold")
        for name, scales in EXPERIMENTS.items():
            table.add_row(name, scales["cpu"].claim, scales["cpu"].source)
        result_console.print(table)
        return
    rows = [
        {"name": name, "claim": scales["cpu"].claim, "source": scales["cpu"].source, "scales": list(scales)}
        for name, scales in EXPERIMENTS.items()
    ]
    print_json({"experiments": rows})


@experiment.command("run")
def run(
    name: Annotated[str, typer.Argument(help="As psa experiment list gives it.", metavar="NAME")],
    scale: Annotated[str, typer.Option(help="smoke (seconds), cpu (minutes to an hour), gpu.")] = "cpu",
    out: Annotated[
        Path | None, typer.Option(help="The folder of the results; left out, runs/experiments/NAME-SCALE.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Try a claim: writes tables beside the published figures, pictures and a verdict.

    Every unit (a row with a seed) is kept when it is done; the same command again goes on with those that are missing.
    """
    from psa.experiments.experiment import require_units
    from psa.experiments.registry import find_experiment
    from psa.experiments.running import FIGURES, PAGE, RESULT, Progress, run_experiment

    found = find_experiment(name, scale)
    out = Path("runs/experiments") / f"{name}-{scale}" if out is None else out
    torch.set_num_threads(1)  # two experiments side by side use two cores better than one experiment does
    total = len(require_units(found))
    with progress_bar() as bar:
        units = bar.add_task(name, total=total, figures="")
        steps = bar.add_task("", total=None, figures="", visible=False)

        def watch(unit: str) -> Progress:
            bar.update(units, completed=found.units().index(unit), figures=unit)
            bar.reset(steps, description="  of it", total=None, visible=False)
            return lambda done, of: bar.update(steps, completed=done, total=of, visible=True)

        try:
            result = run_experiment(found, scale, out, watch)
        except KeyboardInterrupt:
            raise Stopped(f"interrupted; finished units are kept, and the same command goes on in {out}") from None
        bar.update(units, completed=total, figures="")
        bar.update(steps, visible=False)
    if not json:
        _show(result.record)
        write_line(f"{PAGE}, {RESULT} and {FIGURES}/ are in {out}")
        return
    conclusion = result.conclusion
    print_json(
        {"verdict": conclusion.verdict, **conclusion.figures, "reason": conclusion.reason, "experiment": name}
        | {
            "scale": scale,
            "seconds": result.seconds,
            "cpu_seconds": result.cpu_seconds,
            "out": str(out),
            "tables": result.record["tables"],
        }
    )


def _show(record: Mapping[str, Any]) -> None:
    """Claim, tables and verdict."""
    from psa.experiments.tables import cell

    write_line(f"{record['experiment']}: {record['claim']} ({record['source']})")
    for title, rows in record["tables"].items():
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for heading, value in rows[0].items():
            table.add_column(heading, justify="left" if isinstance(value, str) else "right", overflow="fold")
        for row in rows:
            table.add_row(*(cell(row[heading]) for heading in rows[0]))
        result_console.print(table)
    write_line(f"verdict: {record['verdict']}. {record['reason']}")
