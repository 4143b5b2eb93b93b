"""Building the aggregate prior from a data set's posteriors: all components, or few (docs/aggregate.md)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from psa.inference.posterior_stream import SlotChunk, SlotStream, Source
from psa.inference.reduction import DEFAULTS, ReductionOptions, reduce_stream
from psa.inference.survey import SURVEY_IMAGES, WEIGHTINGS, Group, Survey, slot_weights, survey
from psa.models.aggregate import AggregatePrior
from psa.models.local_mixture import COVARIANCES


def _require(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def from_posteriors(source: Source, *, weighting: str = "weights", threshold: float = 0.0) -> AggregatePrior:
    """q(s) = (1/M) sum_b sum_k pi_bk Normal(s; mu_bk, diag var_bk), all M K components (PSA lemma 1, eq. 10).

    Components come in the order of the source, an image's slots side by side, however they were cut into chunks. The
    mixture itself is held in memory: for large data sets see :func:`reduce`.

    Args:
        source: A callable that returns the chunks of posteriors anew each time, or an HDF5 file of them.
        weighting: ``weights``, pi_bk / M, or ``uniform``, 1 / (M K).
        threshold: Slots with pi_bk below it are left out; the prior says how many, and which share of the weight.

    Returns:
        The prior, in the source's dtype and on its device; weights sum to 1.

    Raises:
        ValueError: If the source can be read only once or holds no posteriors, or no slot reaches the threshold.
    """
    _require("weighting", weighting, WEIGHTINGS)
    parts = []
    for chunk in SlotStream(source):
        keep = chunk.weights >= threshold
        parts.append((slot_weights(chunk, weighting), keep, chunk.loc[keep], chunk.var[keep]))
    weights, keep, loc, var = (torch.cat(column) for column in zip(*parts, strict=True))
    if len(loc) == 0:
        raise ValueError(f"threshold must leave at least one slot, got {threshold}")
    kept = weights[keep]
    return AggregatePrior(
        (kept / kept.sum()).to(loc),
        loc,
        var,
        num_images=len(weights),
        dropped_components=int((~keep).sum()),
        dropped_weight=float(weights[~keep].sum() / weights.sum()),
    )


def reduce(
    source: Source | AggregatePrior,
    num_components: int,
    *,
    covariance: str = "diagonal",
    weighting: str = "weights",
    options: ReductionOptions = DEFAULTS,
    group: Group = None,
) -> AggregatePrior:
    """The aggregate mixture as at most G components, by EM over the source, which is read once a pass.

    EM raises sum_i w_i log sum_g w_g exp E_i[log Normal(s; g)], a lower bound on sum_i w_i E_i[log p_G(s)], i over all
    slots and E_i under slot i's Gaussian. The last thing done is an M-step over all slots, so the overall mean and
    covariance are conserved with full covariances, the mean and each axis's variance with diagonal ones.

    Args:
        source: As for :func:`from_posteriors`; or a prior with diagonal covariances.
        num_components: G >= 1. Components that own nothing are left out, so that fewer may come.
        covariance: ``diagonal`` or ``full``, of the result.
        weighting: ``weights``, pi_bk, or ``uniform``; of no effect on a prior, whose weights stand.
        options: Passes, restarts, memory.
        group: Processes (``torch.distributed``) of which each calls this with its own consecutive share of the images,
            in order of rank; all get the mixture of the whole.

    Returns:
        The prior, in the source's dtype and on its device; weights sum to 1.

    Raises:
        ValueError: If the source can be read only once or holds no posteriors, or a value is outside its support.
    """
    _require("covariance", covariance, COVARIANCES)
    _require("weighting", weighting, WEIGHTINGS)
    if num_components < 1:
        raise ValueError(f"num_components must be at least 1, got {num_components}")
    stream = _stream_of(source) if isinstance(source, AggregatePrior) else SlotStream(source)
    weighting = "weights" if isinstance(source, AggregatePrior) else weighting
    seen = survey(stream, weighting, covariance == "full", group)
    state = reduce_stream(stream, seen, num_components, options, group).state
    weights = state.log_weights[0].exp()
    owning = weights > 0
    spread = (state.var if state.covariance is None else state.covariance)[0, owning].to(seen.dtype)
    return AggregatePrior(
        (weights[owning] / weights.sum()).to(seen.dtype),
        (state.loc[0, owning] + seen.origin).to(seen.dtype),
        var=spread if state.covariance is None else None,
        covariance=None if state.covariance is None else spread,
        **_provenance(source, seen),
    )


def _stream_of(prior: AggregatePrior) -> SlotStream:
    """A prior's components, one an image."""
    if prior.var is None:
        raise ValueError("source must be a prior with diagonal covariances, got one with full ones")
    chunk = SlotChunk(prior.weights[:, None], prior.loc[:, None], prior.var[:, None])
    return SlotStream(lambda: [chunk], normalised=False)


def _provenance(source: Source | AggregatePrior, seen: Survey) -> dict[str, Any]:
    if not isinstance(source, AggregatePrior):
        return {"num_images": sum(seen.counts)}
    return {name: getattr(source, name) for name in ("num_images", "dropped_components", "dropped_weight")}


@dataclass(frozen=True)
class HeldOut:
    """How well a number of components fits images that it was not fitted to.

    Attributes:
        prior: The reduced mixture; ``prior.num_components`` may be fewer than were asked for.
        score: E_q log p_G in nats a slot, q the aggregate of the held-out images, by one draw a slot.
        standard_error: Of the score, over images.
    """

    prior: AggregatePrior
    score: float
    standard_error: float


def held_out_scores(
    source: Source,
    held_out: Source,
    numbers: Sequence[int],
    *,
    covariance: str = "diagonal",
    weighting: str = "weights",
    options: ReductionOptions = DEFAULTS,
) -> list[HeldOut]:
    """E_q log p_G on held-out images for several G, all on the same draws; the highest says which G to take.

    Args:
        source: Images to fit to.
        held_out: Other images.
        numbers: The G to try.
        covariance: As for :func:`reduce`, like the next two.
        weighting: Also that of the held-out slots.
        options: Passes, restarts, memory, and the seed, which is that of the draws too.

    Raises:
        ValueError: As :func:`reduce`; or if there is only one held-out image.
    """
    priors = [reduce(source, number, covariance=covariance, weighting=weighting, options=options) for number in numbers]
    per_image: list[Tensor] = []
    generator = None
    for chunk in SlotStream(held_out).blocks(SURVEY_IMAGES):
        generator = generator or torch.Generator(chunk.loc.device).manual_seed(options.seed)
        noise = torch.randn(chunk.loc.shape, generator=generator, dtype=chunk.loc.dtype, device=chunk.loc.device)
        slots, share = chunk.loc + chunk.var.sqrt() * noise, slot_weights(chunk, weighting)
        share = share / share.sum(1, keepdim=True)
        per_image.append(torch.stack([(share * prior.log_prob(slots)).sum(1) for prior in priors]))
    scores = torch.cat(per_image, dim=1)
    if scores.shape[1] < 2:
        raise ValueError("held_out must hold at least 2 images, got 1")
    errors = scores.std(1) / scores.shape[1] ** 0.5
    return [HeldOut(*row) for row in zip(priors, scores.mean(1).tolist(), errors.tolist(), strict=True)]
