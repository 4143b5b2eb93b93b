"""The scene program whose image is a map of features told one position after the other (docs/decoders.md)."""

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from psa.models.decoders.features import FeatureTransformerDecoder
from psa.models.scene import SceneModel


class FeatureSequenceModel(SceneModel):
    """s_1..s_K ~ p(s); f_l ~ Normal(m_l(s, f_<l), sigma^2 I), l row-major.

    ``decoder`` is a :class:`psa.models.decoders.features.FeatureTransformerDecoder`.
    """

    decoder: FeatureTransformerDecoder

    def observe(
        self,
        slots: Float[Tensor, "batch slots features"],
        active: Bool[Tensor, "batch slots"] | None,
        images: Float[Tensor, "batch channels height width"],
    ) -> None:
        """Site image, the map of features."""
        means = self.decoder.means(images, slots, active)
        pyro.sample("image", dist.Normal(means, self.sigma, validate_args=False).to_event(3), obs=images)

    @torch.no_grad()
    def draw_images(self, slots: Float[Tensor, "batch slots features"]) -> Float[Tensor, "batch channels height width"]:
        """f ~ p(f | s), with its noise."""
        return self.decoder.draw(slots, self.sigma)
