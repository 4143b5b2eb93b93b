"""Sprite scenes whose factors are known, and how well slots tell them (docs/identifiability.md)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from psa.data import SpriteOptions, Sprites
from psa.inference.images import ImageSet, read_images
from psa.metrics.identifiability import smcc
from psa.metrics.slot_scores import sis

FACTORS = ("x", "y", "scale", "cos hue", "sin hue", "square", "circle", "triangle")


@dataclass(frozen=True)
class KnownScenes:
    """Scenes of O objects each on black, every one a hue of its own, with what is true of them.

    Attributes:
        images: M of them.
        factors: (M, O + 1, 8), columns as FACTORS: place and radius as fractions of the side, the cosine and sine of
            the hue, and the shape's indicators. The last row is the background's and holds nothing.
        masks: (M, O + 1, N): the share of each token's pixels that an object covers, the background last.
        present: (M, O + 1), all but the background.
    """

    images: ImageSet
    factors: Float[Tensor, "images things factors"]
    masks: Float[Tensor, "images things tokens"]
    present: Bool[Tensor, "images things"]


def draw_scenes(num_objects: int, size: int, stride: int, split: str, num_scenes: int) -> KnownScenes:
    """Scenes of exactly so many objects; their masks in squares of ``stride`` pixels, as tokens have them."""
    options = SpriteOptions(size=size, min_objects=num_objects, max_objects=num_objects, hues="continuous")
    sprites = Sprites(options, split, num_scenes)
    images, drawn = read_images(sprites), sprites.factors
    turn = 2 * math.pi * drawn["hue"]
    columns = [drawn["x"], drawn["y"], drawn["size"], np.cos(turn), np.sin(turn)]
    columns += [drawn["shape"] == shape for shape in (1, 2, 3)]
    factors = torch.from_numpy(np.stack(columns, axis=2).astype(np.float32))
    assert images.masks is not None
    labels = torch.tensor([*range(1, num_objects + 1), 0])
    pixels = (images.masks[:, None] == labels[:, None, None]).float()
    return KnownScenes(
        images,
        torch.nn.functional.pad(factors, (0, 0, 0, 1)),
        torch.nn.functional.avg_pool2d(pixels, stride).flatten(2),
        (labels > 0).expand(num_scenes, -1),
    )


def independent_features(slots: Float[Tensor, "images slots features"]) -> Float[Tensor, "images slots kept"]:
    """The slots without the features that are affine functions of the others.

    Tokens are normalised to sum to zero, so that means of tokens, and affine maps of them, may fill one dimension less
    than they have features; a map from all of them is not determined, and one from the first ones loses nothing.
    """
    rows = slots.flatten(0, 1).double()
    rank = int(torch.linalg.matrix_rank(rows - rows.mean(0), rtol=1e-5))
    return slots[:, :, :rank]


def agreement(
    slots: Float[Tensor, "images slots features"],
    masks: Shaped[Tensor, "images slots tokens"] | None,
    scenes: KnownScenes,
) -> Mapping[str, float]:
    """How well slots tell the true factors, each figure with its null.

    SMCC and R2 are of the affine map of slots to factors. Each object is matched with the slot whose mask overlaps its
    own most in all (or, without masks, by the alternating fit); the slots left over are the background's and count
    nowhere. No slot of an object is left out, however small. SIS takes that matching, and an affine regressor. The null
    has the factors and masks of another image throughout.

    Args:
        slots: (M, O + 1, D).
        masks: (M, O + 1, N), of the slots over tokens; None where slots have none.
        scenes: The same images.
    """
    found: dict[str, float] = {}
    for name, shift in (("", 0), ("null_", 1)):
        factors, true_masks = scenes.factors.roll(shift, 0), scenes.masks.roll(shift, 0)
        told = smcc(
            independent_features(slots),
            factors,
            masks_a=masks,
            masks_b=None if masks is None else true_masks,
            weights_b=scenes.present,
            generator=torch.Generator().manual_seed(0),
        )
        own = sis(slots, factors[:, :-1], slot_of_object(told.matching), generator=torch.Generator().manual_seed(0))
        found |= {f"{name}smcc": told.smcc, f"{name}r2": told.r2, f"{name}sis": own.sis, f"{name}matched": own.matched}
    return found


def slot_of_object(matching: Int64[Tensor, "images slots"]) -> Int64[Tensor, "images objects"]:
    """The slot of each object, from the thing of each slot; the last thing is the background."""
    return matching.argsort(1)[:, :-1]
