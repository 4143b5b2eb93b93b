"""The scene program whose image is a code: slots -> words, one after the other -> pixels (docs/decoders.md)."""

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from psa.models.decoders.code import CodeTransformerDecoder
from psa.models.dvae import one_hot
from psa.models.scene import SceneModel


class SlotCode(dist.TorchDistribution):
    """z ~ p(z | s), autoregressive; batch (B,), event (L, V), one-hot.

    A relaxed value is taken for the words of its largest entries, and no gradient flows to it: what trains the words is
    the picture they give, and not how well the slots tell them (SLATE's targets).

    Args:
        decoder: Of the slots.
        slots: (B, K, D).
        active: (B, K), the slots that are looked at; all of them where None.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    support = dist.constraints.independent(dist.constraints.simplex, 1)

    def __init__(
        self,
        decoder: CodeTransformerDecoder,
        slots: Float[Tensor, "batch slots features"],
        active: Bool[Tensor, "batch slots"] | None = None,
    ) -> None:
        self.decoder, self.slots, self.active = decoder, slots, active
        event = (decoder.transformer.length, decoder.painter.vocabulary)
        super().__init__(torch.Size((len(slots),)), torch.Size(event), validate_args=False)

    def log_prob(self, value: Float[Tensor, "batch words vocabulary"]) -> Float[Tensor, " batch"]:
        """(B,), in nats: minus the cross-entropy, summed over the words."""
        words = value.argmax(-1)
        log_probs = self.decoder.log_probs(words, self.slots, self.active)
        return log_probs.gather(-1, words[..., None])[..., 0].sum(1)

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Draws (*sample_shape, B, L, V), one-hot."""
        count = torch.Size(sample_shape).numel()
        slots = self.slots.repeat(count, 1, 1)
        active = None if self.active is None else self.active.repeat(count, 1)
        words, _ = self.decoder.draw_words(slots, active)
        code = one_hot(words, self.event_shape[1], like=slots)
        return code.unflatten(0, (count, len(self.slots))).reshape(*sample_shape, len(self.slots), *self.event_shape)


class CodeSceneModel(SceneModel):
    """s_1..s_K ~ p(s); z ~ p(z | s_1..s_K); x ~ Normal(g(z), sigma^2).

    ``decoder`` is a :class:`psa.models.decoders.code.CodeTransformerDecoder`, and g its painter.
    """

    decoder: CodeTransformerDecoder

    def observe(
        self,
        slots: Float[Tensor, "batch slots features"],
        active: Bool[Tensor, "batch slots"] | None,
        images: Float[Tensor, "batch channels height width"],
    ) -> None:
        """Sites code, which the guide must have too, and image."""
        code = pyro.sample("code", SlotCode(self.decoder, slots, active))
        picture = self.decoder.painter(code)
        pyro.sample("image", dist.Normal(picture, self.sigma, validate_args=False).to_event(3), obs=images)

    @torch.no_grad()
    def draw_images(self, slots: Float[Tensor, "batch slots features"]) -> Float[Tensor, "batch channels height width"]:
        """x ~ p(x | s): words drawn, then the noise of the pixels."""
        return self.observation(self.decoder.draw(slots)).sample()
