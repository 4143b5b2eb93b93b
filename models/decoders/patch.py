"""The light spatial-broadcast decoder: one MLP per position of a coarse grid, each position emits a patch."""

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
    ) -> None:
        super().__init__()
        self.grid, self.patch = patch_grid(size, patch), patch
        self.slot = nn.Linear(slot_dim, hidden_dim)
        self.position = nn.Linear(2, hidden_dim, bias=False)
        layers: list[nn.Module] = [nn.ReLU()]
        for _ in range(num_layers - 1):
            layers += [nn.Linear(hidden_dim, hidden_dim), nn.ReLU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden_dim, (channels + 1) * patch * patch))

    def paint(self, slots: Float[Tensor, "slots features"]) -> Float[Tensor, "slots layers height width"]:
        """Channels and mask logit of slots (S, D)."""
        rows, columns = self.grid
        grid = coordinate_grid(rows, columns, like=slots)
        # The first layer is linear in (slot, position): two small products, not one on the concatenation.
        out = self.mlp(self.slot(slots)[:, None] + self.position(grid))
        return rearrange(out, "s (r c) (ch p q) -> s ch (r p) (c q)", r=rows, c=columns, p=self.patch, q=self.patch)
