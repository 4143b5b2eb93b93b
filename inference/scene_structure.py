"""Whether samples are scenes: what a run's own inference finds in pictures that it made (docs/sampling.md)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.roles import MIN_CHANGE, find_roles, rim_pixels

CHUNK = 64
RIM_SHARE = 0.3  # of an image's rim that objects may cover


@dataclass(frozen=True)
class SceneStructure:
    """What was found in n pictures.

    Attributes:
        num_objects: (n,), objects whose absence would show (:mod:`psa.inference.roles`).
        one_background: (n,), whether at least 0.7 of the rim looks like the background slot's own picture: with a
            second background it would not. Where all backgrounds of a data set look alike, this is easily so.
    """

    num_objects: Int64[Tensor, " scenes"]
    one_background: Bool[Tensor, " scenes"]

    def accurate(self, least: int = 1, most: int = 4) -> Float[Tensor, " scenes"]:
        """(n,), 1 where there is one background and the number of objects is in [least, most]."""
        return (self.one_background & (self.num_objects >= least) & (self.num_objects <= most)).double()

    def count_distribution(self, most: int) -> Float[Tensor, " counts"]:
        """Shares of pictures with 0..most objects, of which there must not be more; sums to 1."""
        return torch.bincount(self.num_objects, minlength=most + 1) / len(self.num_objects)


@torch.no_grad()
def find_structure(autoencoder: SlotAutoencoder, pictures: Float[Tensor, "scenes 3 height width"]) -> SceneStructure:
    """Encode pictures, decode their slots, and look for one background and objects. No label is used.

    Args:
        autoencoder: A run.
        pictures: (n, 3, H, W) in [0, 1], samples of the run or images.
    """
    counts, single = [], []
    for part in pictures.split(CHUNK):
        posterior, slots, _ = autoencoder.encode(part)
        scene = autoencoder.decode(slots, autoencoder.guide.active(posterior))
        found = find_roles(scene)
        background = scene.rgb[torch.arange(len(part)), found.background]
        covered = ((scene.mean - background).abs().amax(1) > MIN_CHANGE)[:, rim_pixels(scene)].double().mean(1)
        single.append(covered <= RIM_SHARE)
        counts.append(found.num_objects)
    return SceneStructure(torch.cat(counts).cpu(), torch.cat(single).cpu())


def total_variation(one: Float[Tensor, " counts"], other: Float[Tensor, " counts"]) -> float:
    """Half the sum of absolute differences of two distributions, in [0, 1]."""
    return 0.5 * float((one - other).abs().sum())
