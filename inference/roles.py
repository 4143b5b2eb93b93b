"""What each slot is in a decoded scene: the background, an object, or nothing (docs/sampling.md). No label is used.

A slot matters where the picture changes without it. Slots are taken out one by one, the one that matters least first,
its pixels shared among those that are left, until each one left would be missed. So slots that repeat the background
are nothing, however many pixels they own, and of two slots that share an object one is left.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from psa.records import DecodedScene

MIN_CHANGE = 0.2
MIN_SHARE = 0.015


@dataclass(frozen=True)
class SceneRoles:
    """The roles of the slots of a batch of scenes; slots that are neither are empty.

    Attributes:
        background: (B,), the slot that owns most of the image's rim.
        objects: (B, K), the slots that are objects; never the background.
    """

    background: Int64[Tensor, " batch"]
    objects: Bool[Tensor, "batch slots"]

    @property
    def num_objects(self) -> Int64[Tensor, " batch"]:
        """(B,), 0..K-1."""
        return self.objects.sum(1)

    @property
    def is_background(self) -> Bool[Tensor, "batch slots"]:
        """(B, K), true at the background's slot."""
        return torch.nn.functional.one_hot(self.background, self.objects.shape[1]).bool()


def find_roles(scene: DecodedScene, min_change: float = MIN_CHANGE, min_share: float = MIN_SHARE) -> SceneRoles:
    """The background is the slot that owns most of the rim; objects are the others whose absence would show.

    Args:
        scene: Decoded slots; those that were not decoded have masks of 0 and are empty.
        min_change: How much a channel of a pixel must change, in units of the image's range.
        min_share: Share of the image that must change for a slot to be an object, in (0, 1).

    Raises:
        ValueError: If min_share is outside (0, 1).
    """
    if not 0.0 < min_share < 1.0:
        raise ValueError(f"min_share must be between 0 and 1, got {min_share}")
    labels = scene.labels
    num_slots = scene.rgb.shape[1]
    rim = torch.cat([labels[:, 0], labels[:, -1], labels[:, 1:-1, 0], labels[:, 1:-1, -1]], dim=1)
    background = torch.nn.functional.one_hot(rim, num_slots).sum(1).argmax(1)
    is_background = torch.nn.functional.one_hot(background, num_slots).bool()
    left = torch.ones_like(is_background)
    for _ in range(num_slots - 1):
        missed = (change_without(scene, left) > min_change).flatten(2).sum(2)
        missed = missed.masked_fill(is_background | ~left, labels[0].numel() + 1)
        fewest, slot = missed.min(1, keepdim=True)
        left = left.scatter(1, slot, left.gather(1, slot) & (fewest >= min_share * labels[0].numel()))
    return SceneRoles(background, left & ~is_background)


def change_without(scene: DecodedScene, left: Bool[Tensor, "batch slots"]) -> Float[Tensor, "batch slots height width"]:
    """How a picture of the slots that are left changes without each one of them: the largest change of a channel.

    x_-k = (x - mask_k rgb_k) / (1 - mask_k), with masks normalised over the slots that are left.
    """
    masks = scene.log_masks.masked_fill(~left[:, :, None, None], -torch.inf).softmax(1)[:, :, None]
    painted = masks * scene.rgb
    mean = painted.sum(1, keepdim=True)
    # where a slot owns a pixel wholly, what is under it is not known well
    return (mean - (mean - painted) / (1.0 - masks).clamp(min=1e-4)).abs().amax(2)
