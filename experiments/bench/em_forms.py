"""The E/M steps that `psa bench --suite em` times: ours, Slot Attention's, and the mixture's in broadcast form."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psa.inference.variants import build

FLOOR = 1e-4


@dataclass(frozen=True)
class Size:
    """B images of N tokens of D features, K slots, T steps."""

    B: int = 8
    N: int = 1024
    K: int = 7
    D: int = 64
    T: int = 3


Form = Callable[[Tensor, Tensor], Tensor]  # tokens (B, N, D) and first slots (B, K, D) to what is differentiated


class OurSteps(nn.Module):
    """psa-proj: projections, T steps, means and variances."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        sizes = {"num_slots": size.K, "input_dim": size.D, "slot_dim": size.D, "num_iterations": size.T}
        self.member = build("psa-proj", variance_floor=FLOOR, **sizes)

    def forward(
        self, tokens: Float[Tensor, "batch tokens features"], slots: Float[Tensor, "batch slots features"]
    ) -> Tensor:
        """(B, K, 2 D)."""
        posterior = self.member(tokens, initial=slots)
        return torch.cat([posterior.loc, posterior.var], dim=-1)


class BroadcastSteps(nn.Module):
    """The same algorithm with differences of every token from every slot, (B, K, N, D), as published code computes it.

    Args:
        size: Of the problem.
        weights: An :class:`OurSteps` whose projections it takes, so that both compute the same.
    """

    def __init__(self, size: Size, weights: OurSteps) -> None:
        super().__init__()
        self.num_steps = size.T
        self.projections = weights.member.projections

    def forward(
        self, tokens: Float[Tensor, "batch tokens features"], slots: Float[Tensor, "batch slots features"]
    ) -> Tensor:
        """(B, K, 2 D)."""
        projections = self.projections
        assert projections.query is not None
        assert projections.key is not None
        assert projections.value is not None
        keys, values = projections.key(tokens)[:, None], projections.value(tokens)[:, None]
        loc, var = slots, torch.ones_like(slots)
        log_weights = slots.new_full((*slots.shape[:2], 1), 1.0 / slots.shape[1]).log()
        for _ in range(self.num_steps):
            away = keys - projections.query(loc)[:, :, None]
            density = -0.5 * (away.square() / var[:, :, None] + var[:, :, None].log() + math.log(2 * math.pi)).sum(-1)
            responsibilities = (log_weights + density).softmax(1)
            mass = responsibilities.sum(-1, keepdim=True)
            share = (responsibilities / mass)[..., None]
            loc = (share * values).sum(2)
            var = (share * (values - loc[:, :, None]).square()).sum(2).clamp(min=FLOOR)
            log_weights = (mass / tokens.shape[1]).log()
        return torch.cat([loc, var], dim=-1)


class _First(nn.Module):
    """In place of a GRU cell: the update as it is."""

    def forward(self, update: Tensor, previous: Tensor) -> Tensor:
        """The first of the two."""
        return update


class _Nothing(nn.Module):
    """In place of an MLP on the residual path."""

    def forward(self, slots: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros_like(slots)


class PackageSteps(nn.Module):
    """The `slot-attention` package's module; ``bare`` is without what psa-proj has no counterpart of.

    That is three LayerNorms, the GRU and the MLP: projections, agreement and weighted mean remain.
    """

    def __init__(self, size: Size, bare: bool) -> None:
        super().__init__()
        from slot_attention import SlotAttention

        self.module = SlotAttention(num_slots=size.K, dim=size.D, iters=size.T)
        if bare:
            self.module.gru, self.module.mlp = _First(), _Nothing()
            for norm in ("norm_input", "norm_slots", "norm_pre_ff"):
                setattr(self.module, norm, nn.Identity())

    def forward(
        self, tokens: Float[Tensor, "batch tokens features"], slots: Float[Tensor, "batch slots features"]
    ) -> Tensor:
        """(B, K, D); the package draws its first slots itself."""
        return self.module(tokens)


def forms(size: Size, device: str, peers: bool = True) -> dict[str, Form]:
    """The contenders by name, psa-proj first; those of the package where it is installed."""
    torch.manual_seed(0)
    ours = OurSteps(size).to(device)
    with torch.no_grad():  # away from where it starts, so that slots own tokens by degrees
        for layer in (ours.member.projections.query, ours.member.projections.key, ours.member.projections.value):
            assert layer is not None
            layer.weight.normal_(std=0.5 / math.sqrt(size.D))
    found: dict[str, Form] = {"psa-proj": ours}
    if peers and find_spec("slot_attention") is not None:
        found["slot attention"] = PackageSteps(size, bare=True).to(device)
        found["slot attention, whole"] = PackageSteps(size, bare=False).to(device)
    if peers:
        found["broadcast"] = BroadcastSteps(size, ours).to(device)
    return found
