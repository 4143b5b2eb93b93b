"""Trained runs on the same held-out images: whose log p(x) is higher, by how much, how surely (docs/compare.md)."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float64, UInt8
from scipy.optimize import minimize_scalar
from torch import Tensor

from psa.errors import ConfigError, DataError, RunError
from psa.inference.annealed_scenes import Schedule, annealed_weights
from psa.inference.autoencoder import SlotAutoencoder, load_run
from psa.inference.scene_evidence import SceneEvidence, estimate
from psa.inference.sessions import prepared_as, run_images
from psa.models.discretised import ENDS
from psa.permanent import MAX_SIZE
from psa.runs import RunDirectory, load_tensors

METHODS = {"elbo": 64, "iwae": 64, "annealed": 8}  # and the samples of an image, unless a user says otherwise
FITTED_ON = {"test": "val", "train": "val", "val": "train"}  # images that fit sigma, by the split that is compared
FIT_IMAGES, FIT_SAMPLES = 32, 16
FIT_RANGE = (1e-3, 10.0)


@dataclass(frozen=True)
class Settings:
    """What a user asks for.

    Attributes:
        method: One of METHODS.
        num_samples: Draws or chains of every image, at least 2; None for the method's own number.
        num_images: At least 2; all of them where there are fewer.
        sigma: ``run``, each run's own objective.sigma; ``fit``, the one that maximises its bound on other images; or a
            number for all.
        ends: Of the likelihood's outer bins, one of ENDS (:mod:`psa.models.discretised`).
        data: A data set in place of the runs' own.
        split: Whose images are compared.
        seed: Of all random numbers.

    Raises:
        ConfigError: If a value is outside its support.
    """

    method: str = "iwae"
    num_samples: int | None = None
    num_images: int = 100
    sigma: str = "run"
    ends: str = "closed"
    data: str | None = None
    split: str = "test"
    seed: int = 0

    def __post_init__(self) -> None:
        for option, word, known in (("--method", self.method, METHODS), ("--ends", self.ends, ENDS)):
            if word not in known:
                raise ConfigError(f"{option} {word}: expected one of {', '.join(known)}")
        for option, value in (("--samples", self.samples), ("--images", self.num_images)):
            if value < 2:
                raise ConfigError(f"{option} {value}: expected at least 2, for a standard error")
        if self.sigma not in ("run", "fit") and not self.given_sigma > 0:
            raise ConfigError(f"--sigma {self.sigma}: expected run, fit or a number above 0")
        if self.sigma == "fit" and self.split == "all" and self.data is None:
            raise ConfigError("--sigma fit: expected a --split that leaves images to fit on, got all")

    @property
    def samples(self) -> int:
        """Draws or chains of every image."""
        return METHODS[self.method] if self.num_samples is None else self.num_samples

    @property
    def given_sigma(self) -> float:
        """The number that stands in ``sigma``; NaN where it is none."""
        try:
            value = float(self.sigma)
        except ValueError:
            return math.nan
        return value if math.isfinite(value) else math.nan


@dataclass(frozen=True)
class TrainedRun:
    """A run with a density.

    Attributes:
        name: Its path as given; a number follows where a path is given twice.
        autoencoder: Its model and guide.
        step: Training steps behind its checkpoint.
    """

    name: str
    autoencoder: SlotAutoencoder
    step: int


def open_runs(paths: Sequence[Path]) -> list[TrainedRun]:
    """Two runs or more that can be compared.

    Raises:
        ConfigError: If there are fewer.
        RunError: If one is no run, its slots are points, or it has more slots than orders can be summed over.
    """
    if len(paths) < 2:
        raise ConfigError(f"{' '.join(map(str, paths))}: expected at least two runs to compare, got {len(paths)}")
    runs: list[TrainedRun] = []
    times: Counter[str] = Counter()
    for path in map(str, paths):
        autoencoder = load_run(Path(path))
        config = autoencoder.config
        if not config.objective.sample:
            raise RunError(
                f"{path}: its slots are points (objective.sample = false), so it has no density; leave it out"
            )
        if config.decoder.relevance != "none":
            raise RunError(
                f"{path}: its decoder leaves slots out (decoder.relevance = {config.decoder.relevance}), and log p(x) "
                "is computed with all of them; set it to none in config.toml, or leave the run out"
            )
        if not autoencoder.has_pixel_density:
            raise RunError(
                f"{path}: its likelihood is not of pixels alone (decoder.kind = {config.decoder.kind}); leave it out"
            )
        if config.slots.num_slots > MAX_SIZE:
            raise RunError(f"{path}: expected at most {MAX_SIZE} slots, got {config.slots.num_slots}")
        times[path] += 1
        name = path if times[path] == 1 else f"{path} ({times[path]})"
        runs.append(TrainedRun(name, autoencoder, load_tensors(RunDirectory(Path(path)).checkpoint)[1].get("step", 0)))
    return runs


def shared_images(runs: Sequence[TrainedRun], settings: Settings) -> UInt8[Tensor, "images height width channels"]:
    """The images that all runs are compared on.

    Raises:
        DataError: If runs differ in the size or the preparation of images, or in the images themselves, or there are
            fewer than two.
    """
    first = runs[0]
    theirs = prepared_as(first.autoencoder, settings.data)
    images = run_images(first.autoencoder, theirs, settings.split, settings.num_images).images
    for run in runs[1:]:
        if tuple(run.autoencoder.size) != tuple(first.autoencoder.size):
            one, other = ("{} x {}".format(*item.autoencoder.size) for item in (first, run))
            raise DataError(f"{run.name}: expected images of {one} as {first.name}'s, got {other}")
        mine = prepared_as(run.autoencoder, settings.data)
        if mine == theirs:
            continue
        found = run_images(run.autoencoder, mine, settings.split, settings.num_images).images
        if not torch.equal(found, images):
            keys = ", ".join(f"data.{key}" for key in vars(mine) if vars(mine)[key] != vars(theirs)[key])
            raise DataError(
                f"{run.name}: its images are not those of {first.name} ({keys}); --data names one set for all"
            )
    if len(images) < 2:
        raise DataError(f"{first.name}: expected at least 2 images in split {settings.split}, got {len(images)}")
    return images


def choose_sigma(run: TrainedRun, settings: Settings) -> float:
    """The noise scale that a run is compared at.

    ``fit`` maximises the mean bound (of 16 draws) on 32 images of the run's own data that are not compared, over
    0.001 to 10; the draws are the same at every sigma.
    """
    if settings.sigma == "run":
        return run.autoencoder.config.objective.sigma
    if settings.sigma != "fit":
        return settings.given_sigma
    split, data = FITTED_ON.get(settings.split, "val"), run.autoencoder.config.data
    images = run_images(run.autoencoder, data, split, FIT_IMAGES).images

    def loss(log_sigma: float) -> float:
        scenes = SceneEvidence(run.autoencoder, math.exp(log_sigma), settings.seed, settings.ends)
        weights = [scenes.importance_weights(image, index, FIT_SAMPLES) for index, image in enumerate(images)]
        return -float(estimate(torch.stack(weights), settings.method)[0].mean())

    bounds = [math.log(end) for end in FIT_RANGE]
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 0.01}).x)


@dataclass(frozen=True)
class RunEvidence:
    """log p(x) of one run.

    Attributes:
        sigma: Noise scale of a channel, image range [0, 1].
        log_weights: (M, S), nats: of draws from q, or of annealed chains.
        acceptance: (M, S), of the chains' moves; None without chains.
    """

    sigma: float
    log_weights: Float64[Tensor, "images samples"]
    acceptance: Float64[Tensor, "images samples"] | None


def run_evidence(
    run: TrainedRun,
    images: UInt8[Tensor, "images height width channels"],
    settings: Settings,
    progress: Callable[[int], None] = lambda done: None,
    schedule: Schedule | None = None,
) -> RunEvidence:
    """Log weights of every image, in chunks that fit memory.

    Args:
        run: A run with a density.
        images: (M, H, W, 3), 0 to 255.
        settings: Method, samples, sigma, seed.
        progress: Called with the number of images done.
        schedule: Of annealing.
    """
    sigma = choose_sigma(run, settings)
    scenes = SceneEvidence(run.autoencoder, sigma, settings.seed, settings.ends)
    if settings.method != "annealed":
        weights = []
        for index, image in enumerate(images):
            weights.append(scenes.importance_weights(image, index, settings.samples))
            progress(index + 1)
        return RunEvidence(sigma, torch.stack(weights).cpu(), None)
    size = max(1, scenes.rows_at_once() // settings.samples)
    parts = []
    for first in range(0, len(images), size):
        parts.append(annealed_weights(scenes, images[first : first + size], first, settings.samples, schedule))
        progress(min(first + size, len(images)))
    return RunEvidence(sigma, *(torch.cat(part).cpu() for part in zip(*parts, strict=True)))
