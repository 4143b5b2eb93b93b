"""How many objects a scene has, and scenes chosen by it: the CLEVR6 way to split by difficulty."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from psa.data.description import DatasetInfo, Scene
from psa.data.options import require_integer
from psa.errors import ConfigError


def count_objects(scene: Scene, info: DatasetInfo) -> int | None:
    """How many objects are in a scene; background and what is not visible do not count; None where nothing tells.

    Told by the factor ``visibility`` where it has an entry for each slot, with or without those of the background,
    which come first; else by ``num_objects``; else by the labels of the mask: an object without a pixel is hidden.
    """
    factors = scene.factors or {}
    visible = np.ravel(factors.get("visibility", ())) > 0
    num_slots, num_background = info.num_slots or 0, len(_background(info))
    if num_slots and len(visible) in (num_slots, num_slots - num_background):
        return int(visible[len(visible) - (num_slots - num_background) :].sum())
    if "num_objects" in factors and np.size(factors["num_objects"]) == 1:
        return int(np.ravel(factors["num_objects"])[0])
    if scene.mask is None:
        return None
    return int((~np.isin(np.unique(scene.mask), list(no_objects(info)))).sum())


def no_objects(info: DatasetInfo) -> tuple[int, ...]:
    """Labels that are no objects: the background's, and those of pixels that nothing is told of."""
    return (*info.background_labels, *getattr(info, "ignored_labels", ()))


@dataclass(frozen=True)
class ObjectRange:
    """Scenes of so many objects; None is no bound.

    Attributes:
        min_objects: the fewest.
        max_objects: the most.
    """

    min_objects: int | None = None
    max_objects: int | None = None

    def __post_init__(self) -> None:
        if self.min_objects is not None:
            require_integer("min_objects", self.min_objects, 0)
        if self.max_objects is not None:
            require_integer("max_objects", self.max_objects, self.min_objects or 0)

    def keeps(self, scene: Scene, info: DatasetInfo, source: str) -> bool:
        """Whether a scene is one of them.

        Raises:
            ConfigError: There is a bound, and nothing tells the number of objects.
        """
        if self.min_objects is None and self.max_objects is None:
            return True
        count = count_objects(scene, info)
        if count is None:
            raise ConfigError(
                f"{source}: expected a mask or the factor num_objects, to choose scenes by objects, found none"
            )
        return (self.min_objects or 0) <= count <= (np.inf if self.max_objects is None else self.max_objects)

    def record(self) -> dict[str, Any]:
        """The bounds that there are."""
        return {name: value for name, value in vars(self).items() if value is not None}


def _background(info: DatasetInfo) -> tuple[int, ...]:
    """Background labels that are slots; VOC's 255 is none."""
    return tuple(label for label in info.background_labels if label < (info.num_slots or 0))
