"""Which slots of a scene are decoded, as a random variable of the scene program (docs/relevance.md)."""

import math

import pyro.distributions as dist
import torch
from jaxtyping import Float, Shaped
from torch import Tensor


class NonEmptySubset(dist.TorchDistribution):
    """a_1..a_K in {0, 1}, not all 0, each of the 2^K - 1 sets alike; 1 is a slot that is decoded.

    The prior of the active slots: with it the program whose empty slots are dropped is a joint density, and its bound
    differs by a constant only from one without a prior on a.

    Args:
        num_slots: K >= 1.
        like: Draws and densities have its dtype and device.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    support = dist.constraints.independent(dist.constraints.boolean, 1)

    def __init__(self, num_slots: int, like: Tensor) -> None:
        self.like = like
        super().__init__(torch.Size(), torch.Size((num_slots,)), validate_args=False)

    def log_prob(self, value: Shaped[Tensor, "*batch slots"]) -> Float[Tensor, "*batch"]:
        """- log(2^K - 1), in nats; - inf for the empty set."""
        constant = self.like.new_full(value.shape[:-1], -math.log(2 ** self.event_shape[0] - 1))
        return constant.masked_fill(~value.any(-1), -torch.inf)

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Draws (*sample_shape, K) of 0 and 1."""
        active = torch.zeros((*sample_shape, *self.event_shape), dtype=torch.bool, device=self.like.device)
        while bool((empty := ~active.any(-1)).any()):
            active[empty] = torch.rand(active[empty].shape, device=self.like.device) < 0.5
        return active.to(self.like.dtype)
