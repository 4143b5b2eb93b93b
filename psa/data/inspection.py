"""What is in a data set, found by reading some of it."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from psa.data.description import MapDataset, Points, Scene
from psa.data.object_counts import count_objects, no_objects

Progress = Callable[[int, int], object]


@dataclass
class Range:
    """Least and largest of numbers that come in parts; NaN where only NaN came."""

    least: float = np.inf
    most: float = -np.inf

    def add(self, values: NDArray[Any]) -> None:
        """Take in more numbers; those that are not finite are left out."""
        finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
        if finite.size:
            self.least = min(self.least, finite.min().item())
            self.most = max(self.most, finite.max().item())

    def record(self) -> list[float] | None:
        """[least, largest]; None where no number came."""
        return [self.least, self.most] if self.least <= self.most else None


@dataclass
class FactorFigures:
    """Of one factor: its shapes and types with the number of items of each, and its range."""

    shapes: Counter[str] = field(default_factory=Counter)
    range: Range = field(default_factory=Range)


def spread_indices(num_items: int, limit: int | None) -> list[int]:
    """At most ``limit`` items at even distances, the first and the last among them."""
    count = num_items if limit is None else min(limit, num_items)
    return np.unique(np.linspace(0, num_items - 1, count).round().astype(np.int64)).tolist()


def inspect_items(dataset: MapDataset[Any], indices: Sequence[int], progress: Progress | None = None) -> dict[str, Any]:
    """Figures of some items.

    Args:
        dataset: Of scenes or points.
        indices: The items, at least one.
        progress: Is told how many have been read, and how many there are.

    Returns:
        For scenes ``sizes`` (items of each), ``value_range`` of the images, ``labels`` (pixels and images of each;
        None without masks), ``objects`` (images of each number, without the background; None where nothing tells),
        ``factors`` (shapes, range, unit). For points the same of tokens and their labels.
    """
    figures = _Figures()
    for done, index in enumerate(indices):
        if progress:
            progress(done, len(indices))
        item = dataset[index]
        if isinstance(item, Scene):
            figures.add_scene(item, count_objects(item, dataset.info))
        else:
            figures.add_points(item)
    if progress:
        progress(len(indices), len(indices))
    return figures.record(no_objects(dataset.info), dataset.info.factors)


@dataclass
class _Figures:
    sizes: Counter[str] = field(default_factory=Counter)
    values: Range = field(default_factory=Range)
    pixels: Counter[int] = field(default_factory=Counter)
    images: Counter[int] = field(default_factory=Counter)
    objects: Counter[int] = field(default_factory=Counter)
    factors: dict[str, FactorFigures] = field(default_factory=dict)

    def add_scene(self, scene: Scene, num_objects: int | None) -> None:
        self._add_values(scene.image, scene.mask)
        if num_objects is not None:
            self.objects[num_objects] += 1
        for name, values in (scene.factors or {}).items():
            found = self.factors.setdefault(name, FactorFigures())
            found.shapes[f"{values.dtype} {values.shape}"] += 1
            found.range.add(values)

    def add_points(self, points: Points) -> None:
        self._add_values(points.tokens, points.labels)
        if points.labels is not None:
            self.objects[len(np.unique(points.labels))] += 1

    def _add_values(self, values: NDArray[Any], labels: NDArray[Any] | None) -> None:
        self.sizes["x".join(map(str, values.shape[:2]))] += 1
        self.values.add(values)
        if labels is not None:
            found, counts = np.unique(labels, return_counts=True)
            self.pixels.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
            self.images.update(found.tolist())

    def record(self, background: Sequence[int], units: Mapping[str, str]) -> dict[str, Any]:
        labels = [
            {"label": label, "pixels": self.pixels[label], "images": self.images[label]}
            | ({"background": True} if label in background else {})
            for label in sorted(self.pixels)
        ]
        factors = {
            name: {"shapes": dict(found.shapes), "range": found.range.record(), "unit": units.get(name)}
            for name, found in sorted(self.factors.items())
        }
        return {
            "sizes": dict(self.sizes),
            "value_range": self.values.record(),
            "labels": labels or None,
            "objects": {number: self.objects[number] for number in sorted(self.objects)} or None,
            "factors": factors,
        }
