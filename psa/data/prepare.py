"""Crop and resize for every reader: images antialiased, masks by the nearest pixel so that no label is made up."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from psa.data.options import require_choice, require_integer
from psa.errors import ConfigError

CROPS = ("none", "center")


@dataclass(frozen=True)
class Preparation:
    """What is done to each image and its mask before it is an item; build it with ``from_options``.

    Attributes:
        size: (height, width) of the result; None keeps what there is.
        crop: ``center`` first takes the largest centred box of the aspect ratio of size (a square without one).
    """

    size: tuple[int, int] | None = None
    crop: str = "none"

    @classmethod
    def from_options(cls, size: object = None, crop: object = "none") -> "Preparation":
        """Checks what a user gave: size an integer (a square) or (height, width)."""
        return cls(size=_checked_size(size), crop=require_choice("crop", crop, CROPS))

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """The part of an image that is kept: (top, left, height, width)."""
        if self.crop == "none":
            return 0, 0, height, width
        rows, columns = self.size or (1, 1)
        kept_width = min(width, max(1, round(height * columns / rows)))
        kept_height = min(height, max(1, round(width * rows / columns)))
        return (height - kept_height) // 2, (width - kept_width) // 2, kept_height, kept_width

    def result_size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) that an image of the given size ends with."""
        return self.size or self.box(height, width)[2:]

    def image(self, image: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "rows columns 3"]:
        """The image cropped, then resized with an antialiased bilinear filter."""
        top, left, height, width = self.box(*image.shape[:2])
        cropped = image[top : top + height, left : left + width]
        rows, columns = self.result_size(*image.shape[:2])
        if (rows, columns) == (height, width):
            return cropped
        return np.array(Image.fromarray(cropped).resize((columns, rows), Image.Resampling.BILINEAR))

    def mask(self, mask: Int64[np.ndarray, "height width"]) -> Int64[np.ndarray, "rows columns"]:
        """The mask cropped, then resized by taking the nearest pixel: no label appears that was not there."""
        top, left, height, width = self.box(*mask.shape)
        rows, columns = self.result_size(*mask.shape)
        if (rows, columns) == (height, width):
            return mask[top : top + height, left : left + width]
        return mask[np.ix_(top + _nearest(height, rows), left + _nearest(width, columns))]


def _nearest(length: int, new_length: int) -> Int64[np.ndarray, " pixels"]:
    """For each new pixel the old pixel that its centre falls in."""
    return (2 * np.arange(new_length, dtype=np.int64) + 1) * length // (2 * new_length)


def _checked_size(size: object) -> tuple[int, int] | None:
    if size is None:
        return None
    if isinstance(size, list | tuple):
        if len(size) != 2:
            raise ConfigError(f"data.size: expected an integer or (height, width), got {size!r}")
        return require_integer("size", size[0], 1), require_integer("size", size[1], 1)
    side = require_integer("size", size, 1)
    return side, side
