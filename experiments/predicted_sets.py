"""Sets of sprites predicted from slots: the network, average precision at the papers' thresholds, sets as scenes."""

import math

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from psa.data.colours import from_hsv
from psa.data.layers import Bounds
from psa.data.object_sets import SPRITES
from psa.data.sprite_raster import Objects, rasterise
from psa.data.sprites import PALETTE
from psa.inference.images import ImageSet
from psa.inference.set_prediction import PropertyHead, PropertyLayout
from psa.inference.slot_inference import SlotInference
from psa.metrics.sets import ObjectSets, set_average_precision

UNIT = 6.0  # the papers' coordinates go from -3 to 3
THRESHOLDS = {"inf": math.inf, "1": 1.0, "0.5": 0.5, "0.25": 0.25, "0.2": 0.2, "0.125": 0.125, "0.1": 0.1}
LAYOUT = PropertyLayout(len(SPRITES.coordinates), SPRITES.num_codes)
CHUNK = 250


class Predictor(nn.Module):
    """Images -> slots -> the vector of an object for each slot."""

    def __init__(self, encoder: nn.Module, inference: SlotInference, head: PropertyHead) -> None:
        super().__init__()
        self.encoder, self.inference, self.head = encoder, inference, head
        self.device = next(head.parameters()).device

    def slots(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B, K, D) of images (B, 3, H, W)."""
        tokens = self.encoder(images.to(self.device))
        return self.inference.slots(self.inference(tokens, generator=generator))

    @torch.no_grad()
    def slots_of(self, images: ImageSet) -> Tensor:
        """Slots (M, K, D), with the same starts at every call."""
        generator = torch.Generator(self.device).manual_seed(0)
        with images.chunks(CHUNK) as chunks:
            return torch.cat([self.slots(chunk.batch(slice(None)), generator) for chunk in chunks])

    @torch.no_grad()
    def predict(self, images: ImageSet) -> Tensor:
        """Vectors (M, K, width)."""
        return self.head(self.slots_of(images)).cpu()


def precisions(predicted: ObjectSets, true: ObjectSets) -> dict[str, float]:
    """Average precision at each threshold, by its name; coordinates are in sides of the image."""
    ours, theirs = (ObjectSets(one.categories, UNIT * one.coordinates, one.presence) for one in (predicted, true))
    return {name: set_average_precision(ours, theirs, threshold) for name, threshold in THRESHOLDS.items()}


def painted(predicted: ObjectSets, size: int) -> UInt8[np.ndarray, "scenes size size 3"]:
    """Sets as the generator paints them; what is predicted to be there at less than a half is left out."""
    present = predicted.presence.numpy() > 0.5
    shape, hue = (predicted.categories[:, :, i].numpy() for i in range(2))
    place = predicted.coordinates.numpy()
    turns = hue / len(PALETTE)
    depth = np.cumsum(present, axis=1) * present
    radius = (place[:, :, 2] * present).astype(np.float32)
    masks, _ = rasterise(Objects((shape + 1) * present, turns, depth, radius, place[:, :, :2]), size, Bounds(0.0, 1.0))
    colours = from_hsv(np.stack([turns, np.ones_like(turns), np.ones_like(turns)], axis=-1))
    colours = np.concatenate([np.zeros((len(colours), 1, 3), np.uint8), colours], axis=1)
    return colours[np.arange(len(masks))[:, None, None], masks]
