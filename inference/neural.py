"""The optional neural part of an update: a GRU and a residual MLP on the mean (Locatello et al. 2020, algorithm 1)."""

from jaxtyping import Float
from torch import Tensor, nn


class NeuralUpdate(nn.Module):
    """GRU(input = mean, hidden = raw previous mean), then mu + MLP(LayerNorm(mu)). It voids monotone likelihood."""

    def __init__(self, slot_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gru = nn.GRUCell(slot_dim, slot_dim)
        self.norm = nn.LayerNorm(slot_dim)
        self.mlp = nn.Sequential(nn.Linear(slot_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, slot_dim))

    def forward(
        self, mean: Float[Tensor, "batch slots features"], previous: Float[Tensor, "batch slots features"]
    ) -> Float[Tensor, "batch slots features"]:
        """The new means, (B, K, D), from the update's means and the means before the step."""
        slots = self.gru(mean.flatten(0, 1), previous.flatten(0, 1)).view_as(mean)
        return slots + self.mlp(self.norm(slots))
