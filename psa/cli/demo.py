"""``psa demo``."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import TaskID

from psa.cli.common import (
    JsonOption,
    SetOption,
    VariantOption,
    figures,
    print_result,
    progress_bar,
    progress_console,
)
from psa.errors import Stopped
from psa.experiments.demo import SCENES, Demo, candidate_seeds, run_demo
from psa.inference.config import RECIPE, override, published
from psa.inference.sessions import summary
from psa.plugins import with_plugins


def demo(
    out: Annotated[Path, typer.Option(help="The demo's directory; an earlier demo in it is replaced.")] = Path(
        "runs/demo"
    ),
    seconds: Annotated[
        float | None, typer.Option(help="Wall time to aim at; left out, a fixed number of steps.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seeds the scenes and, through them, every candidate.")] = 0,
    variant: VariantOption = None,
    settings: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Take generated scenes apart into objects, and write a page of pictures.

    Trains several seeds in parallel, chooses one by the held-out value of the objective (no labels), and scores it on
    fresh scenes beside baselines that need no learning.
    """
    start = RECIPE if variant is None else published(variant)
    values = override(start, [f"data.seed={seed}", *SCENES, *(settings or [])])
    with progress_bar() as bar:
        tasks: dict[int, TaskID] = {
            s: bar.add_task(f"seed {s}", total=None, figures="starting") for s in candidate_seeds(seed)
        }

        def show(training_seed: int, step: int, steps: int, row: dict[str, float]) -> None:
            task = tasks[training_seed]
            bar.update(task, completed=step, total=steps)
            if row:
                bar.update(task, figures=figures(row))

        try:
            result = run_demo(values, out, seed, seconds, show)
        except KeyboardInterrupt:
            again = with_plugins(f"train --resume --out {out}/demo/seed-{candidate_seeds(seed)[0]}")
            raise Stopped(f"interrupted; checkpoints are under {out}/demo. Go on with one: {again}") from None
    for problem in result.outcome.evaluation.health.problems:
        progress_console.print(f"warning: {problem}", markup=False, highlight=False)
    print_result(_plain(result, seed), "psa demo", json)


def _plain(result: Demo, seed: int) -> dict[str, Any]:
    return {
        **summary(result.outcome, result.run),
        "seconds": result.seconds,
        "seed": seed,
        "chosen_seed": result.candidates[result.chosen].seed,
        "candidates": [asdict(c) | {"path": str(c.path)} for c in result.candidates],
        "picture": str(result.run.picture),
    }
