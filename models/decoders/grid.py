"""Grids of cells, shared by encoders and decoders."""

import torch
from jaxtyping import Float
from torch import Tensor


def coordinate_grid(height: int, width: int, like: Tensor) -> Float[Tensor, "tokens 2"]:
    """(y, x) of every cell in [-1, 1], (height * width, 2), row-major, on the device and in the dtype of ``like``."""
    y = torch.linspace(-1.0, 1.0, height, device=like.device, dtype=like.dtype)
    x = torch.linspace(-1.0, 1.0, width, device=like.device, dtype=like.dtype)
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1)


def patch_grid(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """Rows and columns of patches of so many pixels a side.

    Raises:
        ValueError: If the size is not a multiple of the patch.
    """
    if size[0] % patch or size[1] % patch:
        raise ValueError(
            f"image size must be a multiple of decoder.patch {patch}, got {size[0]} x {size[1]} (set data.size)"
        )
    return size[0] // patch, size[1] // patch
