"""Which object owns each pixel: shapes drawn exactly, without antialiasing, many scenes at once."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8

from psa.data.layers import Bounds

SHAPES = ("square", "circle", "triangle")


@dataclass(frozen=True)
class Objects:
    """The objects of several scenes; an absent one is zero in everything but its hue."""

    shape: Int64[np.ndarray, "scenes objects"]
    hue: Float64[np.ndarray, "scenes objects"]
    depth: Int64[np.ndarray, "scenes objects"]
    radius: Float32[np.ndarray, "scenes objects"]
    centre: Float32[np.ndarray, "scenes objects 2"]

    def take(self, rows: Int64[np.ndarray, " kept"]) -> "Objects":
        """The objects of some of the scenes."""
        return Objects(**{name: values[rows] for name, values in vars(self).items()})


def _half_widths(objects: Objects, size: int) -> Float64[np.ndarray, "scenes objects rows"]:
    """How far each shape reaches left and right of its centre in each row of pixels; -1 in rows it does not reach."""
    radius = objects.radius[..., None].astype(np.float64) * size
    down = np.arange(size) + 0.5 - objects.centre[..., 1:].astype(np.float64) * size
    circle = np.sqrt(np.maximum(radius**2 - down**2, 0))
    widths = np.choose(objects.shape[..., None], [np.full_like(down, -1), radius, circle, (radius + down) / 2])
    return np.where(np.abs(down) <= radius, widths, -1)


def rasterise(
    objects: Objects, size: int, bounds: Bounds
) -> tuple[UInt8[np.ndarray, "scenes size size"], Bool[np.ndarray, "scenes objects"]]:
    """The masks, and which objects are to be moved.

    Those that show less of their pixels than ``bounds.least`` (or none); and, in scenes of several of which each shows
    more than ``bounds.most``, all.
    """
    across = np.abs(np.arange(size) + 0.5 - objects.centre[..., :1].astype(np.float64) * size)
    cover = across[:, :, None, :] <= _half_widths(objects, size)[..., None]
    front = (cover * objects.depth.astype(np.uint8)[..., None, None]).max(axis=1)
    scenes, num_objects = objects.depth.shape
    label_at_depth = np.zeros((scenes, num_objects + 1), np.uint8)
    labels = np.broadcast_to(np.arange(1, num_objects + 1, dtype=np.uint8), objects.depth.shape)
    np.put_along_axis(label_at_depth, objects.depth, labels, axis=1)
    label_at_depth[:, 0] = 0
    mask = np.take_along_axis(label_at_depth, front.reshape(scenes, -1).astype(np.intp), axis=1)
    visible = (front[:, None] == objects.depth[..., None, None]).sum(axis=(2, 3))
    own, present = cover.sum(axis=(2, 3)), objects.depth > 0
    hidden = (visible < bounds.least * own) | (visible == 0)
    is_open = ((visible > bounds.most * own) | ~present).all(axis=1) & (present.sum(axis=1) > 1)
    return mask.reshape(scenes, size, size), (hidden | is_open[:, None]) & present
