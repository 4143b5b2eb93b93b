"""``psa train``."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

import psa
from psa.cli.common import DataOption, JsonOption, SetOption, VariantOption, figures, print_result, progress_bar
from psa.cli.priors import build_with_progress
from psa.errors import ConfigError, Stopped, TrainingFailed
from psa.files import NO_ROOM
from psa.inference.config import RECIPE, override, published, read_config_file
from psa.inference.interrupts import Interrupted
from psa.inference.launching import Request
from psa.inference.launching import train as train_run
from psa.inference.sessions import evaluate_run, summary
from psa.plugins import with_plugins
from psa.runs import RunDirectory


def train(
    config: Annotated[
        str | None, typer.Argument(help="A TOML file, or a row of psa configs; left out, the demo's recipe.")
    ] = None,
    data: DataOption = None,
    variant: VariantOption = None,
    out: Annotated[Path, typer.Option(help="The run directory.")] = Path("runs/train"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of --out.")] = False,
    settings: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Train a scene model, evaluate it on held-out images, and write its page.

    Last it builds the aggregate prior that psa sample draws from. Progress goes to standard error: steps, loss,
    foreground ARI on a held-out batch, time left. Ctrl-C finishes the step, writes a checkpoint and says how to go on.

    --set training.devices=N trains on N processes; --set training.schedule=NAME takes a paper's schedule:
    slot-attention, bo-qsa-mixture, bo-qsa-transformer, psa-transformer.
    """
    if resume and (config is not None or data is not None or variant is not None):
        raise ConfigError("--resume takes its configuration from the run; only --set may change it")
    values = None if resume else override(_values(config, data, variant), settings or [])
    request = Request(out, values, tuple(settings or ()))
    steps = request.config().training.steps
    bar = progress_bar()
    task = bar.add_task(f"training {out}", total=None, figures="")

    def show(step: int, row: dict[str, float]) -> None:
        if row:
            bar.update(task, figures=figures(row))
        bar.update(task, completed=step, total=steps)

    run = RunDirectory(out)
    with run.held(), _how_to_go_on(run):
        with bar:
            skipped = train_run(request, show)
        autoencoder = psa.load(out)
        outcome = evaluate_run(autoencoder, run, autoencoder.config.data, "test")
        build_with_progress(autoencoder, run)
    print_result({"run": str(out), **summary(outcome, run), "skipped": skipped}, f"psa train: {out}", json)


@contextmanager
def _how_to_go_on(run: RunDirectory) -> Iterator[None]:
    """Whatever stops a run, the line says what to do."""
    again = with_plugins(f"train --resume --out {run.path}")
    try:
        yield
    except Interrupted as error:
        raise Stopped(f"{str(error) or 'interrupted'}; the checkpoint is written. Go on with: {again}") from None
    except KeyboardInterrupt:
        if not run.config.exists():
            raise
        raise Stopped(f"interrupted; what was written stays. Go on with: {again}") from None
    except TrainingFailed as error:
        raise TrainingFailed(f"{run.path}: {error}") from None
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        name = error.filename or run.path
        raise TrainingFailed(f"{name}: cannot be written ({error.strerror}); make room, then {again}") from None


def _values(config: str | None, data: str | None, variant: str | None) -> dict[str, Any]:
    """The tables of the recipe, a file or a published row; a named variant replaces its slots and its objective."""
    values = dict(RECIPE) if config is None and variant is None else {}
    if config is not None:
        values = _named(config, data)
    if variant is not None:
        row = published(variant)
        kept = {key: value for key, value in values.get("slots", {}).items() if key != "overrides"}
        values |= {"slots": kept | row["slots"], "objective": row["objective"]}
    if data is not None:
        values["data"] = {**values.get("data", {}), "source": data}
    return values


def _named(config: str, data: str | None) -> dict[str, Any]:
    """The tables of a file, or where there is none of that name of a published row.

    Raises:
        ConfigError: If it is neither, or a row and its data are not named.
    """
    if Path(config).exists() or config.endswith(".toml"):
        return read_config_file(Path(config))
    from psa.experiments.published.registry import find_published  # not at the top: most runs need none

    row = find_published(config, "a TOML file or a published row")
    if data is None:
        raise ConfigError(f"{config}: expected your copy of {row.dataset.name}: {row.command}")
    return row.values()
