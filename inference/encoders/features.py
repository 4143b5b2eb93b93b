"""Map of features -> tokens: LayerNorm and an MLP per position (DINOSAUR)."""

from jaxtyping import Float
from torch import Tensor, nn


class FeatureEncoder(nn.Module):
    """Features of a frozen network, each position on its own; they know their places already.

    Args:
        shape: (F, rows, columns) of a map.
        channels: Width of the MLP.
        token_dim: Features of a token.
    """

    def __init__(self, shape: tuple[int, int, int], channels: int = 32, token_dim: int = 32) -> None:
        super().__init__()
        self.shape = shape
        self.mlp = nn.Sequential(
            nn.LayerNorm(shape[0]), nn.Linear(shape[0], channels), nn.ReLU(), nn.Linear(channels, token_dim)
        )
        self.norm = nn.LayerNorm(token_dim, elementwise_affine=False)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the tokens; those of the map."""
        return self.shape[1:]

    def forward(self, maps: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch tokens features"]:
        """Tokens (B, N, token_dim) in row-major order of the maps (B, F, rows, columns)."""
        return self.norm(self.mlp(maps.flatten(2).transpose(1, 2)))
