"""Building a run's prior over scenes from its data: an aggregate mixture a role, and how many objects there are."""

from collections.abc import Callable

import torch
from jaxtyping import Bool
from torch import Tensor

from psa.inference.aggregate import reduce
from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.images import ImageSet
from psa.inference.keyed_noise import ImageNoise, Purpose
from psa.inference.posterior_stream import SlotChunk, joined
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


def with_variance(chunk: SlotChunk) -> SlotChunk:
    """The same, each variance at least a millionth of all slots': a point is a narrow Gaussian."""
    spread = chunk.loc.flatten(0, 1).var(0, correction=0).mean()
    least = LEAST_SCALE**2 * float(spread.clamp(min=torch.finfo(spread.dtype).tiny))
    return SlotChunk(chunk.weights, chunk.loc, chunk.var.clamp(min=least))


@torch.no_grad()
def fit_slot_prior(autoencoder: SlotAutoencoder, images: ImageSet, limit: int = 2048) -> None:
    """Set p(s) to the mean and variance of the training images' slots: what a run without a KL leaves untrained."""
    spans = _spans(min(limit, len(images)))
    slots = torch.cat([slot_posteriors(autoencoder, images.batch(span), span.start)[0].loc for span in spans]).flatten(
        0, 1
    )
    autoencoder.model.prior_loc.copy_(slots.mean(0))
    autoencoder.model.prior_log_scale.copy_(slots.std(0, correction=0).clamp(min=1e-6).log())


@torch.no_grad()
def slot_aggregate(
    autoencoder: SlotAutoencoder, images: ImageSet, num_components: int, limit: int, seed: int = 0
) -> AggregatePrior:
    """The aggregate of all slots of the first images, each slot of the same weight, reduced to G components.

    With equal weights, not the paper's pi / M, it is the prior that the average KL(q(s_k | x) || p(s)) asks for: every
    slot has its KL, whatever its weight. Slots that a rule does not decode have none, and are left out.
    """
    found = [slot_posteriors(autoencoder, images.batch(span), span.start, seed) for span in _spans(limit)]
    chunks, active = zip(*found, strict=True)
    prior = _reduced(with_variance(joined(list(chunks))), torch.cat(active), num_components, seed)
    prior.num_images = limit
    return prior


@torch.no_grad()
def build_scene_prior(
    autoencoder: SlotAutoencoder,
    images: ImageSet,
    num_components: int = NUM_COMPONENTS,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> ScenePrior:
    """The prior of a run from the slots of each image, each found to be background, object or empty at its mean.

    The slots of a role, each as its whole Gaussian, are reduced to components of that role; a role's weight is the
    share of its slots, so that the whole is the aggregate mixture with equal weights. The counts are those found. Roles
    are looked for at the means of q(s | x), not in draws: noise lends an empty slot a faint object here and there,
    which would be drawn as one, and smears the counts.

    Args:
        autoencoder: A run; its mode is not changed.
        images: The training images, M of them.
        num_components: Of the objects at most; a quarter as many for each other role.
        seed: Of the reduction.
        progress: Called with the number of images done.

    Returns:
        The prior, on the run's device.
    """
    parts, roles = [], []
    for span in _spans(len(images)):
        posterior = _posterior(autoencoder, images.batch(span), span.start)
        chunk, active = _chunk(autoencoder, posterior)
        found = autoencoder.roles(posterior, chunk.loc)
        role = OBJECT * found.objects.long() + BACKGROUND * found.is_background.long()
        roles.append(role.masked_fill(~active, NOT_DECODED))
        parts.append(chunk)
        progress(span.stop)
    chunk, role = with_variance(joined(parts)), torch.cat(roles)
    num_slots = role.shape[1]
    counts = torch.bincount((role == OBJECT).sum(1), minlength=num_slots)[:num_slots]
    few = max(1, num_components // 4)
    wanted = {EMPTY: few, BACKGROUND: few, OBJECT: num_components}
    found_priors = {
        which: _reduced(chunk, role == which, number, seed) for which, number in wanted.items() if (role == which).any()
    }
    return ScenePrior(
        _union([(prior, float((role == which).double().sum())) for which, prior in found_priors.items()], len(role)),
        torch.cat([role.new_full((prior.num_components,), which) for which, prior in found_priors.items()]),
        counts / counts.sum(),
    )


def _spans(limit: int) -> list[slice]:
    return [slice(start, min(start + CHUNK, limit)) for start in range(0, limit, CHUNK)]


def _reduced(chunk: SlotChunk, keep: Tensor, num_components: int, seed: int) -> AggregatePrior:
    loc, var = chunk.loc[keep][:, None], chunk.var[keep][:, None]
    slots = SlotChunk(torch.ones_like(loc[..., 0]), loc, var)
    return reduce(lambda: [slots], min(num_components, len(loc)), options=ReductionOptions(seed=seed))


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
