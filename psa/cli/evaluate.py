"""``psa evaluate``."""

from pathlib import Path
from typing import Annotated

import typer

import psa
from psa.cli.common import DataOption, JsonOption, print_result
from psa.inference.sessions import evaluate_run, prepared_as, summary
from psa.runs import RunDirectory


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    data: DataOption = None,
    split: Annotated[str, typer.Option(help="train, val, test, or all of a folder or file.")] = "test",
    json: JsonOption = False,
) -> None:
    """Score a run on a split and write its page anew; without masks, what can be said without labels."""
    directory = RunDirectory(run)
    autoencoder = psa.load(run)
    with directory.held():
        outcome = evaluate_run(autoencoder, directory, prepared_as(autoencoder, data), split)
    print_result({"run": str(run), "split": split, **summary(outcome, directory)}, f"psa evaluate: {run}", json)
