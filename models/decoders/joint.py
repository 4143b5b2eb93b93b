"""The decoder that is not additive (PSA-NoA; Slot Attention without additive decoder): slots -> one joint picture."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from psa.models.decoders.grid import patch_grid
from psa.models.decoders.masked import require_active
from psa.records import DecodedScene


class JointDecoder(nn.Module):
    """slot -> LeakyReLU(affine) on a coarse grid; the sum over slots -> convolutions -> patches of one picture.

        x = h(sum_k g(s_k)),    g and h affine maps and LeakyReLU

    Piecewise affine, as model.md section 3 asks where a theorem is claimed. Slots meet in h, so that any pixel may
    depend on any pair of slots, and no slot has a picture of its own. They are summed and not concatenated, because the
    scene program's slots are exchangeable and the papers' members start slots at random: after a concatenation the
    picture would depend on an order that says nothing, and each slot's place would have to be learned K! times.

    Args:
        slot_dim: Features of a slot.
        size: (H, W) of the image; multiples of ``patch``.
        hidden_dim: Channels of the grid and the convolutions.
        num_layers: Convolutions 3 x 3 on the grid, at least 1.
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
        rows, columns = patch_grid(size, patch)
        self.slot = nn.Sequential(
            nn.Linear(slot_dim, hidden_dim * rows * columns),
            nn.LeakyReLU(),
            nn.Unflatten(-1, (hidden_dim, rows, columns)),
        )
        layers: list[nn.Module] = []
        for _ in range(num_layers):
            layers += [nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1), nn.LeakyReLU()]
        last = nn.Conv2d(hidden_dim, channels * patch * patch, 1)
        self.convolutions = nn.Sequential(*layers, last, nn.PixelShuffle(patch))

    def picture(
        self, slots: Float[Tensor, "batch slots features"], active: Bool[Tensor, "batch slots"] | None = None
    ) -> Float[Tensor, "batch channels height width"]:
        """The picture of slots (B, K, D), or of those that are active."""
        return self.convolutions(self._parts(slots, active).sum(1))

    def forward(
        self, slots: Float[Tensor, "batch slots features"], active: Bool[Tensor, "batch slots"] | None = None
    ) -> DecodedScene:
        """The joint picture as every slot's, and masks that say which slot a pixel depends on most.

            mask_kn proportional to |x_n - x_n without slot k|, the norm over channels

        The masks compose nothing: the mean is the joint picture whatever they are, and no gradient flows through them.
        In training mode nothing asks for them, and they are equal, 1 / K.

        Args:
            slots: (B, K, D).
            active: (B, K), the slots that have a part in the picture, at least one an image; all of them by default.
                The masks of the others are 0.

        Raises:
            ValueError: If an image has no active slot.
        """
        if active is not None:
            require_active(active)
        parts = self._parts(slots, active)
        picture = self.convolutions(parts.sum(1))
        change = picture.new_zeros(*slots.shape[:2], *picture.shape[2:])
        if not self.training:
            others = (parts.sum(1, keepdim=True) - parts).flatten(0, 1)
            without = self.convolutions(others).unflatten(0, slots.shape[:2])
            change = (picture[:, None] - without).detach().norm(dim=2)
        # where no slot changes anything they have equal shares
        shares = (change + torch.finfo(change.dtype).tiny).log()
        if active is not None:
            shares = shares.masked_fill(~active[:, :, None, None], -torch.inf)
        pictures = picture[:, None].expand(-1, slots.shape[1], -1, -1, -1)
        return DecodedScene(rgb=pictures, log_masks=shares.log_softmax(1))

    def _parts(
        self, slots: Tensor, active: Bool[Tensor, "batch slots"] | None
    ) -> Float[Tensor, "batch slots channels rows columns"]:
        parts = self.slot(slots)
        return parts if active is None else parts * active[:, :, None, None, None]
