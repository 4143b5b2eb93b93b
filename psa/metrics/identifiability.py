"""Do two runs agree up to slot order and one affine map? SMCC, with its null (docs/identifiability.md)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64, Shaped
from torch import Tensor

from psa.metrics.affine_fit import (
    AffineMap,
    canonical_maps,
    fit_affine,
    pearson,
    r_squared,
    require_rows,
    require_variation,
    rounding_of,
    whiten,
    whiten_determined,
)
from psa.metrics.held_out import correlation_interval, cycle, training_share
from psa.metrics.slot_matching import match_alternating, match_by_overlap, pairs

MATCHINGS = ("overlap", "alternate")
LEAST_WEIGHT = 0.01  # from which a slot is active


@dataclass(frozen=True)
class Identifiability:
    """How far the slots of two runs are one affine map of each other, on held-out images.

    Attributes:
        smcc: Mean over b's features of the correlation between b and the map of a, in [-1, 1].
        r2: Mean over b's features of R2 of b from a, at most 1.
        smcc_reverse: As smcc, for the map of b to a.
        r2_reverse: As r2, of a from b.
        canonical: Mean canonical correlation, directions found on the training images.
        null_smcc: smcc after permuting b's images and matching, fitting and scoring anew: what agreement by chance is.
        null_r2: r2 of the same.
        interval: Of smcc, 95 % percentiles over resamples of held-out images, the map as it is; None where not asked.
        share_excluded: Share of the M K matched pairs left out because a slot of the pair is inactive, in [0, 1).
        affine: The map a -> b as matrix (D, D') and offset (D'), float64.
        matching: (M, K), the slot of b for each slot of a.
    """

    smcc: float
    r2: float
    smcc_reverse: float
    r2_reverse: float
    canonical: float
    null_smcc: float
    null_r2: float
    interval: tuple[float, float] | None
    share_excluded: float
    affine: AffineMap
    matching: Int64[Tensor, "batch slots"]


@dataclass(frozen=True)
class _Side:
    """One run's slots, 0 where inactive."""

    name: str
    slots: Float64[Tensor, "batch slots features"]
    active: Bool[Tensor, "batch slots"]
    masks: Shaped[Tensor, "batch slots pixels"] | None
    rounding: float


@dataclass(frozen=True)
class _Agreement:
    """A matching, its fitted map, and the held-out rows (image, slot) that it is scored on."""

    matching: Int64[Tensor, "batch slots"]
    kept: Bool[Tensor, "batch slots"]
    affine: AffineMap
    reverse: AffineMap
    canonical: float
    a: Float64[Tensor, "rows features"]
    b: Float64[Tensor, "rows mapped"]


def smcc(  # noqa: PLR0913
    slots_a: Float[Tensor, "batch slots features"],
    slots_b: Float[Tensor, "batch slots mapped"],
    *,
    masks_a: Shaped[Tensor, "batch slots *pixels"] | None = None,
    masks_b: Shaped[Tensor, "batch slots *pixels"] | None = None,
    weights_a: Shaped[Tensor, "batch slots"] | None = None,
    weights_b: Shaped[Tensor, "batch slots"] | None = None,
    matching: str | None = None,
    train_fraction: float = 0.5,
    num_bootstrap: int = 0,
    generator: torch.Generator | None = None,
) -> Identifiability:
    """Slot mean correlation coefficient: agreement up to slot order and one affine map (PSA definition 3).

        b_{m, p_m(k)} ~ a_mk H + c,    smcc = mean_d corr(a H + c, b)_d over held-out rows (m, k)

    Slots are matched image by image (p_m); H and c are fitted by least squares on the rows of the training images, a
    random share; model.md section 5. Exact pairs score 1. Neither figure depends on an affine map of slots_a while the
    matching stays, nor ``canonical`` on one of either side. All in float64. Read it beside ``null_smcc``: matching by
    ``alternate`` finds agreement in independent slots too.

    Args:
        slots_a: (M, K, D), of one run.
        slots_b: (M, K, D'), of the other run or the truth, for the same images.
        masks_a: (M, K, ...), masks or responsibilities over pixels or tokens, non-negative; any real dtype, or bool.
        masks_b: As ``masks_a``, over the same pixels.
        weights_a: (M, K), the share of the image that a slot explains, or booleans; a slot below 0.01 is inactive: it
            is matched last, its pair counts nowhere and its slot may hold anything. All are active where None.
        weights_b: As ``weights_a``.
        matching: ``overlap`` of masks; ``alternate``, with the map by turns; None takes overlap where masks are given.
        train_fraction: Share of the images that the map is fitted on, in (0, 1), rounded to at least one image.
        num_bootstrap: Resamples of the held-out images; 0 for no interval.
        generator: Source of the split, of the null's permutation and of the resamples; the global one where None.

    Raises:
        ValueError: If shapes do not fit, a value is not finite, a setting is unknown, the training rows of slots_a have
            a rank below D + 1 (or slots_b fewer than D' + 1 rows), or a feature does not vary over held-out rows.
    """
    a, b = _side("a", slots_a, masks_a, weights_a), _side("b", slots_b, masks_b, weights_b)
    num_images = len(a.slots)
    _require_same_images(a, b)
    matching = _known_matching(matching, a, b)
    if num_bootstrap < 0:
        raise ValueError(f"num_bootstrap: expected at least 0, came {num_bootstrap}")
    train = training_share(num_images, train_fraction, "slots_a", generator).to(a.slots.device)
    same = torch.arange(num_images, device=a.slots.device)
    found = _agreement(a, b, same, train, matching)
    null = _agreement(a, b, cycle(num_images, generator).to(same), train, matching)
    forward, r2 = _scores(found.affine, found.a, found.b)
    backward, r2_reverse = _scores(found.reverse, found.b, found.a)
    null_forward, null_r2 = _scores(null.affine, null.a, null.b)
    rows_of_image = found.kept[~train].sum(1)
    resampled = (found.affine(found.a), found.b, rows_of_image, num_bootstrap, generator)
    return Identifiability(
        smcc=forward,
        r2=r2,
        smcc_reverse=backward,
        r2_reverse=r2_reverse,
        canonical=found.canonical,
        null_smcc=null_forward,
        null_r2=null_r2,
        interval=correlation_interval(*resampled) if num_bootstrap else None,
        share_excluded=1.0 - found.kept.double().mean().item(),
        affine=found.affine,
        matching=found.matching,
    )


def _side(name: str, slots: Tensor, masks: Tensor | None, weights: Tensor | None) -> _Side:
    if slots.ndim != 3 or 0 in slots.shape or not slots.is_floating_point():
        raise ValueError(f"slots_{name}: expected floating point (M, K, D), came {slots.dtype} {tuple(slots.shape)}")
    shape, values = slots.shape[:2], slots.detach().double()
    for kind, found in (("masks", masks), ("weights", weights)):
        if found is not None and (found.shape[:2] != shape or found.ndim < 2 + (kind == "masks")):
            raise ValueError(
                f"{kind}_{name}: expected (M, K{', ...' * (kind == 'masks')}) as slots_{name} has "
                f"{tuple(slots.shape)}, came {tuple(found.shape)}"
            )
        if found is not None and not bool(torch.isfinite(found).all() and (found >= 0).all()):
            raise ValueError(f"{kind}_{name}: expected finite numbers >= 0, came others")
    active = torch.ones(shape, dtype=torch.bool, device=slots.device)
    if weights is not None:
        active = weights.detach() >= LEAST_WEIGHT
    values = torch.where(active[:, :, None], values, torch.zeros_like(values))
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"slots_{name}: expected finite numbers in active slots, came others")
    masks = None if masks is None else masks.detach().flatten(2)
    return _Side(f"slots_{name}", values, active, masks, rounding_of(slots))


def _require_same_images(a: _Side, b: _Side) -> None:
    if a.slots.shape[:2] != b.slots.shape[:2]:
        expected = f"(M, K) = {tuple(a.slots.shape[:2])} as slots_a has"
        raise ValueError(f"slots_b: expected {expected}, came {tuple(b.slots.shape[:2])}")
    if (a.masks is None) != (b.masks is None):
        raise ValueError("masks_a and masks_b: expected both or none, came one")
    if a.masks is not None and b.masks is not None and a.masks.shape != b.masks.shape:
        raise ValueError(f"masks_b: expected {a.masks.shape[2]} pixels as masks_a has, came {b.masks.shape[2]}")


def _known_matching(matching: str | None, a: _Side, b: _Side) -> str:
    matching = matching or ("alternate" if a.masks is None else "overlap")
    if matching not in MATCHINGS:
        raise ValueError(f"matching: expected one of {', '.join(MATCHINGS)}, came {matching!r}")
    if matching == "overlap" and (a.masks is None or b.masks is None):
        raise ValueError("matching: expected masks_a and masks_b for 'overlap', came none ('alternate' needs none)")
    return matching


def _agreement(
    a: _Side, b: _Side, order: Int64[Tensor, " batch"], train: Bool[Tensor, " batch"], matching: str
) -> _Agreement:
    """Match, fit on the training images, and gather the held-out rows; image m of a stands beside b's ``order[m]``."""
    slots_b, active_b = b.slots[order], b.active[order]
    if matching == "overlap":
        assert a.masks is not None
        assert b.masks is not None
        matched = match_by_overlap(a.masks, b.masks, a.active, active_b, order)
    else:
        matched = match_alternating((a.slots, slots_b), (a.active, active_b), train, a.rounding)
    kept = a.active & active_b.gather(1, matched)
    rows_a, rows_b = pairs(a.slots, slots_b, matched, a.active, active_b)
    fitted = train[:, None].expand_as(kept)[kept]
    from_a = whiten_determined(rows_a[fitted], a.rounding, a.name)
    require_rows(int(fitted.sum()), b.slots.shape[2], b.name)
    from_b = whiten(rows_b[fitted], b.rounding)
    for rows, side in ((rows_a, a), (rows_b, b)):
        require_variation(rows[~fitted], side.name, side.rounding)
    to_a, to_b = canonical_maps(from_a, from_b)
    held_a, held_b = rows_a[~fitted], rows_b[~fitted]
    canonical = pearson(held_a @ to_a, held_b @ to_b).mean().item()
    affine, reverse = fit_affine(from_a, rows_b[fitted]), fit_affine(from_b, rows_a[fitted])
    return _Agreement(matched, kept, affine, reverse, canonical, held_a, held_b)


def _scores(affine: AffineMap, inputs: Tensor, targets: Tensor) -> tuple[float, float]:
    """SMCC and R2 of held-out rows."""
    mapped = affine(inputs)
    return pearson(mapped, targets).mean().item(), r_squared(mapped, targets).mean().item()
