"""The slots of one image side by side, in a random order (PSA theorem 1; docs/aggregate.md)."""

import math
from typing import ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import constraints

from psa.conjugate import gaussian_log_density
from psa.permanent import MAX_SIZE, log_permanent

ENTRIES = 1 << 20  # of density matrices at once


class ConcatenatedSlots(dist.TorchDistribution):
    """p(s_1, ..., s_K) = 1 / (M K!) sum_b sum_sigma prod_k Normal(s_k; mu_b,sigma(k), diag var_b,sigma(k)).

    PSA theorem 1: an image is drawn (M of them), its K slots are put in one of K! orders, all equally likely, and each
    is sampled. As one vector of K D numbers this is a mixture of M K! Gaussians with block-diagonal covariances.
    The sum over orders is the permanent of the K x K matrix of densities Normal(s_k; mu_bj, var_bj), over K!.
    Batch shape (), event shape (K, D).

    Args:
        loc: (M, K, D), or (K, D) for one image.
        var: The same shape, positive.

    Raises:
        ValueError: If shapes do not fit, a variance is not positive, or K is above 14.
    """

    support = constraints.independent(constraints.real, 2)
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, loc: Float[Tensor, "*images slots features"], var: Float[Tensor, "*images slots features"]):
        if loc.shape != var.shape or loc.ndim not in (2, 3) or 0 in loc.shape:
            shapes = f"{tuple(loc.shape)} and {tuple(var.shape)}"
            raise ValueError(f"loc and var must both have shape (M, K, D) or (K, D), got {shapes}")
        if loc.shape[-2] > MAX_SIZE:
            raise ValueError(f"loc must have at most {MAX_SIZE} slots, got {loc.shape[-2]}")
        if not bool((var > 0).all()):
            raise ValueError(f"var must be positive, got a least entry of {float(var.min()):.3g}")
        self.loc, self.var = (tensor.reshape(-1, *tensor.shape[-2:]) for tensor in (loc, var))
        super().__init__(torch.Size(), loc.shape[-2:], validate_args=False)

    def log_prob(self, value: Float[Tensor, "*batch slots features"]) -> Float[Tensor, "*batch"]:
        """log p(s_1, ..., s_K), (...), in nats; the same for every order of the slots."""
        num_images, num_slots, num_features = self.loc.shape
        rows = max(1, ENTRIES // (num_images * num_slots**2))
        parts = [self._log_density(part) for part in value.reshape(-1, num_slots, num_features).split(rows)]
        return torch.cat(parts).reshape(value.shape[:-2])

    def _log_density(self, slots: Float[Tensor, "rows slots features"]) -> Float[Tensor, " rows"]:
        num_images, num_slots, _ = self.loc.shape
        origin = self.loc.mean((0, 1))
        tokens = (slots - origin).flatten(0, 1).expand(num_images, -1, -1)
        density = gaussian_log_density(tokens, self.loc - origin, self.var).unflatten(2, (-1, num_slots))
        permanent = log_permanent(density.transpose(1, 2))
        return permanent.logsumexp(0) - math.log(num_images) - math.lgamma(num_slots + 1)

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Draws (*sample_shape, K, D): an image, an order, and the slots."""
        shape = torch.Size(sample_shape)
        num_images, num_slots, _ = self.loc.shape
        image = torch.randint(num_images, (shape.numel(), 1), device=self.loc.device)
        order = torch.rand(shape.numel(), num_slots, device=self.loc.device).argsort(1)
        loc, var = self.loc[image, order], self.var[image, order]
        return (loc + var.sqrt() * torch.randn_like(loc)).reshape(*shape, *self.event_shape)
