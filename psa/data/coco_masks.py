"""COCO's outlines of objects, polygons or run lengths, as masks; pycocotools draws them once they are found sound.

Format: cocodataset.org/#format-data. What pycocotools is given unchecked can take a machine's memory: it sizes its
buffers by the numbers in the file.
"""

import warnings
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Bool

from psa.data.json_files import take
from psa.errors import DataError


def mask_tools(source: object) -> ModuleType:
    """The module that draws; it is in the extra ``coco``.

    Raises:
        DataError: It is not installed; the source is named.
    """
    try:
        import pycocotools.mask as tools
    except ImportError as error:
        needed = "expected pycocotools to draw COCO's masks, found none"
        raise DataError(f"{source}: {needed}; pip install 'psa-slots[coco]'") from error
    return tools


def draw(segmentation: object, size: tuple[int, int], source: str) -> Bool[np.ndarray, "height width"]:
    """The pixels of an object.

    Args:
        segmentation: A list of polygons [x1, y1, x2, y2, ...] in pixels, of which those without three points have no
            area; or an object of ``size`` and ``counts``, run lengths down the columns, as a list or compressed.
        size: (height, width) of the picture.
        source: What to name in the error.

    Raises:
        DataError: Something else, or outlines that leave the picture by more than its own size.
    """
    tools = mask_tools(source)
    if isinstance(segmentation, list):
        polygons = [_checked_polygon(polygon, size, source) for polygon in segmentation]
        runs = tools.frPyObjects([polygon for polygon in polygons if len(polygon) >= 6] or [[0.0] * 6], *size)
        runs = tools.merge(runs)
    else:
        runs = _checked_runs(segmentation, size, source)
        if isinstance(runs["counts"], list):
            runs = tools.frPyObjects(runs, *size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # its arrays have no copy keyword for NumPy 2
            return np.asarray(tools.decode(runs)).astype(bool)
    except ValueError as error:
        raise DataError(f"{source}: 'segmentation': expected sound run lengths, got {error}") from error


def _checked_polygon(polygon: Any, size: tuple[int, int], source: str) -> list[float]:
    numbers: list[Any] = polygon if isinstance(polygon, list) else [None]
    if len(numbers) % 2 or not all(isinstance(x, int | float) and not isinstance(x, bool) for x in numbers):
        raise DataError(f"{source}: 'segmentation': expected a polygon [x1, y1, x2, y2, ...], got another list")
    for place, number in enumerate(numbers):
        side = size[1 - place % 2]
        if not -side <= number <= 2 * side:
            raise DataError(f"{source}: 'segmentation': expected a point near the picture, got {number!r:.40}")
    return [float(number) for number in numbers]


def _checked_runs(record: object, size: tuple[int, int], source: str) -> dict[str, Any]:
    height_width = take(record, "size", list, source)
    assert isinstance(record, dict)
    if height_width != list(size):
        raise DataError(f"{source}: 'size': expected {list(size)} as the picture's, got {height_width!r:.40}")
    counts = record.get("counts")
    if isinstance(counts, str) and counts.isascii():
        return {"size": list(size), "counts": counts.encode()}
    lengths: list[Any] = counts if isinstance(counts, list) else [None]
    if not all(type(length) is int and length >= 0 for length in lengths) or sum(lengths) != size[0] * size[1]:
        raise DataError(f"{source}: 'counts': expected run lengths of {size[0] * size[1]} pixels, got others")
    return {"size": list(size), "counts": lengths}
