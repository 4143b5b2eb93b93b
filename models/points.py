"""The token VAE of the 2-D study: the points of an image come from its own mixture (docs/identifiability.md).

    z_bn ~ sum_k pi_bk Normal(mu_bk, diag var_bk),   x_bn | z_bn ~ Normal(d(z_bn), sigma^2)

The guide is q(z_bn | x_bn) = Normal(e(x_bn), s^2), one learned number s. An image's mixture is a parameter of the
program, found by EM (:mod:`psa.inference.point_slots`); PSA, arXiv 2406.07141, has the same one for the E/M steps.
"""

import math

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from psa.models.marginal_mixture import SlotMixture
from psa.records import SlotPosterior


def perceptron(num_features: int = 2, hidden_dim: int = 32) -> nn.Sequential:
    """A map of R^D by two hidden layers with LeakyReLU: piecewise affine, as the theory asks, without LayerNorm."""
    return nn.Sequential(
        nn.Linear(num_features, hidden_dim),
        nn.LeakyReLU(),
        nn.Linear(hidden_dim, hidden_dim),
        nn.LeakyReLU(),
        nn.Linear(hidden_dim, num_features),
    )


class PointModel(nn.Module):
    """p(z, x): the Pyro program.

    Args:
        decoder: d, latent points (..., D) -> points (..., D).
        sigma: Standard deviation of a point about its decoded latent, > 0, in the points' units; not learned.

    Raises:
        ValueError: If sigma is not positive.
    """

    def __init__(self, decoder: nn.Module, sigma: float = 0.1) -> None:
        super().__init__()
        if not (math.isfinite(sigma) and sigma > 0):
            raise ValueError(f"sigma must be a positive number, got {sigma}")
        self.decoder, self.sigma = decoder, sigma

    def forward(self, points: Float[Tensor, "batch tokens features"], mixture: SlotPosterior) -> None:
        """Sites latent and point, in plates images (dim -2) and tokens (dim -1).

        Args:
            points: x, (B, N, D), observed.
            mixture: Of the latent points of each image; its weights, loc and var are used, as constants.
        """
        prior = SlotMixture(mixture.weights[:, None], mixture.loc, mixture.var.reciprocal(), points.shape[1])
        with pyro.plate("images", len(points), dim=-2), pyro.plate("tokens", points.shape[1], dim=-1):
            latent = pyro.sample("latent", prior)
            pyro.sample("point", dist.Normal(self.decoder(latent), self.sigma).to_event(1), obs=points)


class PointGuide(nn.Module):
    """q(z | x): the Pyro guide of :class:`PointModel`.

    Args:
        encoder: e, points (..., D) -> latent points (..., D).
        scale: Where s starts, > 0, in latent units.

    Raises:
        ValueError: If scale is not positive.
    """

    def __init__(self, encoder: nn.Module, scale: float = 0.1) -> None:
        super().__init__()
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"scale must be a positive number, got {scale}")
        self.encoder = encoder
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def draw(
        self, points: Float[Tensor, "batch tokens features"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch tokens features"]:
        """e(x) + s eps, one draw of every point's q."""
        latent = self.encoder(points)
        noise = torch.randn(latent.shape, generator=generator, dtype=latent.dtype, device=latent.device)
        return latent + self.log_scale.exp() * noise

    def forward(self, points: Float[Tensor, "batch tokens features"], mixture: SlotPosterior) -> None:
        """Site latent; the mixture has no part in it."""
        with pyro.plate("images", len(points), dim=-2), pyro.plate("tokens", points.shape[1], dim=-1):
            pyro.sample("latent", dist.Normal(self.encoder(points), self.log_scale.exp()).to_event(1))
