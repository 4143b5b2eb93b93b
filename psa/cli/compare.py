"""``psa compare``."""

import json as json_text
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from psa.cli.common import (
    DataOption,
    JsonOption,
    number,
    print_json,
    progress_bar,
    result_console,
    staged,
    warn,
    with_error,
    write_line,
)
from psa.report.comparison import RunComparison, comparison_figure
from psa.report.files import save

TABLE, PICTURE, DRAWS = "compare.json", "compare.png", "compare.nc"


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, two or more.", metavar="RUN RUN ...")],
    data: DataOption = None,
    split: Annotated[str, typer.Option(help="train, val, test, or all of a folder or file.")] = "test",
    method: Annotated[str, typer.Option(help="Of log p(x): elbo, iwae, annealed.")] = "iwae",
    samples: Annotated[
        int | None, typer.Option(min=2, help="Draws or chains of every image; left out, 64, or 8 chains.")
    ] = None,
    images: Annotated[int, typer.Option(min=2, help="How many of the split's first images.")] = 100,
    sigma: Annotated[
        str, typer.Option(help="Noise scale: run (each its own), fit (each its best on other images), or a number.")
    ] = "run",
    ends: Annotated[str, typer.Option(help="Of the likelihood's outer bins: closed, open.")] = "closed",
    seed: Annotated[int, typer.Option(min=0, help="Of all random numbers.")] = 0,
    out: Annotated[Path, typer.Option(help="The folder of the results; an earlier result in it is replaced.")] = Path(
        "runs/compare"
    ),
    json: JsonOption = False,
) -> None:
    """Which run gives held-out images the higher log p(x): differences with standard errors, and stacking weights.

    Writes the table, a picture, and every image's log p(x) as netCDF for ArviZ.
    """
    # Not at the top: it brings ArviZ, which takes a second, and --help and most commands do without.
    from psa.arviz import write_netcdf
    from psa.inference.run_comparison import Settings
    from psa.inference.run_differences import compare_runs, stacking_weights

    settings = Settings(method, samples, images, sigma, ends, data, split, seed)
    with staged(out) as folder:
        with progress_bar() as bar:
            tasks = [bar.add_task(f"{method} of {run}", total=images, figures="") for run in runs]
            found = compare_runs(runs, settings, lambda place, done: bar.update(tasks[place], completed=done))
        record = {"out": str(out), **found.record()}
        save(folder / TABLE, (json_text.dumps(record, indent=2) + "\n").encode())
        log_evidence = found.log_evidence
        view = RunComparison(
            [run.name for run in found.runs], log_evidence.numpy(), stacking_weights(log_evidence).numpy()
        )
        comparison_figure(view, folder / PICTURE)
        write_netcdf(found.inference_data(), folder / DRAWS)
        out.mkdir(parents=True, exist_ok=True)
        for name in (DRAWS, PICTURE, TABLE):  # the table last
            os.replace(folder / name, out / name)
    if sigma == "run":
        _warn(record["runs"])
    _print(record)
    if json:
        print_json(record)


def _warn(rows: Sequence[Mapping[str, Any]]) -> None:
    sigmas = sorted({row["sigma"] for row in rows})
    if len(sigmas) > 1:
        listed = ", ".join(f"{sigma:.3g}" for sigma in sigmas)
        warn(f"sigma differs ({listed}), and much of a difference may be the noise scale's; see --sigma")


def _print(record: Mapping[str, Any]) -> None:
    """The table, the seeds, and where the files are."""
    rows, annealed = record["runs"], record["method"] == "annealed"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("run", overflow="fold")
    headings = ("model", "sigma", "log p(x)", "bits/dim", "less the best", "weight", *["accepted"] * annealed)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        cells = [
            row["run"],
            str(row["model"]),
            f"{row['sigma']:.3g}",
            with_error(row["log_evidence"], row["standard_error"], 2),
            f"{row['bits_per_dimension']:.4f}",
            with_error(row["difference"], row["difference_se"], 2),
            f"{row['weight']:.2f}",
        ]
        if annealed:
            cells.append(f"{row['acceptance']:.2f}")
        table.add_row(*cells, style="bold" if row["run"] == record["best"] else None)
    write_line(
        f"{record['method']} of {record['images']} images ({record['data']}, {record['split']}), {record['samples']} "
        f"samples, nats an image ± standard error over images; {record['likelihood']}; {record['symmetry']}"
    )
    result_console.print(table)
    for model in record["models"]:
        if len(model["seeds"]) > 1:
            write_line(
                f"model {model['model']}: {len(model['seeds'])} seeds, log p(x) {number(model['log_evidence'], 2)}, "
                f"standard deviation between seeds {number(model['between_seeds'], 2)}"
            )
    write_line(f"{TABLE}, {PICTURE}, {DRAWS} are in {record['out']}")
