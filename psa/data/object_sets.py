"""The objects of a data set's scenes as sets: which factors are categories, which coordinates, in what range."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int64, Shaped

from psa.data.clevr import CODES
from psa.data.description import SceneDataset
from psa.data.sprite_raster import SHAPES
from psa.data.sprites import PALETTE
from psa.errors import DataError
from psa.metrics.sets import ObjectSets

PRESENT = "present"
NEAR = 0.01  # of a code, which a factor kept as float32 may be off


@dataclass(frozen=True)
class Category:
    """A factor of few values, of which code c stands for ``first + c / per_unit``.

    Attributes:
        count: Codes.
        first: The value of code 0.
        per_unit: Codes in one unit of the factor.
    """

    count: int
    first: float = 1.0
    per_unit: float = 1.0


@dataclass(frozen=True)
class ObjectProperties:
    """Which factors of objects a set tells; the order is that of the sets' last axes.

    Attributes:
        categories: By factor.
        coordinates: By factor, the values that become 0 and 1. One range for all keeps distances in one unit.
    """

    categories: Mapping[str, Category]
    coordinates: Mapping[str, tuple[float, float]]

    @property
    def num_codes(self) -> tuple[int, ...]:
        """The number of codes of each category."""
        return tuple(category.count for category in self.categories.values())


# Generated sprites of the palette's hues, whose codes go round the colour circle. Radii are sides of the image too.
SPRITES = ObjectProperties(
    {"shape": Category(len(SHAPES)), "hue": Category(len(PALETTE), first=0.0, per_unit=len(PALETTE))},
    {"x": (0.0, 1.0), "y": (0.0, 1.0), "size": (0.0, 1.0)},
)
# CLEVR v1.0, as Slot Attention and SMM predict it: places in scene units from -3 to 3.
CLEVR = ObjectProperties(
    {name: Category(len(CODES.names[name])) for name in ("color", "material", "shape", "size")},
    {"x": (-3.0, 3.0), "y": (-3.0, 3.0), "z": (-3.0, 3.0)},
)


def read_objects(dataset: SceneDataset, properties: ObjectProperties, limit: int | None = None) -> ObjectSets:
    """The objects of scenes: codes from 0, coordinates in [0, 1], and presence; zeros where there is no object.

    An object is there by the factor ``visibility``, or else by ``num_objects``. Where a scene has a row for each of the
    data set's labels (DeepMind's records), the first rows are the background's and are left out.

    Args:
        dataset: Scenes with factors, a row an object.
        properties: Which of the factors.
        limit: The first so many scenes; None for all.

    Raises:
        DataError: A scene without one of the factors, or an object whose value is outside of its range; the scene is
            named.
    """
    count = len(dataset) if limit is None else min(limit, len(dataset))
    names = [*properties.categories, *properties.coordinates]
    scenes = [_factors(dataset, i, names) for i in range(count)]
    values = {name: np.stack([scene[name] for scene in scenes]) for name in (*names, PRESENT)}
    first = len(dataset.info.background_labels) if values[PRESENT].shape[1] == dataset.info.num_slots else 0
    values = {name: column[:, first:] for name, column in values.items()}
    present = values[PRESENT]
    codes, places = np.zeros((0, *present.shape), np.int64), np.zeros((0, *present.shape), np.float32)
    for name, category in properties.categories.items():
        found, good = _codes(values[name], category)
        _require(good | ~present, values[name], dataset, f"{name}: expected one of {category.count} values")
        codes = np.concatenate([codes, np.where(present, found, 0)[None]])
    for name, (low, high) in properties.coordinates.items():
        share = (values[name].astype(np.float64) - low) / (high - low)
        good = (share >= 0) & (share <= 1)
        _require(good | ~present, values[name], dataset, f"{name}: expected a value from {low:g} to {high:g}")
        places = np.concatenate([places, np.where(present, share, 0).astype(np.float32)[None]])
    return ObjectSets(
        torch.from_numpy(codes).movedim(0, 2), torch.from_numpy(places).movedim(0, 2), torch.from_numpy(present).float()
    )


def _factors(dataset: SceneDataset, index: int, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Some factors of a scene, and which of its rows are objects."""
    factors = dataset[index].factors or {}
    if missing := [name for name in names if name not in factors]:
        expected = f"factors {', '.join(names)}"
        raise DataError(f"{dataset.source(index)}: expected {expected}, found no {', '.join(missing)}")
    found = {name: np.asarray(factors[name]) for name in names}
    if "visibility" in factors:
        return found | {PRESENT: np.asarray(factors["visibility"]) > 0}
    if "num_objects" in factors:
        return found | {PRESENT: np.arange(len(found[names[0]])) < int(factors["num_objects"])}
    raise DataError(f"{dataset.source(index)}: expected a factor visibility or num_objects, found neither")


def _codes(
    values: Shaped[np.ndarray, "scenes objects"], category: Category
) -> tuple[Int64[np.ndarray, "scenes objects"], Bool[np.ndarray, "scenes objects"]]:
    """The nearest codes, and where values have one."""
    exact = (values.astype(np.float64) - category.first) * category.per_unit
    codes = np.round(exact).astype(np.int64)
    return codes, (np.abs(exact - codes) < NEAR) & (codes >= 0) & (codes < category.count)


def _require(
    good: Bool[np.ndarray, "scenes objects"],
    values: Shaped[np.ndarray, "scenes objects"],
    dataset: SceneDataset,
    expected: str,
) -> None:
    if not good.all():
        scene, row = np.argwhere(~good)[0]
        raise DataError(f"{dataset.source(int(scene))}: {expected}, got {values[scene, row]:g}")
