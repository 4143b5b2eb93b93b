"""From a slot's posterior to the vector that is decoded: the read-out column of model.md section 2."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psa.records import SlotPosterior
from psa.registry import Registry


class MeanReadout(nn.Module):
    """The slot's mean."""

    def __init__(self, slot_dim: int, hidden_dim: int) -> None:
        super().__init__()

    def forward(self, posterior: SlotPosterior) -> Float[Tensor, "batch slots features"]:
        """(B, K, D)."""
        return posterior.loc


class NormalReadout(MeanReadout):
    """Normal(mean, var): the mean, or a re-parameterised draw when one is asked for (PSA)."""

    def sample(
        self, posterior: SlotPosterior, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch slots features"]:
        """(B, K, D), one draw a slot."""
        loc = posterior.loc
        noise = torch.randn(loc.shape, generator=generator, device=loc.device, dtype=loc.dtype)
        return loc + posterior.var.sqrt() * noise


class MomentsReadout(nn.Module):
    """MLP([mean, log std]) (SMM)."""

    def __init__(self, slot_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * slot_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, slot_dim))

    def forward(self, posterior: SlotPosterior) -> Float[Tensor, "batch slots features"]:
        """(B, K, D)."""
        return self.mlp(torch.cat([posterior.loc, 0.5 * posterior.var.log()], dim=-1))


class QueryReadout(nn.Module):
    """MLP(LayerNorm([mean, the slot's own initial query])): tells the decoder which query found the slot."""

    def __init__(self, slot_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * slot_dim)
        self.mlp = nn.Sequential(nn.Linear(2 * slot_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, slot_dim))

    def forward(self, posterior: SlotPosterior) -> Float[Tensor, "batch slots features"]:
        """(B, K, D)."""
        return self.mlp(self.norm(torch.cat([posterior.loc, posterior.initial_loc], dim=-1)))


_OWN: dict[str, type[nn.Module]] = {
    "mean": MeanReadout,
    "normal": NormalReadout,
    "moments-mlp": MomentsReadout,
    "query-mlp": QueryReadout,
}
READOUTS: Registry[type[nn.Module]] = Registry("readout", _OWN)
