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

MIN_CHANGE = 0.25
MIN_SHARE = 0.015
MIN_RIM = 0.05


@dataclass(frozen=True)
class SceneRoles:
    """The roles of the slots of a batch of scenes; slots that are neither are empty.

    Attributes:
        background: (B,), the slot that owns most of the image's rim and is no object's.
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
    """The background is what shows at the rim; objects are the other slots whose absence would show.

    Args:
        scene: Decoded slots; those that were not decoded have masks of 0 and are empty.
        min_change: How much a channel of a pixel must change, in units of the image's range.
        min_share: Share of the image that must change for a slot to be an object, in (0, 1).

    Raises:
        ValueError: If min_share is outside (0, 1).
    """
    if not 0.0 < min_share < 1.0:
        raise ValueError(f"min_share must be between 0 and 1, got {min_share}")
    num_slots, num_pixels = scene.rgb.shape[1], scene.log_masks[0, 0].numel()
    background = _find_background(scene, min_change, min_share * num_pixels)
    is_background = torch.nn.functional.one_hot(background, num_slots).bool()
    left = torch.ones_like(is_background)
    for _ in range(num_slots - 1):
        change = change_without(scene, left).flatten(2)
        missed = (change > min_change).sum(2).masked_fill(is_background | ~left, num_pixels + 1)
        fewest = missed.amin(1, keepdim=True)
        # of slots that are missed at as few pixels the one of least change, so that their order says nothing
        slot = change.sum(2).masked_fill(missed > fewest, torch.inf).argmin(1, keepdim=True)
        left = left.scatter(1, slot, left.gather(1, slot) & (fewest >= min_share * num_pixels))
    return SceneRoles(background, left & ~is_background)


def roles_of_masks(masks: Float[Tensor, "batch slots height width"], min_share: float = MIN_SHARE) -> SceneRoles:
    """Roles by masks alone, for slots without pictures: the background owns most of the rim, an object enough pixels.

    Args:
        masks: (B, K, H, W), sums to 1 over K; of the attention, say.
        min_share: Share of the image that a slot must own to be an object, in (0, 1).

    Raises:
        ValueError: If min_share is outside (0, 1).
    """
    if not 0.0 < min_share < 1.0:
        raise ValueError(f"min_share must be between 0 and 1, got {min_share}")
    num_slots = masks.shape[1]
    owned = torch.nn.functional.one_hot(masks.argmax(1), num_slots).bool().movedim(-1, 1)
    rim = _rim(owned[0, 0])
    background = (owned[:, :, rim].sum(2) + masks[:, :, rim].mean(2)).argmax(1)
    is_background = torch.nn.functional.one_hot(background, num_slots).bool()
    return SceneRoles(background, (owned.flatten(2).double().mean(2) >= min_share) & ~is_background)


def rim_pixels(scene: DecodedScene) -> Bool[Tensor, "height width"]:
    """The outermost pixels."""
    return _rim(scene.log_masks[0, 0])


def _rim(like: Float[Tensor, "height width"] | Bool[Tensor, "height width"]) -> Bool[Tensor, "height width"]:
    rim = torch.ones_like(like, dtype=torch.bool)
    rim[1:-1, 1:-1] = False
    return rim


def _find_background(scene: DecodedScene, min_change: float, min_pixels: float) -> Int64[Tensor, " batch"]:
    """The slot that owns most of the rim, unless that is an object's; of two that own as much, by their masks there.

    Where decoders paint the background alike, an object's slot may own much of the rim: it would be missed, but not at
    the rim. Only slots that own a twentieth of the rim come into question; if all of them are objects', the largest is
    taken.
    """
    rim = rim_pixels(scene)
    missed = change_without(scene, torch.ones_like(scene.rgb[:, :, 0, 0, 0], dtype=torch.bool)) > min_change
    mine = torch.nn.functional.one_hot(scene.labels[:, rim], scene.rgb.shape[1]).bool().movedim(-1, 1)
    missed_at_rim = (missed[:, :, rim] & mine).sum(2) >= 0.5 * mine.sum(2)
    owned = (mine.sum(2) + scene.masks[:, :, rim].mean(2)) / rim.sum()
    suits = ((missed.flatten(2).sum(2) < min_pixels) | missed_at_rim) & (owned >= MIN_RIM)
    return torch.where(suits.any(1), owned.masked_fill(~suits, -1.0).argmax(1), owned.argmax(1))


def change_without(scene: DecodedScene, left: Bool[Tensor, "batch slots"]) -> Float[Tensor, "batch slots height width"]:
    """How a picture of the slots that are left changes without each one of them: the largest change of a channel.

    x - x_-k = mask_k (rgb_k - x) / (1 - mask_k), with masks normalised over the slots that are left. Where no slot is
    left, a picture is black.
    """
    log_masks = scene.log_masks.masked_fill(~left[:, :, None, None], -torch.inf)
    masks, mean = _composed(scene, log_masks)
    change = masks / (1.0 - masks) * (scene.rgb - mean[:, None]).abs().amax(2)
    # under a pixel's owner both factors of a sharp decoder are rounding: the others are composed by themselves
    owner = log_masks.argmax(1, keepdim=True)
    _, under = _composed(scene, log_masks.scatter(1, owner, -torch.inf))
    return change.scatter(1, owner, (mean - under).abs().amax(1, keepdim=True))


def _composed(scene: DecodedScene, log_masks: Tensor) -> tuple[Tensor, Tensor]:
    """Masks that sum to 1 over the slots, 0 where there is no slot, and the picture (B, C, H, W)."""
    masks = log_masks.softmax(1).nan_to_num(0.0)
    return masks, (masks[:, :, None] * scene.rgb).sum(1)
