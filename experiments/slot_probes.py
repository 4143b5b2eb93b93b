"""What small networks read off the slots of sprites: shape, colour, size and place (covariance paper, table 2)."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from psa.data import Scene
from psa.metrics import ObjectFactors, probe_slots, slots_of_objects

CATEGORICAL = "shape"
FACTORS = (CATEGORICAL, "colour", "size", "x", "y")
CHANNELS = ("red", "green", "blue")


def sprite_factors(scenes: Sequence[Scene]) -> ObjectFactors:
    """Shape, the channels of the colour, radius or scale, and place of the objects of sprites or multi-dsprites."""
    known = [scene.factors or {} for scene in scenes]
    drawn = {name: torch.from_numpy(np.stack([factors[name] for factors in known])) for name in known[0]}
    present = drawn["visibility"] > 0
    values = {name: drawn[name] for name in (CATEGORICAL, "x", "y")}
    values["size"] = drawn["size" if "size" in drawn else "scale"]
    values |= dict(zip(CHANNELS, drawn["color"].unbind(2), strict=True))
    return ObjectFactors(values, present, (CATEGORICAL,))


def probe_objects(
    slots: Float[Tensor, "batch slots features"],
    labels: Int64[Tensor, "batch height width"],
    true: Int64[Tensor, "batch height width"],
    factors: ObjectFactors,
    hidden_dim: int,
) -> Mapping[str, float]:
    """By FACTORS: accuracy of the shape, R2 of the others (of the colour the mean over channels).

    Args:
        slots: (M, K, D).
        labels: (M, H, W), the slot of each pixel.
        true: (M, H, W), object e as e + 1.
        factors: Of the objects.
        hidden_dim: Of the probes.

    Raises:
        ValueError: If there are more objects than slots.
    """
    found, objects = _one_hot(labels, 0, slots.shape[1]), _one_hot(true, 1, factors.present.shape[1])
    scores = probe_slots(slots, factors, slots_of_objects(found.float(), objects.float()), hidden_dim=hidden_dim)
    colour = float(np.mean([scores.r2[channel] for channel in CHANNELS]))
    return {
        CATEGORICAL: scores.accuracy[CATEGORICAL],
        "colour": colour,
        **{name: scores.r2[name] for name in ("size", "x", "y")},
    }


def _one_hot(
    labels: Int64[Tensor, "batch height width"], first: int, count: int
) -> Bool[Tensor, "batch labels pixels"]:
    wanted = torch.arange(first, first + count)
    return (labels[:, None] == wanted[:, None, None]).flatten(2)
