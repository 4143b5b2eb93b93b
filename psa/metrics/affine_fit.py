"""The affine map between paired rows by least squares, and how well one set of rows says another."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

COARSEST = torch.finfo(torch.float32).eps  # rounding of half precision counts as noise, not as a lack of rank


class AffineMap(NamedTuple):
    """x -> x matrix + offset.

    Attributes:
        matrix: (D, D').
        offset: (D').
    """

    matrix: Float64[Tensor, "features mapped"]
    offset: Float64[Tensor, " mapped"]

    def __call__(self, rows: Float64[Tensor, "*batch features"]) -> Float64[Tensor, "*batch mapped"]:
        """The image of rows (..., D)."""
        return rows @ self.matrix + self.offset


@dataclass(frozen=True)
class Whitened:
    """Rows X about their mean in orthonormal coordinates: (X - mean) to_basis = basis, basis' basis = I.

    Attributes:
        mean: (D,).
        to_basis: (D, R), R the rank of the centred rows; [X, 1] has rank R + 1.
        basis: (rows, R).
    """

    mean: Float64[Tensor, " features"]
    to_basis: Float64[Tensor, "features rank"]
    basis: Float64[Tensor, "rows rank"]


def whiten(rows: Float64[Tensor, "rows features"], rounding: float) -> Whitened:
    """Orthonormal coordinates of the span of centred rows, by a singular value decomposition.

    Columns are scaled to length 1 first, so that the rank does not depend on units. A direction is left out if it is
    not longer than 10 times what rounding makes of it: numbers far from 0 that hardly vary are rounded coarsely.

    Args:
        rows: (rows, D), at least one.
        rounding: Relative, of the numbers as they came: float32's in a float64 tensor may be 1e-7.
    """
    mean = rows.mean(0)
    centred = rows - mean
    length = centred.norm(dim=0)
    rounded = rounding * len(rows) ** 0.5 * rows.abs().amax(0)
    inverse = torch.where(length > rounded, length, torch.inf).reciprocal()
    _, singular, directions = torch.linalg.svd(centred * inverse, full_matrices=False)
    noise = (directions * (rounded * inverse)).norm(dim=1) + rounding * rows.shape[1] * singular.amax()
    kept = singular > 10.0 * noise
    to_basis = inverse[:, None] * (directions[kept] / singular[kept, None]).mT
    return Whitened(mean, to_basis, centred @ to_basis)


def fit_affine(inputs: Whitened, targets: Float64[Tensor, "rows mapped"]) -> AffineMap:
    """The map of least sum of squares |x matrix + offset - y|^2 over rows.

    Args:
        inputs: Of the rows x, from :func:`whiten`. Where they lack rank, directions that they do not span map to 0.
        targets: y, (rows, D').
    """
    mean = targets.mean(0)
    matrix = inputs.to_basis @ (inputs.basis.mT @ (targets - mean))
    return AffineMap(matrix, mean - inputs.mean @ matrix)


def canonical_maps(
    first: Whitened, second: Whitened
) -> tuple[Float64[Tensor, "features pairs"], Float64[Tensor, "mapped pairs"]]:
    """The directions of largest correlation between two whitened sets of paired rows (Hotelling 1936).

    Returns:
        (D, P) and (D', P), P the lesser rank: column p of the one goes with column p of the other, both uncorrelated
        with all other columns over the fitted rows. Affine maps of either side leave rows times directions as they are.
    """
    left, _, right = torch.linalg.svd(first.basis.mT @ second.basis, full_matrices=False)
    return first.to_basis @ left, second.to_basis @ right.mT


def pearson(
    first: Float64[Tensor, "rows features"], second: Float64[Tensor, "rows features"]
) -> Float64[Tensor, " features"]:
    """Signed correlation over rows, feature by feature, in [-1, 1]; 0 where one of the two does not vary."""
    first, second = first - first.mean(0), second - second.mean(0)
    length = first.norm(dim=0) * second.norm(dim=0)
    return ((first * second).sum(0) / torch.where(length > 0, length, torch.inf)).clamp(-1.0, 1.0)


def r_squared(
    predicted: Float64[Tensor, "rows features"], true: Float64[Tensor, "rows features"]
) -> Float64[Tensor, " features"]:
    """1 - sum (y - yhat)^2 / sum (y - mean y)^2 over rows, feature by feature, at most 1; ``true`` must vary."""
    return 1.0 - (true - predicted).square().sum(0) / (true - true.mean(0)).square().sum(0)


def require_rows(num_rows: int, num_features: int, name: str) -> None:
    """Raise ValueError if an affine map of D features has more parameters an output, D + 1, than there are rows."""
    if num_rows < num_features + 1:
        raise ValueError(
            f"{name}: expected at least D + 1 = {num_features + 1} training rows for an affine map, came {num_rows}"
        )


def whiten_determined(rows: Float64[Tensor, "rows features"], rounding: float, name: str) -> Whitened:
    """:func:`whiten` rows that determine an affine map.

    Raises:
        ValueError: If [X, 1] has a rank below D + 1.
    """
    num_rows, num_features = rows.shape
    require_rows(num_rows, num_features, name)
    found = whiten(rows, rounding)
    if found.basis.shape[1] < num_features:
        raise ValueError(
            f"{name}: expected training rows of rank D + 1 = {num_features + 1}, "
            f"came rank {found.basis.shape[1] + 1} in {num_rows} rows"
        )
    return found


def require_variation(rows: Float64[Tensor, "rows features"], name: str, rounding: float) -> None:
    """Raise ValueError if a feature is constant up to rounding, so that no correlation with it is defined."""
    if len(rows) < 2:
        raise ValueError(f"{name}: expected at least 2 held-out rows, came {len(rows)}")
    constant = rows.std(0) <= rounding * rows.abs().amax(0)
    if bool(constant.any()):
        raise ValueError(
            f"{name}: expected features that vary over held-out rows, feature {int(constant.int().argmax())} does not"
        )


def rounding_of(rows: Tensor) -> float:
    """The relative rounding of numbers of a tensor's dtype, at most float32's."""
    return min(torch.finfo(rows.dtype).eps, COARSEST)
