"""``psa slots``."""

import json as json_text
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from psa.cli.common import (
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
from psa.data.token_files import read_tokens
from psa.report.files import save
from psa.report.slot_counts import slot_counts_figure

TABLE, PICTURE = "slots.json", "slots.png"
DRAWS_FILE = re.compile(r"slots-\d+\.nc")

# What makes a row doubtful: its key, the most to trust, what is said of it.
DOUBTS = (
    ("draws_pareto_k", 0.7, "the variational draws may miss part of the posterior, --draws nuts is slower and surer"),
    ("rhat", 1.05, "the chains disagree, and their LOO cannot be trusted"),
    ("divergent", 0, "NUTS diverged, and its draws are suspect"),
    ("pareto_k", 0.7, "some tokens are predicted too badly by the others for LOO to be trusted"),
)
COLUMNS = {"draws_pareto_k": "k draws", "rhat": "R-hat", "pareto_k": "k LOO"}


def slots(
    path: Annotated[Path, typer.Argument(help="Tokens in an .npy or .npz file, or a PNG or JPEG image.")],
    max_slots: Annotated[
        int | None, typer.Option("--max", min=1, help="The most slots; left out, 8 or the number of tokens.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="Of the evidence: annealed, importance, variational, exact.")
    ] = "annealed",
    draws: Annotated[str, typer.Option(help="Of the posterior, for LOO: variational, nuts, none.")] = "variational",
    concentration: Annotated[float, typer.Option(help="alpha0 of the weights, above 0.")] = 1.0,
    size: Annotated[int, typer.Option(min=1, help="Pixels a side that an image is made.")] = 24,
    item: Annotated[int, typer.Option(min=0, help="Which image of an array (images, tokens, features).")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of all random numbers.")] = 0,
    out: Annotated[Path, typer.Option(help="The folder of the results; an earlier result in it is replaced.")] = Path(
        "runs/slots"
    ),
    json: JsonOption = False,
) -> None:
    """How many slots tokens, or the pixels of an image, need: the evidence for each number, and what it predicts.

    Writes the table, a picture, and posterior draws for each number of slots as netCDF for ArviZ.
    """
    tokens = read_tokens(path, size=size, item=item)
    # Not at the top: it brings ArviZ, which takes a second, and --help and most commands do without.
    from psa.cli.slot_evidence import Settings, compare_slots

    settings = Settings(max_slots, method, draws, concentration, seed)
    most = settings.num_counts(len(tokens.values))
    with staged(out) as folder:
        with progress_bar() as bar:
            tasks = {stage: bar.add_task(stage, total=most, figures="") for stage in settings.stages}
            found = compare_slots(tokens, settings, folder, lambda stage, k: bar.update(tasks[stage], completed=k))
        record = {"path": str(path), "size": size, "item": item, "out": str(out), **found.record()}
        save(folder / TABLE, (json_text.dumps(record, indent=2, allow_nan=False) + "\n").encode())
        slot_counts_figure(found.view(), folder / PICTURE)
        _publish(folder, out)
    _warn(record["counts"])
    _print(record)
    if json:
        print_json(record)


def _publish(folder: Path, out: Path) -> None:
    """Rename what is complete to its place, the table last, and drop the draws of an earlier result."""
    out.mkdir(parents=True, exist_ok=True)
    names = sorted((path.name for path in folder.iterdir()), key=lambda name: name == TABLE)
    for path in out.iterdir():
        if DRAWS_FILE.fullmatch(path.name) and path.name not in names:
            path.unlink()
    for name in names:
        os.replace(folder / name, out / name)


def _warn(rows: Sequence[Mapping[str, Any]]) -> None:
    """A line on standard error for each thing that is not to be trusted."""
    failed = [row["num_slots"] for row in rows if row["failed"]]
    if failed:
        _say(failed, "the evidence failed its own diagnostic (marked !), and p(K) rests on it; try another --method")
    for key, most, text in DOUBTS:
        found = {row["num_slots"]: row[key] for row in rows if key in row}
        # What is not finite is None here.
        doubtful = [count for count, value in found.items() if value is None or value > most]
        if doubtful:
            _say(doubtful, f"{text} ({COLUMNS.get(key, key)} above {most})")


def _say(counts: Sequence[int], text: str) -> None:
    numbers = ", ".join(map(str, counts))
    warn(f"K = {numbers}: {text}")


def _print(record: Mapping[str, Any]) -> None:
    """The table, the answer, and where the files are."""
    rows, best, occupied = record["counts"], record["best"], record["best_occupied"]
    keys = [key for key in COLUMNS if key in rows[0]]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    predicted = ["LOO elpd", *(COLUMNS[key] for key in keys)] if keys else []
    for heading in ("K", "log evidence", "bound", "p(K)", *predicted):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        evidence = with_error(row["log_evidence"], row["standard_error"], 2) + (" !" if row["failed"] else "")
        cells = [str(row["num_slots"]), evidence, number(row["bound"], 2), number(row["probability"], 3)]
        if keys:
            cells += [with_error(row["elpd"], row["elpd_se"], 1), *(number(row[key], 2) for key in keys)]
        table.add_row(*cells, style="bold" if row["num_slots"] == best else None)
    shape = f"{record['tokens']} x {record['features']}"
    write_line(f"{record['path']}: tokens {shape}, {record['method']} evidence, in nats")
    result_console.print(table)
    write_line(
        f"K = {best} has probability {number(rows[best - 1]['probability'], 2)}; "
        f"{occupied} {'slot is' if occupied == 1 else 'slots are'} occupied in a sparse fit "
        f"with probability {record['occupied'][occupied]:.2f}\n"
        f"{', '.join([TABLE, PICTURE, *(['slots-K.nc'] if keys else [])])} are in {record['out']}"
    )
