"""A trained run on scenes: its slots, its masks, and how these fit the true ones."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.images import ImageSet
from psa.metrics import foreground_ari, mean_squared_error, num_objects

CHUNK = 250


@dataclass(frozen=True)
class Segmented:
    """What a run makes of M scenes.

    Attributes:
        slots: (M, K, D), read-outs.
        labels: (M, H, W), the slot of each pixel by the run's own masks.
        foreground_ari: Mean over the scenes of at least two objects.
        mse: Mean squared error of the pictures.
    """

    slots: Float[Tensor, "images slots features"]
    labels: Int64[Tensor, "images height width"]
    foreground_ari: float
    mse: float


@torch.no_grad()
def segment(autoencoder: SlotAutoencoder, scenes: ImageSet) -> Segmented:
    """Encode and decode scenes; random starts are those of one seed, the same for every run."""
    torch.manual_seed(0)
    slots, labels, errors = [], [], []
    for start in range(0, len(scenes), CHUNK):
        images = autoencoder.prepare(scenes.images[start : start + CHUNK])
        _, found, masks = autoencoder.encode(images)
        scene = autoencoder.decode(found)
        slots.append(found.cpu())
        labels.append(autoencoder.labels(scene, masks).cpu())
        errors.append(mean_squared_error(scene.mean, images).cpu())
    segments = torch.cat(labels)
    return Segmented(torch.cat(slots), segments, score_labels(segments, scenes), float(torch.cat(errors).mean()))


def score_labels(labels: Int64[Tensor, "images height width"], scenes: ImageSet) -> float:
    """Mean foreground ARI over the scenes of at least two objects."""
    assert scenes.masks is not None
    several = num_objects(scenes.masks, scenes.background) >= 2
    return float(foreground_ari(labels, scenes.masks, scenes.background)[several].mean())
