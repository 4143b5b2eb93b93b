"""A row of the 2-D study: what is trained on which data, and what is kept of a run."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pyro
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from psa.data.mixture_2d import Mixture2d, Mixture2dOptions
from psa.experiments.experiment import Outcome, Progress
from psa.experiments.point_scores import point_agreement, slot_agreement
from psa.inference.aggregate import held_out_scores
from psa.inference.point_slots import PointSlots, fit_point_slots
from psa.inference.point_training import PointTraining, train_points
from psa.inference.posterior_stream import SlotChunk
from psa.inference.reduction import ReductionOptions
from psa.models.aggregate import AggregatePrior
from psa.models.points import PointGuide, PointModel, perceptron

ENCODERS = ("trained", "untrained", "identity")
# Types that lie near enough that points between them are seen.
PLAIN, FIVE_STARTS = Mixture2dOptions(separation=4.0), PointSlots()
TRIAL, STEPS = PointTraining(steps=60), PointTraining(steps=240)
LAST = 20  # steps whose mean loss tells starts apart
COUNTING = ReductionOptions(num_passes=10, start_passes=20)
NEGLIGIBLE = 0.01  # nats a slot


class Folded(nn.Module):
    """A decoder that takes z and -z, axis by axis, for the same: no inverse exists."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, latent: Tensor) -> Tensor:
        """d(|z|)."""
        return self.decoder(latent.abs())


@dataclass(frozen=True)
class PointRow:
    """What is run; what differs from the defaults is what the row tries.

    Attributes:
        name: Of the row.
        data: What images are made of.
        encoder: ``trained``, ``untrained`` (weights as drawn), or ``identity``: the points themselves.
        slots: How EM finds the slots, in training and afterwards.
        training_slots: K in training, where it is another than afterwards.
        folded: Whether the decoder cannot tell z from -z on an axis.
    """

    name: str
    data: Mixture2dOptions = PLAIN
    encoder: str = "trained"
    slots: PointSlots = FIVE_STARTS
    training_slots: int | None = None
    folded: bool = False


@dataclass(frozen=True)
class StudySize:
    """How much.

    Attributes:
        num_images, num_held_out: To train on, and to find slots in afterwards.
        num_pointwise: Of the latter, whose points are kept.
        num_starts: Networks that are drawn; after the trial the one of least loss goes on. About one in fifteen ends
            in a map that is folded, at a far larger loss.
        trial: Of every start.
        training: Of the chosen one, afterwards.
        max_types: Most components that the recovered aggregate is reduced to.
    """

    num_images: int = 1000
    num_held_out: int = 200
    num_pointwise: int = 64
    num_starts: int = 2
    trial: PointTraining = TRIAL
    training: PointTraining = STEPS
    max_types: int = 8


WHOLE = StudySize()


@dataclass(frozen=True)
class _Images:
    """Held-out images: seen points in the training points' units, and the truth."""

    train: Float[Tensor, "images tokens 2"]
    test: Float[Tensor, "held_out tokens 2"]
    truth: Mixture2d


def _images(options: Mixture2dOptions, seed: int, size: StudySize) -> _Images:
    train = Mixture2d(options, "train", size.num_images, seed).tokens
    truth = Mixture2d(options, "test", size.num_held_out, seed)
    centre, scale = train.mean((0, 1)), train.std()
    return _Images((train - centre) / scale, (truth.tokens - centre) / scale, truth)


def measure_row(row: PointRow, data_seed: int, seed: int, size: StudySize, device: str, progress: Progress) -> Outcome:
    """Train, find the slots of held-out images, and hold them against the truth.

    Returns:
        figures: agreement with the planted types; the number of types in the recovered aggregate and how far they are
        from the planted ones. tensors: slots, responsibilities, latent points, and the planted type of each slot.
    """
    pyro.set_rng_seed(seed)
    generator = torch.Generator(device).manual_seed(seed)
    images = _images(row.data, data_seed, size)
    if row.encoder == "trained":
        guide = _trained(row, images.train.to(device), size, generator, progress)
    else:
        guide = PointGuide(nn.Identity() if row.encoder == "identity" else perceptron()).to(device)
    with torch.no_grad():
        latent = guide.encoder(images.test.to(device))
        posterior = fit_point_slots(latent, row.slots, generator)
    tensors = {
        "weights": posterior.weights,
        "loc": posterior.loc,
        "var": posterior.var,
        "responsibilities": posterior.responsibilities.half(),
        "latent": latent[: size.num_pointwise],
    }
    found = {name: tensor.cpu() for name, tensor in tensors.items()}
    return _against_truth(row, found, images.truth, size.max_types)


def _trained(
    row: PointRow, points: Tensor, size: StudySize, generator: torch.Generator, progress: Progress
) -> PointGuide:
    """The guide of the start of least loss, trained to the end."""
    slots = replace(row.slots, num_slots=row.training_slots or row.slots.num_slots)
    steps = size.num_starts * size.trial.steps + size.training.steps

    def train(model: PointModel, guide: PointGuide, training: PointTraining, done: int) -> float:
        losses = train_points(
            model, guide, points, slots, training, generator, lambda step, _: progress(done + step, steps)
        )
        return sum(losses[-LAST:]) / len(losses[-LAST:])

    found = []
    for start in range(size.num_starts):
        guide, decoder = PointGuide(perceptron()), perceptron()
        model = PointModel(Folded(decoder) if row.folded else decoder).to(points.device)
        loss = train(model, guide.to(points.device), size.trial, start * size.trial.steps)
        found.append((loss, model, guide))
    _, model, guide = min(found, key=lambda one: one[0])
    train(model, guide, size.training, size.num_starts * size.trial.steps)
    return guide


def _against_truth(row: PointRow, tensors: Mapping[str, Tensor], truth: Mixture2d, max_types: int) -> Outcome:
    planted, spare = truth.images, row.slots.num_slots - row.data.num_objects
    objects = nn.functional.one_hot(planted.labels, max(row.slots.num_slots, row.data.num_objects)).mT
    loc = nn.functional.pad(planted.loc[planted.which], (0, 0, 0, spare))
    true = {
        "loc": loc,
        "responsibilities": objects,
        "weights": objects.double().mean(2),
        "latent": planted.tokens[: len(tensors["latent"])],
    }
    found = slot_agreement(tensors, true)
    points, within = point_agreement(tensors["latent"], true["latent"], row.data.num_objects)
    prior = recovered_types(tensors, max_types)
    away = farthest_type(found.affine(prior.loc.double()), planted.loc)
    figures = {
        "smcc": found.smcc,
        "r2": found.r2,
        "null_smcc": found.null_smcc,
        "points": points,
        "within": within,
        "types": prior.num_components,
        "away": away,
    }
    types = nn.functional.pad(planted.which, (0, spare), value=-1).take_along_dim(found.matching, 1)
    return Outcome(figures, {**tensors, "types": types})


def recovered_types(tensors: Mapping[str, Tensor], max_types: int = 8) -> AggregatePrior:
    """The recovered aggregate, reduced: the fewest components whose score is within 0.01 nats a slot of the best's.

    Fitted to half of the images and scored by E_q log p_G on the others.
    """
    chunk = SlotChunk(tensors["weights"], tensors["loc"], tensors["var"])
    half = len(chunk) // 2
    counts = range(1, max_types + 1)
    scores = held_out_scores(
        lambda: [chunk[:half]], lambda: [chunk[half:]], counts, covariance="full", options=COUNTING
    )
    best = max(held.score for held in scores)
    return next(held for held in scores if held.score >= best - NEGLIGIBLE).prior


def farthest_type(found: Float[Tensor, "found 2"], planted: Float[Tensor, "types 2"]) -> float | None:
    """The largest distance of a planted type from its component, in deviations of an object.

    Matched one to one, of least total distance; None where there are fewer components than types.
    """
    if len(found) < len(planted):
        return None
    distance = torch.cdist(planted, found)
    return float(distance[linear_sum_assignment(distance.numpy())].max())
