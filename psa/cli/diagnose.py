"""``psa diagnose``."""

import json as json_text
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich import box
from rich.markup import escape
from rich.table import Table

import psa
from psa.cli.common import DataOption, JsonOption, print_json, progress_bar, result_console, staged, write_line
from psa.inference import assumptions
from psa.inference.assumptions import Finding
from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.diagnose import Diagnosis, diagnose_run
from psa.inference.images import ImageSet
from psa.inference.sessions import prepared_as, run_images
from psa.report.diagnosis import DiagnosisView, diagnosis_figure
from psa.report.files import save

RECORD, PICTURE = "diagnose.json", "diagnose.png"
_COLOURS = {"holds": "green", "fails": "red", "not decided": "yellow"}


def diagnose(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    data: DataOption = None,
    split: Annotated[str, typer.Option(help="Of the images: train, val, test, or all of a folder or file.")] = "test",
    images: Annotated[
        int, typer.Option("--images", "-n", min=1, help="Images to probe, and as many scenes from the prior.")
    ] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of all random numbers.")] = 0,
    out: Annotated[Path | None, typer.Option(help="The folder of the results; left out, RUN/figures.")] = None,
    json: JsonOption = False,
) -> None:
    """Does a run meet the assumptions of the identifiability theorem? A verdict on each, with the figure behind it.

    Piecewise affine decoder, full rank, weak injectivity, additivity, and an aggregate mixture that is not degenerate
    and has separate components.
    """
    autoencoder = psa.load(run)
    source = prepared_as(autoencoder, data)
    held_out = run_images(autoencoder, source, split, images)
    folder = out or run / "figures"
    with staged(folder) as stage:
        found = _measured(autoencoder, held_out, seed)
        asked = {"run": str(run), "out": str(folder), "data": source.source, "split": split, "images": len(held_out)}
        record = {**asked, "seed": seed, **_record(found.findings)}
        diagnosis_figure(_view(found), stage / PICTURE)
        save(stage / RECORD, (json_text.dumps(record, indent=2, allow_nan=False) + "\n").encode())
        folder.mkdir(parents=True, exist_ok=True)
        for name in (PICTURE, RECORD):  # the record last
            os.replace(stage / name, folder / name)
    _print(record)
    if json:
        print_json(record)


def _measured(autoencoder: SlotAutoencoder, held_out: ImageSet, seed: int) -> Diagnosis:
    with progress_bar() as bar:
        task = bar.add_task("reading the aggregate", total=None, figures="")

        def progress(done: int, total: int) -> None:
            bar.update(task, description="probing the decoder", completed=done, total=total)

        return diagnose_run(autoencoder, held_out, seed, progress)


def _record(findings: Sequence[Finding]) -> dict[str, Any]:
    return {
        "verdicts": {one.assumption: one.verdict for one in findings},
        "assumptions": [
            {"assumption": one.assumption, "verdict": one.verdict, "reason": one.reason, **one.figures}
            for one in findings
        ],
    }


def _view(found: Diagnosis) -> DiagnosisView:
    bent = {"the picture": found.picture[1].bent.numpy()}
    if found.painting is not None:
        bent["a slot's painting"] = found.painting[1].bent.numpy()
    separation = found.separation
    return DiagnosisView(
        verdicts={one.assumption: one.verdict for one in found.findings},
        lengths=found.picture[1].lengths.numpy(),
        bent=bent,
        singular_values={
            name: torch.cat([one.singular_values for one in some]).numpy() for name, some in found.ranks.items()
        },
        probes={
            name: torch.cat([torch.stack([one.distance, one.error], dim=1) for one in some]).numpy()
            for name, some in found.probes.items()
        },
        limits=(assumptions.DISTANT, assumptions.SAME_PICTURE),
        movers=found.movers.numpy(),
        interaction=found.interaction.share,
        variances={"slots of images": found.slot_variances.numpy(), "components": separation.smallest.numpy()},
        collapsed=assumptions.COLLAPSED,
        components=torch.stack([separation.nearest, separation.weights], dim=1).numpy(),
        separated=assumptions.SEPARATED,
    )


def _print(record: Mapping[str, Any]) -> None:
    """The table, and where the files are."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("assumption", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("measured", overflow="fold")
    for row in record["assumptions"]:
        colour = _COLOURS[row["verdict"]]
        table.add_row(row["assumption"], f"[{colour}]{row['verdict']}[/{colour}]", escape(row["reason"]))
    result_console.print(table)
    write_line(f"{record['images']} images ({record['data']}, {record['split']}), as many scenes from the prior")
    write_line(f"{RECORD} and {PICTURE} are in {record['out']}")
