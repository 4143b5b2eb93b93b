"""The light spatial-broadcast decoder: one MLP per position of a coarse grid, each position emits a patch."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from psa.models.decoders.grid import coordinate_grid, patch_grid
from psa.models.decoders.masked import MaskedDecoder


class PatchDecoder(MaskedDecoder):
    """slot, position -> MLP -> a patch of RGB and mask logit; masks are a softmax over slots.

    Args:
        slot_dim: Features of a slot.
        size: (H, W) of the image; multiples of ``patch``.
        hidden_dim: Width of the MLP.
        num_layers: Hidden layers, at least 1.
        patch: Pixels a side that one position emits.
        channels: Of the picture.
        learned_positions: Whether a position has a learned vector beside its place, as DINOSAUR's MLP decoder has:
            features hold what no smooth function of the place gives.

    Raises:
        ValueError: If the size is not a multiple of the patch.
    """

    def __init__(
        self,
        slot_dim: int,
        size: tuple[int, int],
        hidden_dim: int = 64,
        num_layers: int = 3,
        patch: int = 4,
        channels: int = 3,
        learned_positions: bool = False,
    ) -> None:
        super().__init__()
        self.grid, self.patch = patch_grid(size, patch), patch
        self.slot = nn.Linear(slot_dim, hidden_dim)
        self.position = nn.Linear(2, hidden_dim, bias=False)
        layers: list[nn.Module] = [nn.ReLU()]
        for _ in range(num_layers - 1):
            layers += [nn.Linear(hidden_dim, hidden_dim), nn.ReLU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden_dim, (channels + 1) * patch * patch))
        cells = self.grid[0] * self.grid[1]
        self.learned = nn.Parameter(0.02 * torch.randn(cells, hidden_dim)) if learned_positions else None

    def paint(self, slots: Float[Tensor, "slots features"]) -> Float[Tensor, "slots layers height width"]:
        """Channels and mask logit of slots (S, D)."""
        rows, columns = self.grid
        grid = coordinate_grid(rows, columns, like=slots)
        # The first layer is linear in (slot, position): two small products, not one on the concatenation.
        places = self.position(grid) if self.learned is None else self.position(grid) + self.learned
        out = self.mlp(self.slot(slots)[:, None] + places)
        return rearrange(out, "s (r c) (ch p q) -> s ch (r p) (c q)", r=rows, c=columns, p=self.patch, q=self.patch)
