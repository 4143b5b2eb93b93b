"""Scores of learned slots against true factors or another run: MCC and the slot identifiability score."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from scipy.optimize import linear_sum_assignment
from sklearn.kernel_ridge import KernelRidge
from torch import Tensor

from psa.metrics.affine_fit import (
    fit_affine,
    pearson,
    r_squared,
    require_rows,
    require_variation,
    rounding_of,
    whiten,
    whiten_determined,
)
from psa.metrics.held_out import training_share

REGRESSORS = ("affine", "rbf")


@dataclass(frozen=True)
class MeanCorrelation:
    """MCC of held-out rows, with and without an affine map in front.

    Attributes:
        plain: Mean |corr| of features matched one to one, in [0, 1].
        affine: The same after the least-squares affine map of the first rows to the second.
    """

    plain: float
    affine: float


def mcc(
    rows_a: Float[Tensor, "rows features"],
    rows_b: Float[Tensor, "rows mapped"],
    *,
    train_fraction: float = 0.5,
    generator: torch.Generator | None = None,
) -> MeanCorrelation:
    """Mean correlation coefficient of two paired sets of latents, as the field has it (Khemakhem et al. 2020).

        mcc = max over one-to-one p of mean_d |corr(x_d, y_p(d))|,    min(D, D') pairs, by the Hungarian method

    ``plain`` knows permutations and scales of features only: a rotation lowers it. ``affine`` allows the map as well.
    Both on the same held-out rows, in float64.

    Args:
        rows_a: (rows, D): latents of images, or slots already matched (one row a slot).
        rows_b: (rows, D'), of the same images or slots.
        train_fraction: Share of the rows that the map is fitted on, in (0, 1).
        generator: Source of the split; the global one where None.

    Raises:
        ValueError: If the training rows of rows_a have a rank below D + 1, or a feature does not vary.
    """
    train = training_share(len(rows_a), train_fraction, "rows_a", generator).to(rows_a.device)
    a, b = rows_a.detach().double(), rows_b.detach().double()
    inputs = whiten_determined(a[train], rounding_of(rows_a), "rows_a")
    for rows, given, name in ((a, rows_a, "rows_a"), (b, rows_b, "rows_b")):
        require_variation(rows[~train], name, rounding_of(given))
    mapped = fit_affine(inputs, b[train])(a[~train])
    return MeanCorrelation(_mean_matched(a[~train], b[~train]), _mean_matched(mapped, b[~train]))


def _mean_matched(first: Float64[Tensor, "rows features"], second: Float64[Tensor, "rows mapped"]) -> float:
    columns = [pearson(first, column[:, None].expand_as(first)) for column in second.mT]
    correlation = torch.stack(columns, dim=1).abs().cpu().numpy()
    return float(correlation[linear_sum_assignment(correlation, maximize=True)].mean())


@dataclass(frozen=True)
class SlotIdentifiability:
    """How well each true object is told by its own slot, and only by it.

    Attributes:
        sis: Mean over objects of R2 from the matched slot less R2 from the best other one, in [0, 1].
        matched: Mean over objects of R2 from the matched slot.
        other: Mean over objects of R2 from the best other one; 0 where there is one object.
        r2: (O, O), of object o's factors (rows) from the slot matched with object j (columns), mean over factors,
            floored at 0.
    """

    sis: float
    matched: float
    other: float
    r2: Float64[Tensor, "objects objects"]


def sis(
    slots: Float[Tensor, "batch slots features"],
    factors: Float[Tensor, "batch objects factors"],
    matching: Int64[Tensor, "batch objects"],
    *,
    regressor: str = "affine",
    present: Bool[Tensor, "batch objects"] | None = None,
    train_fraction: float = 0.5,
    generator: torch.Generator | None = None,
) -> SlotIdentifiability:
    """Slot identifiability score: own slot less best other slot (Brady et al. 2023; model.md section 5).

        S_oj = max(0, mean_f R2 of factor f of object o from the slot matched with object j),    on held-out images
        sis = mean_o max(0, S_oo - max_{j != o} S_oj)

    1 if each slot says all of its object and nothing of another. Factors are continuous. A categorical one enters as
    its indicator columns (one-hot), each a factor of its own, whose R2 is one less the Brier score over its variance.
    All in float64.

    Args:
        slots: (M, K, D), inferred.
        factors: (M, O, F), true, standing in the order of objects that the data has.
        matching: (M, O), the slot of each object, such as ``psa.metrics.identifiability.smcc`` finds.
        regressor: ``affine``, least squares; or ``rbf``, scikit-learn's kernel ridge at its defaults (alpha 1,
            gamma 1/D) on standardised slots and factors: cubic time in the number of training images.
        present: (M, O), where objects exist; a regression takes the images that have both of its objects.
        train_fraction: Share of the images that regressors are fitted on, in (0, 1).
        generator: Source of the split; the global one where None.

    Raises:
        ValueError: If the regressor is unknown, the matching names no slot, training images are fewer than D + 1
            (affine) or a factor does not vary over held-out images.
    """
    if regressor not in REGRESSORS:
        raise ValueError(f"regressor: expected one of {', '.join(REGRESSORS)}, came {regressor!r}")
    if bool(((matching < 0) | (matching >= slots.shape[1])).any()):
        raise ValueError(f"matching: expected slots from 0 to {slots.shape[1] - 1}, came others")
    train = training_share(len(slots), train_fraction, "slots", generator).to(slots.device)
    present = torch.ones_like(matching, dtype=torch.bool) if present is None else present
    inputs = slots.detach().double().take_along_dim(matching[:, :, None], 1)
    true, num_objects = factors.detach().double(), factors.shape[1]
    r2 = true.new_zeros(num_objects, num_objects)
    for o in range(num_objects):
        for j in range(num_objects):
            kept = present[:, o] & present[:, j]
            fitted, held = kept & train, kept & ~train
            require_variation(true[held, o], f"factors of object {o}", rounding_of(factors))
            predict = _affine if regressor == "affine" else _rbf
            predicted = predict(inputs[fitted, j], true[fitted, o], inputs[held, j], rounding_of(slots))
            r2[o, j] = r_squared(predicted, true[held, o]).mean()
    r2 = r2.clamp(min=0.0)
    own = r2.diagonal()
    other = (r2 - own.diag()).amax(1)  # the diagonal becomes 0, which is the floor
    return SlotIdentifiability((own - other).clamp(min=0.0).mean().item(), own.mean().item(), other.mean().item(), r2)


def _affine(inputs: Tensor, targets: Tensor, held_out: Tensor, rounding: float) -> Tensor:
    # A collapsed slot has no rank and says nothing, which is what is to be scored: only too few rows are an error.
    require_rows(len(inputs), inputs.shape[1], "slots")
    return fit_affine(whiten(inputs, rounding), targets)(held_out)


def _rbf(inputs: Tensor, targets: Tensor, held_out: Tensor, rounding: float) -> Tensor:
    require_rows(len(inputs), 1, "slots")
    (x_mean, x_scale), (y_mean, y_scale) = (_standard(rows, rounding) for rows in (inputs, targets))
    model = KernelRidge(kernel="rbf", alpha=1.0)
    model.fit(((inputs - x_mean) / x_scale).cpu().numpy(), ((targets - y_mean) / y_scale).cpu().numpy())
    predicted = torch.from_numpy(model.predict(((held_out - x_mean) / x_scale).cpu().numpy())).to(targets)
    return predicted * y_scale + y_mean


def _standard(rows: Float64[Tensor, "rows features"], rounding: float) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation; 1 where a feature is constant up to rounding."""
    scale = rows.std(0, correction=0)
    return rows.mean(0), torch.where(scale > rounding * rows.abs().amax(0), scale, torch.ones_like(scale))
