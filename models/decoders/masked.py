"""What every masked decoder is: each slot painted alone, and a softmax over slots that composes the paintings."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from psa.records import DecodedScene


def require_active(active: Bool[Tensor, "batch slots"]) -> None:
    """ValueError if an image has no active slot."""
    if not bool(active.any(1).all()):
        image = int((~active.any(1)).nonzero()[0, 0])
        raise ValueError(f"active must keep at least one slot an image, image {image} has none")


class MaskedDecoder(nn.Module, ABC):
    """slot -> picture and mask logit; masks are the softmax of the logits over the slots of an image."""

    @abstractmethod
    def paint(self, slots: Float[Tensor, "slots features"]) -> Float[Tensor, "slots layers height width"]:
        """Channels, RGB or features, and the mask logit of slots, whichever image they are of."""

    def forward(
        self, slots: Float[Tensor, "batch slots features"], active: Bool[Tensor, "batch slots"] | None = None
    ) -> DecodedScene:
        """Pictures and masks of slots.

        Args:
            slots: (B, K, D).
            active: (B, K), the slots to decode, at least one an image; all of them by default. The others are not
                painted: their masks are 0 and their pictures black.

        Raises:
            ValueError: If an image has no active slot.
        """
        batch, num_slots, _ = slots.shape
        if active is None:
            painted = self.paint(slots.flatten(0, 1)).unflatten(0, (batch, num_slots))
            return DecodedScene(rgb=painted[:, :, :-1], log_masks=painted[:, :, -1].log_softmax(1))
        require_active(active)
        painted = self.paint(slots[active])
        rgb = painted.new_zeros(batch, num_slots, *painted[0, :-1].shape)
        logits = painted.new_full((batch, num_slots, *painted.shape[2:]), -torch.inf)
        rgb, logits = rgb.index_put((active,), painted[:, :-1]), logits.index_put((active,), painted[:, -1])
        return DecodedScene(rgb=rgb, log_masks=logits.log_softmax(1))
