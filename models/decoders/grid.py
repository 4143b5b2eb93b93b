"""Positions of a grid of cells, shared by encoders and decoders."""

import torch
from jaxtyping import Float
from torch import Tensor


def coordinate_grid(height: int, width: int, like: Tensor) -> Float[Tensor, "tokens 2"]:
    """(y, x) of every cell in [-1, 1], (height * width, 2), row-major, on the device and in the dtype of ``like``."""
    y = torch.linspace(-1.0, 1.0, height, device=like.device, dtype=like.dtype)
    x = torch.linspace(-1.0, 1.0, width, device=like.device, dtype=like.dtype)
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1)
