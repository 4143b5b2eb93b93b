"""The assumptions of PSA's identifiability theorem, each with a verdict by rule (docs/diagnose.md has the rules)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from psa.metrics.affine_pieces import Operations, Straightness
from psa.metrics.component_separation import ComponentSeparation
from psa.metrics.same_pictures import SamePictures
from psa.metrics.slot_jacobian import Interaction, SharedPixels, SlotRanks

Verdict = Literal["holds", "fails", "not decided"]

STRAIGHT, CURVED = 0.1, 0.5  # share of bends that are a curve's
MOST, HARDLY_ANY = 0.95, 0.05  # share of slots of full rank
SAME_PICTURE = 1 / 510  # half of an 8-bit step, in every channel of every pixel
DISTANT = 1.0  # deviations of the aggregate
NOT_INJECTIVE = 0.9  # share of probes
EXACT_SUM, NO_SUM = 1e-6, 0.01  # interaction, of the two effects
MOVED = 1 / 255  # a channel of a pixel, by one deviation of a slot
COLLAPSED = 1e-5  # variance, of the aggregate's mean variance
FEW, HALF = 0.01, 0.5  # share of slots or of weight
FEWEST_TYPES = 2.0  # effective number of different components
SEPARATED = 0.5  # Bhattacharyya distance


Pieces = tuple[Operations, Straightness]
"""Of one map: what it is made of, and how its values bend."""


@dataclass(frozen=True)
class Finding:
    """One assumption.

    Attributes:
        assumption: Its name.
        verdict: By the rule.
        reason: The figure behind it, in words.
        figures: All that was measured, by name; plain values.
    """

    assumption: str
    verdict: Verdict
    reason: str
    figures: Mapping[str, Any]


def piecewise_affine(found: Pieces, painting: Pieces | None) -> Finding:
    """Is the map from all slots to the picture piecewise affine, by its operations and by its bends, which must agree.

    Args:
        found: Of the picture.
        painting: Of one slot's RGB and mask logit, where a decoder paints slots alone.
    """
    by_name, by_probe = found[0].piecewise_affine, _straight(found[1])
    agree = by_probe if by_name is None or by_name == by_probe else None
    verdict: Verdict = "not decided" if agree is None else "holds" if agree else "fails"
    named = found[0].breaking or found[0].unknown or found[0].pieces
    kind = "breaking it" if found[0].breaking else "not known" if found[0].unknown else "its kinks"
    reason = f"{kind}: {', '.join(named) or 'none'}; {found[1].curved:.0%} of the bends are a curve's"
    figures = _described(*found)
    if painting is not None:
        alone = piecewise_affine(painting, None)
        reason += f"; a slot's painting alone: {alone.verdict} ({painting[1].curved:.0%})"
        figures["painting"] = {"verdict": alone.verdict, **alone.figures}
    return Finding("piecewise affine", verdict, reason, figures)


def _straight(found: Straightness) -> bool | None:
    return True if found.curved <= STRAIGHT else False if found.curved >= CURVED else None


def _described(names: Operations, bends: Straightness) -> dict[str, Any]:
    bent = zip(bends.lengths.tolist(), bends.bent.tolist(), strict=True)
    return {
        "breaking": list(names.breaking),
        "unknown": list(names.unknown),
        "pieces": list(names.pieces),
        "curved": bends.curved,
        "told": bends.told,
        "bent": {f"{length:g}": share for length, share in bent},
    }


def full_rank(ranks: Mapping[str, Sequence[SlotRanks]]) -> Finding:
    """Has the picture's Jacobian full rank D in every slot, the other slots fixed.

    Args:
        ranks: Of scenes, by where their slots are from.
    """
    every = [one for scenes in ranks.values() for one in scenes]
    share, features = _full(every), every[0].singular_values.shape[1]
    verdict: Verdict = "holds" if share >= MOST else "fails" if share <= HARDLY_ANY else "not decided"
    condition = torch.cat([one.condition for one in every])
    median, worst = float(condition.median()), float(condition.max())
    figures = {
        "features": features,
        "share": {name: _full(scenes) for name, scenes in ranks.items()},
        "least_rank": int(torch.cat([one.rank for one in every]).min()),
        "condition_median": _finite(median),
        "condition_worst": _finite(worst),
    }
    reason = f"{share:.0%} of {len(condition)} slots have rank {features}; condition {median:.3g}, worst {worst:.3g}"
    return Finding("full rank", verdict, reason, figures)


def _full(scenes: Sequence[SlotRanks]) -> float:
    rank = torch.cat([one.rank for one in scenes])
    return (rank == scenes[0].singular_values.shape[1]).double().mean().item()


def weakly_injective(probes: Mapping[str, Sequence[SamePictures]]) -> Finding:
    """Do other slots decode to the same picture.

    Args:
        probes: Searches, by what was searched for: one slot (of images, of the prior), or all slots of a scene.
    """
    share = {name: sum(one.farthest() >= DISTANT for one in some) / len(some) for name, some in probes.items()}
    worst = max(share.values())
    verdict: Verdict = "holds" if worst == 0 else "fails" if worst >= NOT_INJECTIVE else "not decided"
    told = ", ".join(f"{share[name]:.0%} of {len(some)} ({name})" for name, some in probes.items())
    farthest = {name: max(one.farthest() for one in some) for name, some in probes.items()}
    return Finding(
        "weakly injective",
        verdict,
        f"a slot {DISTANT:g} deviation or more away shows the same picture: {told}",
        {"share": share, "farthest": farthest, "probes": {name: len(some) for name, some in probes.items()}},
    )


def additive(found: Interaction, shared: Sequence[SharedPixels]) -> Finding:
    """Is the picture a sum of functions of one slot each."""
    verdict: Verdict = "holds" if found.share <= EXACT_SUM else "fails" if found.share >= NO_SUM else "not decided"
    contrast = sum(one.contrast for one in shared) / len(shared)
    at_random = sum(one.contrast_at_random for one in shared) / len(shared)
    several = sum(float(one.counts[2:].sum()) for one in shared) / len(shared)
    ratio = contrast / at_random if at_random else 0.0
    figures = {
        "interaction": found.share,
        "order": found.order,
        "contrast": contrast,
        "contrast_at_random": at_random,
        "shared_pixels": several,
    }
    reason = (
        f"two slots together are {found.share:.2g} of their effects off the sum; {several:.0%} of the pixels have two "
        f"slots or more; contrast {ratio:.2f} of that at random"
    )
    return Finding("additive", verdict, reason, figures)


def non_degenerate(found: ComponentSeparation, slot_variances: torch.Tensor) -> Finding:
    """Have the Gaussians that q(s) is made of a density.

    Args:
        found: Of the reduced mixture.
        slot_variances: (S,), the smallest variance of each posterior slot, in units of the mixture's mean variance;
            0 of a point.
    """
    slots = (slot_variances <= COLLAPSED).double().mean().item()
    weight = float(found.weights[found.smallest <= COLLAPSED].sum())
    worst = max(slots, weight)
    verdict: Verdict = "holds" if worst <= FEW else "fails" if worst >= HALF else "not decided"
    smallest = float(found.smallest.min())
    figures = {
        "collapsed_slots": slots,
        "collapsed_weight": weight,
        "smallest_slot_variance": float(slot_variances.min()),
        "smallest_variance": smallest,
        "worst_condition": float(found.condition.max()),
        "overall_condition": _finite(found.overall_condition),
    }
    reason = (
        f"{slots:.0%} of the slots and {weight:.0%} of the mixture's weight have collapsed; smallest variances "
        f"{float(slot_variances.min()):.2g} and {smallest:.2g} of the mean"
    )
    return Finding("aggregate not degenerate", verdict, reason, figures)


def separate(found: ComponentSeparation) -> Finding:
    """Are the mixture's components different ones."""
    apart = float(found.weights[found.nearest >= SEPARATED].sum())
    few = found.effective < FEWEST_TYPES
    verdict: Verdict = "fails" if few else "holds" if apart >= HALF else "not decided"
    quantiles = found.nearest.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64), interpolation="nearest")
    figures = {
        "components": len(found.weights),
        "duplicates": found.duplicates,
        "effective": found.effective,
        "separated_weight": apart,
        "nearest": [_finite(value) for value in quantiles.tolist()],
        "smallest_weight": float(found.weights.min()),
        "largest_weight": float(found.weights.max()),
    }
    reason = (
        f"{found.effective:.3g} different components in effect ({len(found.weights)}, {found.duplicates} of them "
        f"repeated); {apart:.0%} of the weight is {SEPARATED:g} or more from any other"
    )
    return Finding("components separate", verdict, reason, figures)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
