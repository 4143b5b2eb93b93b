"""``psa evaluate``."""

from pathlib import Path
from typing import Annotated

import typer

import psa
from psa.cli.common import DataOption, JsonOption, print_result
from psa.inference.sessions import evaluate_run, summary
from psa.runs import RunDirectory


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    data: DataOption = None,
    split: Annotated[str, typer.Option(help="train, val, test, or all of a folder or file.")] = "test",
    json: JsonOption = False,
) -> None:
    """Score a run on a split and write its page anew; without masks, what can be said without labels."""
    autoencoder = psa.load(run)
    source = autoencoder.config.data
    if data is not None and data != source.source:
        size = autoencoder.size if data != "sprites" else autoencoder.size[0]
        source = type(source)(source=data, size=size, crop=None if data == "sprites" else source.crop)
    directory = RunDirectory(run)
    print_result(
        {"run": str(run), "split": split, **summary(evaluate_run(autoencoder, directory, source, split), directory)},
        f"psa evaluate: {run}",
        json,
    )
