"""q(z | x), the guide's part for the words of an image: a discrete VAE's encoder and its temperature."""

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from psa.inference.config import CodeConfig
from psa.inference.keyed_noise import ImageNoise, Site
from psa.models.dvae import CodeEncoder, draw_code, one_hot, temperature_at


class CodeGuide(nn.Module):
    """z ~ the Gumbel-softmax relaxation of the encoder's categoricals, its temperature annealed over training.

    Its entropy is left out, as in the papers: the words need not be uncertain, so the objective is no bound.

    Args:
        encoder: Images -> log-probabilities of words.
        settings: Temperatures, their schedule, and the kind of draw.

    Attributes:
        temperature: Of the relaxation; the last one until training says otherwise.
    """

    def __init__(self, encoder: CodeEncoder, settings: CodeConfig) -> None:
        super().__init__()
        self.encoder, self.settings = encoder, settings
        self.temperature = settings.temperature_end

    def anneal(self, progress: float) -> None:
        """Set the temperature for a share of training done, in [0, 1]."""
        settings = self.settings
        self.temperature = temperature_at(
            progress, settings.temperature_start, settings.temperature_end, settings.anneal_share
        )

    @torch.no_grad()
    def mode(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch words vocabulary"]:
        """The most probable words, one-hot."""
        log_probs = self.encoder(images)
        return one_hot(log_probs.argmax(-1), log_probs.shape[-1], like=log_probs)

    def draw(
        self, images: Float[Tensor, "batch channels height width"], noise: ImageNoise | None = None
    ) -> Float[Tensor, "batch words vocabulary"]:
        """A draw of q(z | x), re-parameterised.

        Args:
            images: In [0, 1].
            noise: Its source, keyed by image; None is torch's global generator.
        """
        log_probs = self.encoder(images)
        if noise is None:
            uniform = torch.rand_like(log_probs, dtype=torch.float64).clamp(min=torch.finfo(torch.float64).tiny)
        else:
            uniform = noise.uniform(Site.WORDS, log_probs.shape[1:])
        return draw_code(log_probs, uniform, self.temperature, self.settings.draw)

    def forward(self, images: Float[Tensor, "batch channels height width"], noise: ImageNoise | None = None) -> Tensor:
        """The Pyro guide's site code, as a point at the draw: its density, and so its entropy, is left out."""
        return pyro.sample("code", dist.Delta(self.draw(images, noise), event_dim=2))
