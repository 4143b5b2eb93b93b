"""Whether a run has failed, told without labels: everything in one slot, or the image tiled (docs/failures.md)."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from psa.metrics import adjusted_rand_index

ONE_SLOT_SHARE = 0.98
TILING_AGREEMENT = 0.35
UNEXPLAINED = 0.5


@dataclass(frozen=True)
class Health:
    """What can be said of a run's decompositions without labels.

    Attributes:
        largest_share: Mean share of the image that its largest slot owns, in [0, 1].
        layout_agreement: Mean adjusted Rand index between the segmentations of different images, pixel by pixel: near 0
            where segments follow the objects, near 1 where they follow the place.
        unexplained: Squared error of the reconstruction over that of the mean image, in [0, 1] for a useful model.
        problems: One sentence a failure; empty for a run in order.
    """

    largest_share: float
    layout_agreement: float
    unexplained: float
    problems: tuple[str, ...]


def diagnose(
    labels: Int64[Tensor, "batch height width"],
    images: Float[Tensor, "batch channels height width"],
    reconstructions: Float[Tensor, "batch channels height width"],
    num_slots: int,
) -> Health:
    """Look for collapse and tiling in the decompositions of several images.

    Args:
        labels: The slot that owns each pixel.
        images: In [0, 1].
        reconstructions: Of the same images.
        num_slots: K; with one slot, owning everything is no failure.
    """
    share = torch.nn.functional.one_hot(labels.flatten(1), num_slots).double().mean(1).amax(1)
    # Neighbours in the batch are different images.
    agreement = adjusted_rand_index(labels, labels.roll(1, 0)) if len(labels) > 1 else share.new_tensor([math.nan])
    spread = (images - images.mean(0)).square().mean()
    error = (images - reconstructions).square().mean()
    unexplained = float(error / spread) if float(spread) > 0 else math.nan
    largest, layout = float(share.mean()), float(agreement.mean())
    problems = []
    if num_slots > 1 and largest > ONE_SLOT_SHARE:
        problems.append(
            f"one slot owns {largest:.0%} of the average image: the run has collapsed into a single slot. "
            "Train longer, or give the KL less say: a lower objective.kl_weight or a lower objective.sigma"
        )
    elif num_slots > 1 and layout > TILING_AGREEMENT:
        problems.append(
            f"segments follow the place, not the content (agreement {layout:.2f} between different images): the run "
            "has tiled the image. Try another training.seed, learned queries, or more steps"
        )
    if unexplained > UNEXPLAINED:
        problems.append(
            f"reconstructions leave {unexplained:.0%} of the images' variance unexplained: train longer, or use a "
            "wider decoder"
        )
    return Health(largest, layout, unexplained, tuple(problems))
