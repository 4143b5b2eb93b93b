"""Claim: types learned from a data set's slots are the planted ones, and as a prior they raise held-out bounds.

The 2-D study of PSA (arXiv 2406.07141): 5 Gaussian types of objects with one isotropic covariance; an image is 3 of the
5, 128 points each. Weak-prior fits give the aggregate, the aggregate the types to start from, empirical Bayes the rest.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from psa.data.mixture_2d import Mixture2dOptions, PlantedImages, draw_images, draw_types
from psa.experiments.tables import markdown
from psa.inference.aggregate import reduce
from psa.inference.compare import weak_prior
from psa.inference.fits import LocalMixtureFit
from psa.inference.reduction import ReductionOptions
from psa.inference.type_learning import learn_types, types_from_aggregate
from psa.inference.typed_slots import TypedFit, fit_typed_slots
from psa.inference.variational import fit_local_mixture
from psa.metrics.segmentation import adjusted_rand_index
from psa.models.typed_mixture import TypePrior

ALPHA0 = 1.0
CHUNK = 250  # images at once


@dataclass(frozen=True)
class TypedSlotsStudy:
    """One data set and how it is fitted.

    Attributes:
        name: Of the setting.
        num_types, num_objects: G types, of which each image has this many different ones.
        num_points: Of an object.
        separation: Least distance between types' means, in deviations.
        num_images, num_held_out: To learn from, and to judge on.
        num_slots: K of all fits.
        num_restarts: Of every image.
        num_rounds: Most rounds of learning.
        seed: Of the data and all starts.
    """

    name: str = "128 points an object, 6 deviations apart"
    num_types: int = 5
    num_objects: int = 3
    num_points: int = 128
    separation: float = 6.0
    num_images: int = 1000
    num_held_out: int = 500
    num_slots: int = 3
    num_restarts: int = 5
    num_rounds: int = 30
    seed: int = 0


PAPER = TypedSlotsStudy()
HARD = TypedSlotsStudy(
    "8 points an object, 3 deviations apart", num_points=8, separation=3.0, num_restarts=8, num_rounds=60
)
SMOKE = TypedSlotsStudy("smoke", num_points=20, num_images=40, num_held_out=10, num_restarts=4, num_rounds=3)


def planted(study: TypedSlotsStudy, generator: torch.Generator) -> PlantedImages:
    """The images to learn from, then those to judge on."""
    options = Mixture2dOptions(study.num_types, study.num_objects, study.num_points, study.separation)
    loc = draw_types(options, generator)
    return draw_images(loc, options, study.num_images + study.num_held_out, generator)


@dataclass(frozen=True)
class TypedSlotsResult:
    """What one data set shows.

    Attributes:
        setting: The study's name.
        seed: Its seed.
        weight_error: Largest difference of a type's weight from the realised share.
        loc_error: Largest difference of a type's mean from the planted one on an axis, in standard errors of the mean
            of all its points.
        weak: Held-out ELBO under the weak prior, nats an image.
        aggregate_gain: What the types gain that are the aggregate's components, before learning, nats an image.
        gain: What the learned types gain.
        gain_error: Its standard error over images.
        weak_ari: Adjusted Rand index of held-out labels under the weak prior.
        typed_ari: The same under the learned types.
        rounds: Taken by learning.
        least_rise: Smallest rise of the total ELBO in a round, nats.
    """

    setting: str
    seed: int
    weight_error: float
    loc_error: float
    weak: float
    aggregate_gain: float
    gain: float
    gain_error: float
    weak_ari: float
    typed_ari: float
    rounds: int
    least_rise: float


def run_study(study: TypedSlotsStudy) -> TypedSlotsResult:
    """Weak fits, aggregate, types, and both priors on held-out images with the same restarts."""
    generator = torch.Generator().manual_seed(study.seed)
    data = planted(study, generator)
    train, test = data[: study.num_images], data[study.num_images :]
    prior = weak_prior(train.tokens.flatten(0, 1), ALPHA0)

    def weakly(tokens: Tensor) -> LocalMixtureFit:
        fit = fit_local_mixture(tokens, prior, study.num_slots, num_restarts=study.num_restarts, generator=generator)
        assert isinstance(fit, LocalMixtureFit)
        return fit

    def typed(tokens: Tensor, types: TypePrior) -> TypedFit:
        return fit_typed_slots(
            tokens, types, study.num_slots, ALPHA0, num_restarts=study.num_restarts, generator=generator
        )

    posteriors = [weakly(tokens).slot_posterior() for tokens in train.tokens.split(CHUNK)]
    aggregate = reduce(lambda: posteriors, study.num_types, options=ReductionOptions(seed=study.seed))
    start = types_from_aggregate(aggregate)
    learned = learn_types(
        lambda: train.tokens.split(CHUNK), start, study.num_slots, ALPHA0,
        num_rounds=study.num_rounds, num_restarts=study.num_restarts, generator=generator,
    )  # fmt: skip
    weak, before, after = weakly(test.tokens), typed(test.tokens, start), typed(test.tokens, learned.types)
    gain = after.elbo - weak.elbo
    weight_error, loc_error = against_truth(learned.types, train)
    return TypedSlotsResult(
        setting=study.name,
        seed=study.seed,
        weight_error=weight_error,
        loc_error=loc_error,
        weak=float(weak.elbo.mean()),
        aggregate_gain=float((before.elbo - weak.elbo).mean()),
        gain=float(gain.mean()),
        gain_error=float(gain.std() / len(gain) ** 0.5),
        weak_ari=float(adjusted_rand_index(weak.labels, test.labels).mean()),
        typed_ari=float(adjusted_rand_index(after.labels, test.labels).mean()),
        rounds=len(learned.elbo_trace),
        least_rise=float(learned.elbo_trace.diff().min()),
    )


def against_truth(types: TypePrior, data: PlantedImages) -> tuple[float, float]:
    """Errors of weights and means after matching types to the planted ones; infinite where their numbers differ."""
    if types.num_types != len(data.loc):
        return math.inf, math.inf
    found, true = linear_sum_assignment(torch.cdist(types.loc, data.loc).numpy())
    count = data.which.flatten().bincount(minlength=len(data.loc))[true].to(data.loc)
    share = count / count.sum()
    points = count * (data.tokens.shape[1] // data.which.shape[1])
    away = (types.loc[found] - data.loc[true]).abs() * points.sqrt()[:, None]
    return float((types.weights[found] - share).abs().max()), float(away.max())


def table(studies: Sequence[TypedSlotsStudy] = (PAPER, HARD), seeds: Sequence[int] = (0, 1, 2)) -> str:
    """Every study on every seed, a Markdown row each."""
    return markdown([asdict(run_study(replace(study, seed=seed))) for study in studies for seed in seeds])
