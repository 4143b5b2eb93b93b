"""How much the features of a representation repeat each other."""

import torch
from jaxtyping import Float
from torch import Tensor


def mean_squared_correlation(rows: Float[Tensor, "rows features"]) -> float:
    """Mean of corr(z_i, z_j)^2 over pairs i != j of features, in [0, 1]; in float64.

    Unlike a covariance it does not fall when all features shrink. Independent features have about 1 / (rows - 1). A
    feature that does not vary correlates with none. NaN for a single feature.

    Args:
        rows: (n, D).
    """
    centred = rows.detach().double()
    centred = centred - centred.mean(0)
    length = centred.norm(dim=0)
    # Of a constant feature, what rounding leaves is no direction.
    varies = length > len(rows) * torch.finfo(rows.dtype).eps * rows.detach().double().abs().amax(0)
    directions = centred / length.where(varies, torch.inf)
    squared = (directions.mT @ directions).square()
    num_features = rows.shape[1]
    pairs = num_features * (num_features - 1)
    return float((squared.sum() - squared.diagonal().sum()) / pairs) if pairs else float("nan")
