"""Image -> tokens: the words of a discrete VAE, embedded, with positions (SLATE)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psa.models.dvae import CodeEncoder


class WordEncoder(nn.Module):
    """The most probable word of each patch -> its embedding + a learned position -> MLP -> LayerNorm.

    No gradient reaches the words. The embeddings are the encoder's own; SLATE shares them with its transformer.

    Args:
        code: What finds the words. It belongs to the guide, which trains it, and is not a part of this module.
        vocabulary: Its number of words.
        channels: Features of an embedding.
        token_dim: Features of a token.
    """

    def __init__(self, code: CodeEncoder, vocabulary: int, channels: int = 32, token_dim: int = 32) -> None:
        super().__init__()
        self._code = (code,)  # in a tuple, lest its weights be in the checkpoint twice
        self.embedding = nn.Embedding(vocabulary, channels)
        self.positions = nn.Parameter(0.02 * torch.randn(code.grid[0] * code.grid[1], channels))
        self.mlp = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, token_dim))
        self.norm = nn.LayerNorm(token_dim, elementwise_affine=False)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the tokens; those of the words."""
        return self._code[0].grid

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch tokens features"]:
        """Tokens (B, L, token_dim) in row-major order of the images (B, C, H, W), [0, 1]."""
        with torch.no_grad():
            words = self._code[0].words(images)
        return self.norm(self.mlp(self.embedding(words) + self.positions))
