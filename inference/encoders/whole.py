"""Image -> one token: what a plain autoencoder has in the place of slots, for experiments to compare with."""

from jaxtyping import Float
from torch import Tensor, nn


class WholeImageEncoder(nn.Module):
    """All tokens of an image, one after the other, and an affine map of them to one.

    Args:
        tokens: Images -> tokens (B, N, F).
        num_features: N F.
        latent_dim: Features of the one token.
    """

    def __init__(self, tokens: nn.Module, num_features: int, latent_dim: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.latent = nn.Linear(num_features, latent_dim)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch 1 latent"]:
        """(B, 1, latent_dim)."""
        return self.latent(self.tokens(images).flatten(1))[:, None]
