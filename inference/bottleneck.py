"""Losses that narrow the bottleneck of slots, as factors of the scene program (docs/scene.md)."""

import pyro
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from psa.inference.config import BottleneckConfig

MARGIN = 0.2


def variance_loss(
    rows: Float[Tensor, "rows features"], target: float = 1.0, epsilon: float = 1e-4
) -> Float[Tensor, ""]:
    """v(Z) = 1/D sum_j max(0, target - sqrt(Var(z_j) + epsilon)), the variance over rows with n - 1 below.

    Reference: Bardes et al., VICReg, 2022, equation 1; Stange et al., covariance regularisation, section 3.
    """
    deviation = (_covariance(rows).diagonal() + epsilon).sqrt()
    return (target - deviation).clamp(min=0.0).mean()


def covariance_loss(rows: Float[Tensor, "rows features"]) -> Float[Tensor, ""]:
    """c(Z) = 1/D sum_{i != j} Cov(Z)_ij^2, the covariance over rows with n - 1 below; 0 for a single row.

    Reference: as :func:`variance_loss`; VICReg's equation 4.
    """
    covariance = _covariance(rows)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / rows.shape[1]


def _covariance(rows: Float[Tensor, "rows features"]) -> Float[Tensor, "features features"]:
    centred = rows - rows.mean(0)
    return centred.mT @ centred / max(1, len(rows) - 1)


def cosine_loss(
    slots: Float[Tensor, "batch slots features"],
    active: Bool[Tensor, "batch slots"] | None = None,
    margin: float = MARGIN,
) -> Float[Tensor, " batch"]:
    """sum_{i != j} max(0, cos(z_i, z_j) - margin) over the slots of an image, every pair counted twice.

    The seed text writes the sum up to D_slots and means the slots.

    Args:
        slots: (B, K, D).
        active: (B, K), those that count; all by default.
        margin: In [-1, 1]; slots less alike than this cost nothing.

    Returns:
        (B,), from 0 to K (K - 1) (1 - margin).

    Reference: Stange et al., COSINELOSS, section 3.
    """
    directions = nn.functional.normalize(slots, dim=-1)
    excess = (directions @ directions.mT - margin).clamp(min=0.0)
    counted = ~torch.eye(slots.shape[1], dtype=torch.bool, device=slots.device)
    if active is not None:
        counted = counted & active[:, :, None] & active[:, None, :]
    return (excess * counted).sum((1, 2))


class Bottleneck(nn.Module):
    """Adds to log p, for each image of a batch,

        - variance v(h(S)) - covariance c(h(S)) - cosine cosine(s_b1..s_bK),

    with S all decoded slots of the batch, a row each, and h an MLP with two hidden layers, as wide as its output.
    v and c are of the whole batch and count once an image, so that weights do not depend on the batch's size.
    cosine is of the slots themselves: on projections it diverges, says the seed text.

    Args:
        config: The weights, in nats an image; a weight of 0 adds no factor.
        slot_dim: D.
    """

    def __init__(self, config: BottleneckConfig, slot_dim: int) -> None:
        super().__init__()
        self.config = config
        self.head: nn.Sequential | None = None
        if config.variance > 0 or config.covariance > 0:
            width = config.projection_dim
            self.head = nn.Sequential(
                nn.Linear(slot_dim, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
            )

    def project(
        self, slots: Float[Tensor, "batch slots features"], active: Bool[Tensor, "batch slots"] | None = None
    ) -> Float[Tensor, "rows projected"] | None:
        """h of the decoded slots of all images; None where no loss needs it."""
        if self.head is None:
            return None
        return self.head(slots.flatten(0, 1) if active is None else slots[active])

    def forward(
        self, slots: Float[Tensor, "batch slots features"], active: Bool[Tensor, "batch slots"] | None = None
    ) -> None:
        """Pyro factors ``variance``, ``covariance`` and ``cosine`` of slots (B, K, D), outside of all plates."""
        config, batch, projected = self.config, len(slots), self.project(slots, active)
        if projected is not None and config.variance > 0:
            loss = variance_loss(projected, config.variance_target)
            pyro.factor("variance", -config.variance * batch * loss)
        if projected is not None and config.covariance > 0:
            pyro.factor("covariance", -config.covariance * batch * covariance_loss(projected))
        if config.cosine > 0:
            pyro.factor("cosine", -config.cosine * cosine_loss(slots, active).sum())
