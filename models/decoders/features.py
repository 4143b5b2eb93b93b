"""Slots -> a map of features, one position after the other (DINOSAUR's autoregressive decoder)."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from psa.models.decoders.transformer import SlotTransformer
from psa.records import DecodedScene


class FeatureTransformerDecoder(nn.Module):
    """mean of f_l = W h_l(s, f_<l): the transformer of the words, with features in their place.

    Args:
        transformer: Over the grid.
        shape: (F, rows, columns) of a map.
    """

    def __init__(self, transformer: SlotTransformer, shape: tuple[int, int, int]) -> None:
        super().__init__()
        hidden_dim = len(transformer.start)
        self.transformer, self.shape = transformer, shape
        self.embedding = nn.Linear(shape[0], hidden_dim)
        self.head = nn.Linear(hidden_dim, shape[0])

    def means(
        self,
        maps: Float[Tensor, "batch channels rows columns"],
        slots: Float[Tensor, "batch slots features"],
        active: Bool[Tensor, "batch slots"] | None = None,
    ) -> Float[Tensor, "batch channels rows columns"]:
        """The mean of every position given those before it, row-major, of the maps (B, F, rows, columns)."""
        before = self.embedding(maps.flatten(2).transpose(1, 2)[:, :-1])
        return self._maps(self.head(self.transformer(before, slots, active)))

    def forward(
        self, slots: Float[Tensor, "batch slots features"], active: Bool[Tensor, "batch slots"] | None = None
    ) -> DecodedScene:
        """The map of the means one after the other, given as every slot's, and the decoder's attention as masks.

        No gradient flows.

        Args:
            slots: (B, K, D).
            active: (B, K), the slots that are looked at, at least one an image; all of them by default. The masks of
                the others are 0.

        Raises:
            ValueError: If an image has no active slot.
        """
        maps, attention = self._generate(slots, active, lambda mean: mean)
        masks = attention.unflatten(2, self.shape[1:])
        return DecodedScene(maps[:, None].expand(-1, attention.shape[1], -1, -1, -1), masks.log())

    def draw(
        self, slots: Float[Tensor, "batch slots features"], sigma: float
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Maps from p(f | s), each position with its noise of standard deviation sigma."""
        return self._generate(slots, None, lambda mean: mean + sigma * torch.randn_like(mean))[0]

    @torch.no_grad()
    def _generate(
        self, slots: Tensor, active: Tensor | None, choose: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        found = []

        def continued(hidden: Tensor) -> Tensor:
            found.append(choose(self.head(hidden)))
            return self.embedding(found[-1])

        attention = self.transformer.generate(slots, continued, active)
        return self._maps(torch.stack(found, 1)), attention

    def _maps(self, positions: Tensor) -> Tensor:
        return positions.transpose(1, 2).unflatten(2, self.shape[1:])
