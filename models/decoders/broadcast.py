"""The spatial-broadcast decoder (Watters et al. 2019): the slot at every position, then transposed convolutions."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psa.models.decoders.grid import coordinate_grid
from psa.models.decoders.masked import MaskedDecoder


class BroadcastDecoder(MaskedDecoder):
    """slot broadcast over a coarse grid + positions -> transposed convolutions -> RGB and mask logit per pixel.

    Args:
        slot_dim: Features of a slot.
        size: (H, W) of the image; multiples of 2 ** num_upsamplings.
        hidden_dim: Channels of the convolutions.
        num_upsamplings: Transposed convolutions of stride 2.
        channels: Of the picture.
        kernel: Of all layers but the last, which is 3 x 3; odd. None: 4 in the upsamplings, 3 in the others.
        num_convolutions: Hidden layers after the upsamplings. Of stride 1, a transposed convolution is a convolution.

    Raises:
        ValueError: If the size is not a multiple of 2 ** num_upsamplings, or the kernel is even.
    """

    def __init__(
        self,
        slot_dim: int,
        size: tuple[int, int],
        hidden_dim: int = 32,
        num_upsamplings: int = 2,
        channels: int = 3,
        kernel: int | None = None,
        num_convolutions: int = 1,
    ) -> None:
        super().__init__()
        if kernel is not None and kernel % 2 == 0:
            raise ValueError(f"decoder.kernel must be odd, got {kernel}")
        factor = 2**num_upsamplings
        if size[0] % factor or size[1] % factor:
            raise ValueError(f"image size must be a multiple of {factor}, got {size[0]} x {size[1]} (set data.size)")
        self.grid_size = (size[0] // factor, size[1] // factor)
        self.slot = nn.Linear(slot_dim, hidden_dim)
        self.position = nn.Linear(4, hidden_dim)
        layers: list[nn.Module] = []
        for _ in range(num_upsamplings):
            layers += [_doubling(hidden_dim, kernel), nn.ReLU()]
        side = 3 if kernel is None else kernel
        for _ in range(num_convolutions):
            layers += [nn.Conv2d(hidden_dim, hidden_dim, side, padding=side // 2), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers, nn.Conv2d(hidden_dim, channels + 1, 3, padding=1))

    def paint(self, slots: Float[Tensor, "slots features"]) -> Float[Tensor, "slots layers height width"]:
        """Channels and mask logit of slots (S, D)."""
        grid = coordinate_grid(*self.grid_size, like=slots)
        cells = self.slot(slots)[:, None] + self.position(torch.cat([grid, -grid], dim=-1))
        return self.convolutions(cells.transpose(1, 2).unflatten(2, self.grid_size))


def _doubling(channels: int, kernel: int | None) -> nn.Module:
    """A transposed convolution that doubles the sides."""
    if kernel is None:
        return nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1)
    return nn.ConvTranspose2d(channels, channels, kernel, stride=2, padding=kernel // 2, output_padding=1)
