"""Predicted sets of objects with properties, held against the true sets: average precision at distance thresholds."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from psa.metrics.contingency import first_of_each
from psa.metrics.detection import average_precision

THRESHOLDS = (math.inf, 1.0, 0.5, 0.25, 0.125)
EXACT = "donot_use_mm_for_euclid_dist"  # a matrix product rounds a distance of 0 to 1e-4


@dataclass(frozen=True)
class ObjectSets:
    """A set of objects for each image; the order of an image's objects means nothing.

    Attributes:
        categories: (B, O, C), the code of each categorical property.
        coordinates: (B, O, P), what distances are taken of, in one unit.
        presence: (B, O): of true sets 1 for an object and 0 for padding, of predicted ones the confidence that there is
            an object.
    """

    categories: Int64[Tensor, "batch objects categories"]
    coordinates: Float[Tensor, "batch objects axes"]
    presence: Float[Tensor, "batch objects"]


def set_average_precision(predicted: ObjectSets, true: ObjectSets, threshold: float = math.inf) -> float:
    """Average precision of predicted objects over all images, as Slot Attention and SMM report it on CLEVR.

    A prediction points at the nearest object of its image of which all its categories are right. It counts when that
    object is nearer than the threshold and no more confident prediction that counts points at it. Every prediction is
    ordered by its confidence, also one that is hardly confident; recall is of the true objects, and the area is
    that of ``psa.metrics.detection.average_precision``.

    Args:
        predicted: K of each image.
        true: O of each image.
        threshold: Of the Euclidean distance, in the unit of coordinates; the papers' are in that of CLEVR's scenes,
            where coordinates go from -3 to 3. Infinity asks for categories alone.

    Returns:
        In [0, 1]; NaN without a true object.

    Raises:
        ValueError: If the sets are of other images or other properties, or the threshold is not positive.

    Reference: Locatello et al., Slot Attention, 2020, section 4.2 (google-research/slot_attention/utils.py); Zhang et
    al., Deep set prediction networks, 2019.
    """
    if not threshold > 0:
        raise ValueError(f"threshold: expected a positive distance, came {threshold}")
    _require_alike(predicted, true)
    right = (predicted.categories[:, :, None] == true.categories[:, None]).all(3) & (true.presence > 0.5)[:, None]
    distance = torch.cdist(predicted.coordinates.double(), true.coordinates.double(), compute_mode=EXACT)
    nearest, which = distance.masked_fill(~right, math.inf).min(2)
    within = right.any(2) & (nearest < threshold)
    num_images, num_objects = true.presence.shape
    pointed = (which + num_objects * torch.arange(num_images, device=which.device)[:, None]).flatten()
    confidence = predicted.presence.flatten()
    counts = first_of_each(pointed, confidence, within.flatten(), num_images * num_objects)
    return average_precision(counts, confidence, int((true.presence > 0.5).sum()))


def _require_alike(predicted: ObjectSets, true: ObjectSets) -> None:
    for name in ("categories", "coordinates"):
        ours, theirs = getattr(predicted, name).shape, getattr(true, name).shape
        if (ours[0], ours[2]) != (theirs[0], theirs[2]):
            expected = f"{theirs[0]} images with {theirs[2]} a row"
            raise ValueError(f"predicted.{name}: expected {expected}, came {tuple(ours)}")
