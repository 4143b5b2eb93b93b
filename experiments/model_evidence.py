"""Claim: log p(x) of held-out scenes tells trained members of the family apart, and a run from one stopped early.

sa, smm and psa's recipe on the demo's scenes, each with a density (slots drawn from q, the whole KL, the same sigma and
decoder), two seeds, equal steps; and the first psa run as it was at a tenth of its steps.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from psa.experiments.demo import SCENES
from psa.inference.config import RECIPE, override
from psa.inference.run_differences import Comparison, paired
from psa.inference.sessions import start_run
from psa.models.discretised import bits_per_dimension

MEMBERS: Mapping[str, Mapping[str, Any]] = {
    "psa": RECIPE["slots"],
    "sa": {"variant": "sa"},
    "smm": {"variant": "smm"},
}
SEEDS = (0, 1)
STEPS = 1500
EARLY = 0.1


def train_runs(folder: Path, steps: int = STEPS, settings: Sequence[str] = ()) -> dict[str, list[Path]]:
    """Train every member with every seed, on one thread; the first psa run is copied at a tenth of its steps.

    Args:
        folder: Where the run directories go.
        steps: Of every run.
        settings: Further settings of all runs.

    Returns:
        Run directories by member; the copy is ``stopped``.
    """
    runs: dict[str, list[Path]] = {name: [] for name in (*MEMBERS, "stopped")}
    for name, slots in MEMBERS.items():
        for seed in SEEDS:
            wanted = (*SCENES, f"training.steps={steps}", f"training.seed={seed}", "training.threads=1", *settings)
            path = folder / f"{name}-{seed}"
            trainer = start_run(override({**RECIPE, "slots": slots}, wanted), path)
            if not runs["stopped"]:
                trainer.fit(round(EARLY * steps))
                runs["stopped"].append(shutil.copytree(path, folder / f"{name}-{seed}-stopped"))
            trainer.fit()
            runs[name].append(path)
    return runs


def member_rows(runs: Mapping[str, Sequence[Path]], found: Comparison) -> list[dict[str, object]]:
    """A row a member: log p(x) of every seed, the mean, its standard deviation between seeds.

    ``less the best`` is the paired difference to the member of highest mean, of means over seeds, with its standard
    error over images.

    Args:
        runs: Run directories by member, as :func:`train_runs` gives them.
        found: Of all of them, in this order.
    """
    sizes = [len(paths) for paths in runs.values()]
    values = dict(zip(runs, found.log_evidence.split(sizes), strict=True))
    best = max(values, key=lambda name: float(values[name].mean()))
    errors = found.sampling_error.square().mean(1).sqrt().split(sizes)
    rows: list[dict[str, object]] = []
    for (name, own), error in zip(values.items(), errors, strict=True):
        less, less_error = paired(own.mean(0), values[best].mean(0))
        rows.append(
            {
                "member": name,
                "each seed": ", ".join(f"{value:.2f}" for value in own.mean(1).tolist()),
                "mean": f"{float(own.mean()):.2f}",
                "between seeds": f"{float(own.mean(1).std()):.2f}" if len(own) > 1 else "one seed",
                "less the best": f"{less:.2f} ± {less_error:.2f}",
                "bits a dimension": bits_per_dimension(float(own.mean()), found.num_dimensions),
                "sampling error": f"{float(error.mean()):.2f}",
            }
        )
    return rows
