"""Tokens in chunks that fit the cache: whole images, or parts of a large one."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

CACHED_BYTES = 1 << 21  # of tokens at once on a CPU: what is made of them then stays in the cache
DEVICE_BYTES = 1 << 28


@dataclass(frozen=True)
class Chunk:
    """Tokens ``tokens`` of images ``images``."""

    images: slice
    tokens: slice

    def of(self, tensor: Tensor) -> Tensor:
        """That part of a tensor whose first axis is images and whose last is tokens."""
        return tensor[self.images, ..., self.tokens]


def chunks(by_feature: Tensor) -> Iterator[list[Chunk]]:
    """All of (B, D, N), a list for some images at a time: one chunk of whole images, or one image in parts."""
    batch, num_features, num_tokens = by_feature.shape
    room = CACHED_BYTES if by_feature.device.type == "cpu" else DEVICE_BYTES
    fitting = max(1, room // (num_features * by_feature.element_size()))
    images, length = max(1, fitting // num_tokens), min(fitting, num_tokens)
    for first in range(0, batch, images):
        part = slice(first, min(first + images, batch))
        yield [Chunk(part, slice(start, min(start + length, num_tokens))) for start in range(0, num_tokens, length)]
