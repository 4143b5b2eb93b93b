"""``psa check``."""

import json as json_text
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from psa.cli.common import DataOption, JsonOption, print_json, progress_bar, result_console, write_line
from psa.errors import ConfigError
from psa.metrics.p_values import TAILS, Check
from psa.report.checks import checks_figure
from psa.report.files import save

TABLE, PICTURE = "checks.json", "checks.png"


def check(
    path: Annotated[Path, typer.Argument(help="A run directory, or tokens in an .npy or .npz file.")],
    data: DataOption = None,
    split: Annotated[str, typer.Option(help="Of the images: train, val, test, or all of a folder or file.")] = "test",
    images: Annotated[int, typer.Option("--images", "-n", min=1, help="Images that are one data set.")] = 8,
    slots: Annotated[int | None, typer.Option(min=1, help="Of the local mixture that tokens are checked by.")] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="Of check, repeatable: prior, posterior, held-out, calibrated.")
    ] = None,
    statistic: Annotated[
        list[str] | None, typer.Option(help="A name, or a function of a batch, package.module:function; repeatable.")
    ] = None,
    replicates: Annotated[int, typer.Option(min=1, help="Data sets that the model makes.")] = 999,
    simulations: Annotated[int, typer.Option(min=1, help="Data sets that calibrate.")] = 199,
    tail: Annotated[str, typer.Option(help="What is extreme: two-sided, upper, lower.")] = "two-sided",
    features: Annotated[
        str | None,
        typer.Option(
            help="Adds the Frechet distance: run, package.module:function, timm:ARCHITECTURE:FILE.safetensors."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all random numbers.")] = 0,
    out: Annotated[Path | None, typer.Option(help="The folder of the results; left out, PATH/checks.")] = None,
    json: JsonOption = False,
) -> None:
    """Compare data with what the model makes: p-values of statistics, and the picture of each."""
    if tail not in TAILS:
        raise ConfigError(f"--tail {tail}: expected one of {', '.join(TAILS)}")
    # Not at the top: it brings ArviZ, which takes a second, and --help and most commands do without.
    from psa.cli.checking import Request, run_checks
    from psa.inference.checks import CheckOptions

    folder = out or (path / "checks" if path.is_dir() else path.parent / "checks")
    request = Request(kind, statistic, data, split, images, slots, features, seed)
    with progress_bar() as bar:
        task = bar.add_task("checking", total=len(kind or ("", "")), figures="")
        options = CheckOptions(replicates, simulations, tail, pooled=True)
        found = run_checks(path, request, options, lambda name: bar.update(task, advance=1, figures=name))
    rows = [_row(name, one) for name, checks in found.checks.items() for one in checks]
    record = {"path": str(path), "out": str(folder), "seed": seed, **found.about, "checks": rows}
    _save(folder, found.checks, record)
    _print(record)
    if json:
        print_json(record)


def _save(folder: Path, found: Mapping[str, list[Check]], record: Mapping[str, Any]) -> None:
    """The netCDF file of each kind, the picture, and the table last."""
    from psa.arviz import write_netcdf
    from psa.inference.checks import check_groups

    try:
        for name, checks in found.items():
            write_netcdf(check_groups(checks), folder / f"{name}.nc")
        checks_figure([one for checks in found.values() for one in checks], folder / PICTURE)
        save(folder / TABLE, (json_text.dumps(record, indent=2, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise ConfigError(f"--out {folder}: cannot be written ({error.strerror or error})") from None


def _row(kind: str, check: Check) -> dict[str, Any]:
    """A check as plain values; of a calibrated one the statistic and its replicates, of which p is not the rank."""
    shown = check.raw or check
    numbers = {
        "observed": shown.observed,
        "replicated_mean": shown.reference.mean(),
        "replicated_sd": shown.reference.std(correction=0),
        "p_value": check.p_value,
    }
    return {
        "statistic": check.statistic,
        "kind": kind,
        "reference": check.provenance.kind,
        "uniform": check.provenance.uniform,
        "note": check.provenance.note,
        "tail": check.tail,
        "replicates": len(check.reference),
        **{name: float(value) if math.isfinite(float(value)) else None for name, value in numbers.items()},
    }


def _print(record: Mapping[str, Any]) -> None:
    """The table, what raw means, and where the files are."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("check", "statistic", "data", "replicates", "sd", "p"):
        table.add_column(heading, justify="left" if heading in ("check", "statistic") else "right", no_wrap=True)
    for row in record["checks"]:
        raw = " (raw)" if row["uniform"] == "no" else ""
        numbers = [row[name] for name in ("observed", "replicated_mean", "replicated_sd")]
        cells = ["\N{EN DASH}" if value is None else f"{value:.4g}" for value in numbers]
        small = row["p_value"] < 1 / (row["replicates"] + 1)  # no finer than that can be told
        p_value = f"< {1 / (row['replicates'] + 1):.2g}" if small else f"{row['p_value']:.3f}"
        table.add_row(row["kind"] + raw, row["statistic"], *cells, p_value)
    result_console.print(table)
    if any(row["uniform"] == "no" for row in record["checks"]):
        write_line("raw p-values are not uniform on data from the model: --kind calibrated")
    if "frechet_distance" in record:
        count, name = record["frechet_images"], record["features"]
        write_line(f"Frechet distance of {count} images and samples on {name}: {record['frechet_distance']:.4g}")
    write_line(f"{TABLE}, {PICTURE} and a netCDF file of each kind are in {record['out']}")
