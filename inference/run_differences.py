"""What per-image log p(x) of several runs says of them: paired differences, stacking, seeds as replicates."""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from scipy.optimize import minimize
from torch import Tensor

from psa.arviz import Data, inference_data
from psa.inference.evaluation import describe_objective
from psa.inference.run_comparison import RunEvidence, Settings, TrainedRun, open_runs, run_evidence, shared_images
from psa.inference.scene_evidence import estimate
from psa.models.discretised import bits_per_dimension

SYMMETRY = "q averaged over the K! orders of the slots"
LIKELIHOOD = {
    "closed": "8-bit images, bins of 1/255 about the pixel values",
    "open": "8-bit images, bins of 1/255 about the pixel values, the outer two open-ended",
}

Progress = Callable[[int, int], None]
"""Called with a run's place and the number of its images that are done."""


def compare_runs(
    paths: Sequence[Path], settings: Settings, progress: Progress = lambda place, done: None
) -> "Comparison":
    """log p(x) of the same images under every run.

    Args:
        paths: Run directories, two or more.
        settings: Which images, and how.
        progress: Called after every image or chunk.

    Raises:
        psa.errors.PsaError: If a run cannot be opened, has no density, or saw other images.
    """
    runs = open_runs(paths)
    images = shared_images(runs, settings)
    found = [
        run_evidence(run, images, settings, lambda done, place=place: progress(place, done))  # type: ignore[misc]
        for place, run in enumerate(runs)
    ]
    return Comparison(runs, found, settings)


def paired(one: Float64[Tensor, " images"], other: Float64[Tensor, " images"]) -> tuple[float, float]:
    """Mean of one less other, and its standard error over images."""
    difference = one - other
    return float(difference.mean()), float(difference.std() / math.sqrt(len(difference)))


def stacking_weights(log_evidence: Float64[Tensor, "runs images"]) -> Float64[Tensor, " runs"]:
    """The weights that maximise the mean log of sum_r w_r p_r(x) over images (Yao et al. 2018).

    Args:
        log_evidence: (R, M), nats, of images that no run was trained on.

    Returns:
        (R,), sums to 1.
    """
    density = (log_evidence - log_evidence.amax(0)).exp().numpy()
    tiny = np.finfo(np.float64).tiny

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = np.maximum(weights @ density, tiny)
        return -float(np.log(mixed).mean()), -(density / mixed).mean(1)

    num_runs = len(density)
    found = minimize(
        loss,
        np.full(num_runs, 1.0 / num_runs),
        jac=True,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * num_runs,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1.0, "jac": np.ones_like},
        options={"ftol": 1e-12, "maxiter": 1000},
    ).x.clip(0.0, 1.0)
    return torch.from_numpy(found / found.sum())


def models_of(runs: Sequence[TrainedRun]) -> list[list[int]]:
    """Runs of one configuration and as many steps, alike but for training.seed: places of each model's runs.

    A seed that comes again is no replicate: the same run, or a copy of it, is a model of its own.
    """
    models: dict[tuple[str, int], list[int]] = {}
    times: Counter[tuple[str, int]] = Counter()
    for place, run in enumerate(runs):
        config = run.autoencoder.config.to_toml()
        seed = config["training"].pop("seed")
        key = json.dumps([config, run.step], sort_keys=True)
        models.setdefault((key, times[key, seed]), []).append(place)
        times[key, seed] += 1
    return list(models.values())


@dataclass(frozen=True)
class Comparison:
    """Runs on the same images.

    Attributes:
        runs: R of them.
        evidence: Of every run.
        settings: How it was found.
    """

    runs: Sequence[TrainedRun]
    evidence: Sequence[RunEvidence]
    settings: Settings

    def __post_init__(self) -> None:
        shapes = {tuple(one.log_weights.shape) for one in self.evidence}
        if len(shapes) != 1 or len(self.runs) != len(self.evidence):
            raise ValueError(f"evidence: expected one of equal shape for each run, got shapes {sorted(shapes)}")

    @property
    def log_evidence(self) -> Float64[Tensor, "runs images"]:
        """log p(x) of every image, nats."""
        return torch.stack([estimate(one.log_weights, self.settings.method)[0] for one in self.evidence])

    @property
    def sampling_error(self) -> Float64[Tensor, "runs images"]:
        """Its Monte Carlo standard error."""
        return torch.stack([estimate(one.log_weights, self.settings.method)[1] for one in self.evidence])

    @property
    def best(self) -> int:
        """The run of highest mean."""
        return int(self.log_evidence.mean(1).argmax())

    @property
    def num_dimensions(self) -> int:
        """Channels times pixels of an image."""
        height, width = self.runs[0].autoencoder.size
        return 3 * height * width

    def record(self) -> dict[str, Any]:
        """Plain numbers for JSON, nats an image unless named otherwise."""
        log_evidence, weights = self.log_evidence, stacking_weights(self.log_evidence)
        return {
            "method": self.settings.method,
            "samples": self.settings.samples,
            "images": log_evidence.shape[1],
            "split": self.settings.split,
            "data": self.settings.data or self.runs[0].autoencoder.config.data.source,
            "sigma": self.settings.sigma,
            "ends": self.settings.ends,
            "seed": self.settings.seed,
            "symmetry": SYMMETRY,
            "likelihood": LIKELIHOOD[self.settings.ends],
            "best": self.runs[self.best].name,
            "runs": self._run_rows(log_evidence, weights),
            "models": self._model_rows(log_evidence, weights),
            "pairs": [self._difference(log_evidence, *pair) for pair in combinations(range(len(self.runs)), 2)],
        }

    def _run_rows(self, log_evidence: Tensor, weights: Tensor) -> list[dict[str, Any]]:
        model_of = {place: number for number, model in enumerate(models_of(self.runs)) for place in model}
        rows = []
        for place, (run, found) in enumerate(zip(self.runs, self.evidence, strict=True)):
            config, own = run.autoencoder.config, log_evidence[place]
            mean, error = paired(own, torch.zeros_like(own))
            below, below_error = paired(own, log_evidence[self.best])
            row = {
                "run": run.name,
                "model": model_of[place] + 1,
                "variant": config.slots.variant,
                "training_seed": config.training.seed,
                "step": run.step,
                "objective": describe_objective(run.autoencoder),
                "sigma": found.sigma,
                "log_evidence": mean,
                "standard_error": error,
                "sampling_error": float(self.sampling_error[place].square().mean().sqrt()),
                "bits_per_dimension": bits_per_dimension(mean, self.num_dimensions),
                "difference": below,
                "difference_se": below_error,
                "weight": float(weights[place]),
            }
            if found.acceptance is not None:
                row["acceptance"] = float(found.acceptance.mean())
            rows.append(row)
        return rows

    def _model_rows(self, log_evidence: Tensor, weights: Tensor) -> list[dict[str, Any]]:
        """Means over seeds, with the spread between them: the standard deviation, None for one seed."""
        rows = []
        for number, places in enumerate(models_of(self.runs)):
            means = log_evidence[places].mean(1)
            rows.append(
                {
                    "model": number + 1,
                    "runs": [self.runs[place].name for place in places],
                    "seeds": [self.runs[place].autoencoder.config.training.seed for place in places],
                    "log_evidence": float(means.mean()),
                    "between_seeds": float(means.std()) if len(places) > 1 else None,
                    "weight": float(weights[places].sum()),
                }
            )
        return rows

    def _difference(self, log_evidence: Tensor, one: int, other: int) -> dict[str, Any]:
        mean, error = paired(log_evidence[one], log_evidence[other])
        return {
            "run": self.runs[one].name,
            "other": self.runs[other].name,
            "difference": mean,
            "difference_se": error,
        }

    def inference_data(self) -> Data:
        """ArviZ groups: log_weight by draw, run and image, whose samples are ArviZ's draws; log_evidence by run, image.

        ``log_likelihood`` holds each draw's estimate of log p(x), so that the log of the mean over draws is
        log_evidence, except of the ELBO, which is their mean.
        """
        weights = torch.stack([one.log_weights for one in self.evidence])
        groups: dict[str, dict[str, Any]] = {
            "log_likelihood": {"log_weight": weights.permute(2, 0, 1)[None].numpy()},
            "observed_data": {
                "log_evidence": self.log_evidence.numpy(),
                "sampling_error": self.sampling_error.numpy(),
            },
        }
        accepted = [one.acceptance for one in self.evidence if one.acceptance is not None]
        if accepted:
            groups["sample_stats"] = {"acceptance": torch.stack(accepted).permute(2, 0, 1)[None].numpy()}
        names = ("log_weight", "log_evidence", "sampling_error", "acceptance")
        coords = {"run": [run.name for run in self.runs]}
        notes = {name: getattr(self.settings, name) for name in ("method", "split", "sigma", "ends", "seed")}
        notes |= {"symmetry": SYMMETRY, "likelihood": LIKELIHOOD[self.settings.ends], "units": "nats an image"}
        return inference_data(groups, {name: ["run", "image"] for name in names}, coords, notes)
