"""What the aggregate prior gives: in the loop of training, built after it (the papers' way), and not at all.

The psa recipe on the demo's scenes, equal steps, the same seeds; log p(x) of held-out images under each p(s).
``python -m psa.experiments.prior_in_the_loop FOLDER`` trains the runs there and prints the table.
"""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import psa
from psa.experiments.demo import SCENES
from psa.experiments.tables import markdown
from psa.inference.config import RECIPE, override
from psa.inference.run_comparison import Settings
from psa.inference.run_differences import compare_runs
from psa.inference.sessions import build_prior, start_run
from psa.runs import RunDirectory

STEPS, SEEDS = 1500, (0, 1)
GAUSSIAN, AFTER, IN_THE_LOOP = "Gaussian", "aggregate, after training", "aggregate, in the loop and after"


@dataclass(frozen=True)
class PriorRow:
    """One seed under one prior.

    Attributes:
        prior: Of training and afterwards.
        seed: Of training.
        log_evidence: Mean IWAE bound on log p(x), nats an image.
        difference: To the Gaussian of the same seed, nats an image.
        difference_error: Its standard error over images.
        foreground_ari: Held-out, at the end of training.
    """

    prior: str
    seed: int
    log_evidence: float
    difference: float
    difference_error: float
    foreground_ari: float


def train(folder: Path, seed: int, steps: int = STEPS, settings: Sequence[str] = ()) -> dict[str, Path]:
    """Run directories by prior; the second is a copy of the first with an aggregate prior beside it."""
    wanted = (*SCENES, f"training.steps={steps}", f"training.seed={seed}", "training.threads=1", *settings)
    paths = {name: folder / f"{place}-{seed}" for place, name in enumerate((GAUSSIAN, AFTER, IN_THE_LOOP))}
    start_run(override(RECIPE, wanted), paths[GAUSSIAN]).fit()
    shutil.copytree(paths[GAUSSIAN], paths[AFTER])
    start_run(override(RECIPE, (*wanted, "objective.prior=aggregate")), paths[IN_THE_LOOP]).fit()
    for name in (AFTER, IN_THE_LOOP):
        build_prior(psa.load(paths[name]), RunDirectory(paths[name]))
    return paths


def compare_priors(paths: dict[str, Path], seed: int, num_images: int = 100) -> list[PriorRow]:
    """A row a prior."""
    found = compare_runs(list(paths.values()), Settings("iwae", num_images=num_images))
    difference = found.log_evidence - found.log_evidence[0]
    error = difference.std(1) / difference.shape[1] ** 0.5
    score = {name: RunDirectory(path).read_metrics()[-1]["foreground_ari"] for name, path in paths.items()}
    rows = zip(paths, found.log_evidence.mean(1), difference.mean(1), error, strict=True)
    return [PriorRow(name, seed, float(a), float(b), float(c), score[name]) for name, a, b, c in rows]


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows = [row for seed in SEEDS for row in compare_priors(train(Path(sys.argv[1]), seed), seed)]
    print(markdown([asdict(row) for row in rows]))
