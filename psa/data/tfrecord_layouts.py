"""The layouts of DeepMind's multi-object data sets: which features a record has, and how they become a scene.

Source: github.com/google-deepmind/multi_object_datasets; entities there include the background, which comes first.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Int64, UInt8

from psa.data.description import Scene
from psa.errors import DataError

ON = 255  # the value of a mask's pixels that belong to the entity; the others are 0


@dataclass(frozen=True)
class Factor:
    """What is known of each entity: numbers of a type, ``width`` of them, or one without an axis where it is None."""

    dtype: str = "float32"
    width: int | None = None


CODE = Factor("uint8")
XY_SHAPE = {name: Factor() for name in ("x", "y", "shape", "visibility")}
CLEVR = {name: Factor() for name in ("x", "y", "z", "rotation", "visibility")}
CLEVR |= {"pixel_coords": Factor(width=3), "size": CODE, "material": CODE, "shape": CODE, "color": CODE}
DSPRITES = {**XY_SHAPE, "scale": Factor(), "orientation": Factor()}


@dataclass(frozen=True)
class Layout:
    """What the records of a data set have in common.

    Attributes:
        name: of the data set.
        height: of images and masks, in pixels.
        width: likewise.
        num_entities: E, masks of a record, the background's included.
        channels: 1 for gray images, 3 for RGB.
        entity_axis: ``first`` for masks (E, H, W), ``third`` for (H, W, E).
        num_background: how many of the first entities are no objects.
        factors: what a record may tell beside image and mask, each with E along axis 0.
    """

    name: str
    height: int
    width: int
    num_entities: int
    channels: int = 3
    entity_axis: Literal["first", "third"] = "first"
    num_background: int = 1
    factors: Mapping[str, Factor] = field(default_factory=dict)


LAYOUTS = (
    Layout("CLEVR with masks", 240, 320, 11, factors=CLEVR),
    Layout("Tetrominoes", 35, 35, 4, factors={**XY_SHAPE, "color": Factor(width=3)}),
    *(
        Layout(
            "Multi-dSprites",
            64,
            64,
            entities,
            channels,
            "third",
            factors={**DSPRITES, "color": Factor("float32", channels)},
        )
        for entities, channels in ((4, 1), (5, 3), (6, 3))
    ),
    *(Layout("ObjectsRoom", 64, 64, entities, num_background=4) for entities in (4, 7, 10)),
)


def recognise(features: Mapping[str, np.ndarray], source: str) -> Layout:
    """The layout whose image and masks have as many bytes as the record's: no two layouts agree in both.

    Args:
        features: the values of a record by name, each (values,) of uint8, float32 or int64.
        source: what to name in the error.

    Raises:
        DataError: no image, no mask, or none of the layouts' sizes.
    """
    for name in ("image", "mask"):
        if name not in features:
            raise DataError(f"{source}: expected a feature {name!r}, found {', '.join(sorted(features)) or 'none'}")
        if features[name].dtype != np.uint8:
            raise DataError(f"{source}: {name!r}: expected bytes, got {features[name].dtype}")
    sizes = features["image"].size, features["mask"].size
    for layout in LAYOUTS:
        pixels = layout.height * layout.width
        if sizes == (pixels * layout.channels, pixels * layout.num_entities):
            return layout
    names = ", ".join(dict.fromkeys(layout.name for layout in LAYOUTS))
    raise DataError(
        f"{source}: expected the sizes of {names}, got an image of {sizes[0]} and masks of {sizes[1]} bytes"
    )


def to_scene(features: Mapping[str, np.ndarray], layout: Layout, source: str) -> Scene:
    """A record of the layout as a scene; factors that it lacks are lacking.

    Raises:
        DataError: masks that are not 0 or 255, or a feature that the layout has not, or has otherwise.
    """
    factors = {
        name: _factor(values, name, layout, source)
        for name, values in sorted(features.items())
        if name not in ("image", "mask")
    }
    image = features["image"].reshape(layout.height, layout.width, layout.channels)
    rgb = image if layout.channels == 3 else np.repeat(image, 3, axis=2)
    is_first = layout.entity_axis == "first"
    axes = (-1, layout.height, layout.width) if is_first else (layout.height, layout.width, -1)
    masks = features["mask"].reshape(axes)
    labels = _labels(masks if is_first else np.moveaxis(masks, 2, 0), factors.get("visibility"), source)
    return Scene(rgb, labels, factors or None)


def _factor(values: np.ndarray, name: str, layout: Layout, source: str) -> np.ndarray:
    if name not in layout.factors:
        known = ", ".join(["image", "mask", *layout.factors])
        raise DataError(f"{source}: {name!r}: no such feature in {layout.name}, expected {known}")
    factor = layout.factors[name]
    count = layout.num_entities * (factor.width or 1)
    if values.dtype != factor.dtype or len(values) != count:
        raise DataError(f"{source}: {name!r}: expected {count} of {factor.dtype}, got {len(values)} of {values.dtype}")
    return values if factor.width is None else values.reshape(layout.num_entities, factor.width)


def _labels(
    masks: UInt8[np.ndarray, "entities height width"], visibility: np.ndarray | None, source: str
) -> Int64[np.ndarray, "height width"]:
    """The last visible entity that claims each pixel, since sprites are drawn in order; 0 where none does."""
    claimed = masks == ON
    if not (claimed | (masks == 0)).all():
        raise DataError(f"{source}: 'mask': expected values 0 or {ON}, got others")
    labels = np.zeros(masks.shape[1:], np.int64)
    for entity in range(1, len(masks)):
        if visibility is None or visibility[entity] > 0:
            labels[claimed[entity]] = entity
    return labels
