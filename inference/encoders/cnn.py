"""Image -> tokens: a small CNN, a position embedding, and an MLP per position (Locatello et al. 2020, appendix)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psa.models.decoders.grid import coordinate_grid

MIN_IMAGE_SIZE = 8


class CnnEncoder(nn.Module):
    """Convolutions, the first with a stride; the pixels' own colours and positions added; MLP; LayerNorm.

    The colours' shortcut and the initial scale of the convolutions matter: without them slots find objects by place
    and stay gray for thousands of steps. The final norm gives tokens unit variance, the scale at which the E/M family
    starts (var = 1).

    Args:
        channels: Width of the convolutions.
        num_layers: Number of convolutions, at least 1.
        stride: Stride of the first: an H x W image gives ceil(H / stride) ceil(W / stride) tokens.
        token_dim: Features of a token.
        in_channels: Channels of the image.
        kernel: Pixels a side that a convolution sees, odd.

    Raises:
        ValueError: If the kernel is even.
    """

    def __init__(
        self,
        channels: int = 32,
        num_layers: int = 4,
        stride: int = 2,
        token_dim: int = 32,
        in_channels: int = 3,
        kernel: int = 3,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"encoder.kernel must be odd, got {kernel}")
        layers: list[nn.Module] = []
        for index in range(num_layers):
            first = index == 0
            source = in_channels if first else channels
            convolution = nn.Conv2d(source, channels, kernel, stride=stride if first else 1, padding=kernel // 2)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            convolution.bias = nn.Parameter(torch.zeros(channels))
            layers += [convolution, nn.ReLU()]
        self.stride = stride
        self.convolutions = nn.Sequential(*layers)
        self.colour = nn.Linear(in_channels, channels)
        self.position = nn.Linear(4, channels)
        self.mlp = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, token_dim))
        self.norm = nn.LayerNorm(token_dim, elementwise_affine=False)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the tokens of an H x W image."""
        return -(-height // self.stride), -(-width // self.stride)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch tokens features"]:
        """Tokens (B, N, token_dim) in row-major order of the images (B, C, H, W), [0, 1].

        Raises:
            ValueError: If the images are smaller than 8 pixels on a side.
        """
        if min(images.shape[-2:]) < MIN_IMAGE_SIZE:
            raise ValueError(f"images must be at least {MIN_IMAGE_SIZE} pixels a side, got {tuple(images.shape[-2:])}")
        images = images * 2.0 - 1.0
        features = self.convolutions(images)
        grid = coordinate_grid(features.shape[-2], features.shape[-1], like=features)
        colours = nn.functional.avg_pool2d(images, self.stride, ceil_mode=True)
        tokens = features.flatten(2).transpose(1, 2) + self.position(torch.cat([grid, -grid], dim=-1))
        return self.norm(self.mlp(tokens + self.colour(colours.flatten(2).transpose(1, 2))))
