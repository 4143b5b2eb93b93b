"""Building a run's prior over scenes from its data: an aggregate mixture a role, and how many objects there are."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Bool
from torch import Tensor

from psa.inference.aggregate import reduce
from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.images import Images, ImageSet
from psa.inference.keyed_noise import ImageNoise, Purpose
from psa.inference.posterior_stream import SlotChunk, joined, read_chunks, write_chunks
from psa.inference.reduction import ReductionOptions
from psa.models.aggregate import AggregatePrior
from psa.models.scene_prior import BACKGROUND, EMPTY, OBJECT, ScenePrior
from psa.records import SlotPosterior

CHUNK = 64
NOT_DECODED = -1  # by the run's rule: no role
NUM_COMPONENTS = 256  # of the objects; a quarter each for the backgrounds and the empty slots
LEAST_SCALE = 1e-3  # of a slot's deviation, in standard deviations of all slots: where q is a point


def slot_posteriors(
    autoencoder: SlotAutoencoder, images: Tensor, first: int = 0, epoch: int = 0
) -> tuple[SlotChunk, Bool[Tensor, "batch slots"]]:
    """q(s_bk | x_b) of a batch with the weights pi_bk, and which slots are decoded; variances are 0 of points.

    Random starts are keyed by the run's seed, the epoch, and the images' places in the data set, from ``first`` on.
    """
    return _chunk(autoencoder, _posterior(autoencoder, images, first, epoch))


def _posterior(autoencoder: SlotAutoencoder, images: Tensor, first: int, epoch: int = 0) -> SlotPosterior:
    guide, images = autoencoder.guide, autoencoder.prepare(images)
    index = torch.arange(first, first + len(images), device=images.device)
    with guide.drawing(ImageNoise(autoencoder.config.training.seed, epoch, index, Purpose.PRIOR)):
        return guide.posterior(images)


def _chunk(autoencoder: SlotAutoencoder, posterior: SlotPosterior) -> tuple[SlotChunk, Bool[Tensor, "batch slots"]]:
    loc, scale = autoencoder.guide.slot_moments(posterior)
    active = autoencoder.guide.active(posterior)
    every = torch.ones_like(posterior.weights, dtype=torch.bool)
    return SlotChunk(posterior.weights, loc, scale.square()), every if active is None else active


class SlotSpread:
    """The variance of all slots' means, an average over features, from slots that come a chunk at a time."""

    def __init__(self) -> None:
        self._origin: Tensor | None = None
        self._count = 0
        # Of loc - origin, in float64, so that slots that are all alike have no variance.
        self._sum: Tensor | float = 0.0
        self._square: Tensor | float = 0.0

    def add(self, chunk: SlotChunk) -> SlotChunk:
        """Count a chunk in, and return it."""
        loc = chunk.loc.flatten(0, 1)
        self._origin = loc[0] if self._origin is None else self._origin
        away = (loc - self._origin).double()
        self._count += len(loc)
        self._sum, self._square = self._sum + away.sum(0), self._square + away.square().sum(0)
        return chunk

    def floored(self, chunk: SlotChunk) -> SlotChunk:
        """The chunk, each variance at least a millionth of that of all slots: a point is a narrow Gaussian."""
        mean, square = (torch.as_tensor(total) / self._count for total in (self._sum, self._square))
        spread = float((square - mean.square()).mean())
        least = LEAST_SCALE**2 * max(spread, torch.finfo(chunk.var.dtype).tiny)
        return SlotChunk(chunk.weights, chunk.loc, chunk.var.clamp(min=least))


def with_variance(chunk: SlotChunk) -> SlotChunk:
    """A chunk that holds all slots, floored."""
    spread = SlotSpread()
    return spread.floored(spread.add(chunk))


@torch.no_grad()
def fit_slot_prior(autoencoder: SlotAutoencoder, images: Images, limit: int = 2048) -> None:
    """Set p(s) to the mean and variance of the training images' slots: what a run without a KL leaves untrained."""
    with images.first(limit).chunks(CHUNK) as sets:
        slots = torch.cat([chunk.loc for chunk, _ in _encoded(autoencoder, sets)]).flatten(0, 1)
    autoencoder.model.prior_loc.copy_(slots.mean(0))
    autoencoder.model.prior_log_scale.copy_(slots.std(0, correction=0).clamp(min=1e-6).log())


@torch.no_grad()
def slot_aggregate(
    autoencoder: SlotAutoencoder, images: Images, num_components: int, limit: int, seed: int = 0
) -> AggregatePrior:
    """The aggregate of all slots of the first images, each slot of the same weight, reduced to G components.

    With equal weights, not the paper's pi / M, it is the prior that the average KL(q(s_k | x) || p(s)) asks for: every
    slot has its KL, whatever its weight. Slots that a rule does not decode have none, and are left out.
    """
    with images.first(limit).chunks(CHUNK) as sets:
        chunks, active = zip(*_encoded(autoencoder, sets, seed), strict=True)
    slots = _of_role(with_variance(joined(list(chunks))), torch.cat(active), True)
    prior = _reduced(lambda: [slots], min(num_components, len(slots)), seed)
    prior.num_images = limit
    return prior


@torch.no_grad()
def build_scene_prior(
    autoencoder: SlotAutoencoder,
    images: Images,
    num_components: int = NUM_COMPONENTS,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> ScenePrior:
    """The prior of a run from the slots of each image, each found to be background, object or empty at its mean.

    The slots of a role, each as its whole Gaussian, are reduced to components of that role; a role's weight is the
    share of its slots, so that the whole is the aggregate mixture with equal weights. The counts are those found. Roles
    are looked for at the means of q(s | x), not in draws: noise lends an empty slot a faint object here and there,
    which would be drawn as one, and smears the counts.

    The slots of all images are kept in a temporary file, 4 K (2 D + 1) bytes an image, and their roles in memory.

    Args:
        autoencoder: A run; its mode is not changed.
        images: The training images, M of them.
        num_components: Of the objects at most; a quarter as many for each other role.
        seed: Of the reduction.
        progress: Called with the number of images done.

    Returns:
        The prior, on the run's device.

    Raises:
        OSError: If there is no room for the file.
    """
    roles: list[Tensor] = []
    spread = SlotSpread()

    def with_roles(sets: Iterator[ImageSet]) -> Iterator[SlotChunk]:
        done = 0
        for part in sets:
            posterior = _posterior(autoencoder, part.images, done)
            chunk, active = _chunk(autoencoder, posterior)
            found = autoencoder.roles(posterior, chunk.loc)
            role = OBJECT * found.objects.long() + BACKGROUND * found.is_background.long()
            roles.append(role.masked_fill(~active, NOT_DECODED).to(torch.int8))
            yield spread.add(chunk)
            done += len(chunk)
            progress(done)

    with TemporaryDirectory() as folder:
        path = Path(folder) / "slots.h5"
        with images.chunks(CHUNK) as sets:
            write_chunks(with_roles(sets), path)
        role = torch.cat(roles)

        def of_role(which: int) -> Iterator[SlotChunk]:
            start = 0
            for chunk in read_chunks(path):
                here = role[start : start + len(chunk)]
                start += len(chunk)
                yield _of_role(spread.floored(chunk.to(role.device)), here, which)

        few = max(1, num_components // 4)
        wanted = {EMPTY: few, BACKGROUND: few, OBJECT: num_components}
        num_slots = {which: int((role == which).sum()) for which in wanted}
        found_priors = {
            which: _reduced(partial(of_role, which), min(number, num_slots[which]), seed)
            for which, number in wanted.items()
            if num_slots[which]
        }
    counts = torch.bincount((role == OBJECT).sum(1), minlength=role.shape[1])[: role.shape[1]]
    return ScenePrior(
        _union([(prior, float(num_slots[which])) for which, prior in found_priors.items()], len(role)),
        torch.cat(
            [role.new_full((prior.num_components,), which, dtype=torch.int64) for which, prior in found_priors.items()]
        ),
        counts / counts.sum(),
    )


def _encoded(
    autoencoder: SlotAutoencoder, sets: Iterator[ImageSet], epoch: int = 0
) -> Iterator[tuple[SlotChunk, Bool[Tensor, "batch slots"]]]:
    """``slot_posteriors`` of chunks of the data set, from its first image on."""
    first = 0
    for part in sets:
        yield slot_posteriors(autoencoder, part.images, first, epoch)
        first += len(part)


def _of_role(chunk: SlotChunk, roles: Tensor, which: int) -> SlotChunk:
    """The slots of one role, each as an image of its own with one slot of weight 1."""
    loc, var = chunk.loc[roles == which][:, None], chunk.var[roles == which][:, None]
    return SlotChunk(torch.ones_like(loc[..., 0]), loc, var)


def _reduced(slots: Callable[[], Iterable[SlotChunk]], num_components: int, seed: int) -> AggregatePrior:
    return reduce(slots, num_components, options=ReductionOptions(seed=seed))


def _union(priors: list[tuple[AggregatePrior, float]], num_images: int) -> AggregatePrior:
    """Mixtures as one, by their numbers of slots."""
    weights = torch.cat([prior.weights * share for prior, share in priors])
    variances = [prior.var for prior, _ in priors if prior.var is not None]
    return AggregatePrior(
        weights / weights.sum(),
        torch.cat([prior.loc for prior, _ in priors]),
        torch.cat(variances),
        num_images=num_images,
    )
