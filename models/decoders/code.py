"""Slots -> words of a discrete VAE, one after the other -> a picture (SLATE; BO-QSA appendix A.1)."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from psa.models.decoders.transformer import SlotTransformer
from psa.models.dvae import CodeDecoder
from psa.records import DecodedScene


class CodeTransformerDecoder(nn.Module):
    """p(z | s) = prod_l Categorical(z_l; softmax(W h_l(s, z_<l))), and the picture of a code.

    Args:
        transformer: Over the grid of words.
        painter: Code -> picture.
    """

    def __init__(self, transformer: SlotTransformer, painter: CodeDecoder) -> None:
        super().__init__()
        hidden_dim = len(transformer.start)
        self.transformer, self.painter = transformer, painter
        self.embedding = nn.Embedding(painter.vocabulary, hidden_dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.head = nn.Linear(hidden_dim, painter.vocabulary, bias=False)

    def log_probs(
        self,
        words: Int64[Tensor, "batch words"],
        slots: Float[Tensor, "batch slots features"],
        active: Bool[Tensor, "batch slots"] | None = None,
    ) -> Float[Tensor, "batch words vocabulary"]:
        """log p(z_l | s, z_<l) of every word of the vocabulary, (B, L, V), given the words (B, L)."""
        return self.head(self.transformer(self.embedding(words[:, :-1]), slots, active)).log_softmax(-1)

    def forward(
        self, slots: Float[Tensor, "batch slots features"], active: Bool[Tensor, "batch slots"] | None = None
    ) -> DecodedScene:
        """The picture of the words that are most probable one after the other, and the decoder's attention as masks.

        The picture is given as every slot's: no slot has one of its own. A mask says how much the last layer looked at
        a slot when it chose a patch's word. No gradient flows.

        Args:
            slots: (B, K, D).
            active: (B, K), the slots that are looked at, at least one an image; all of them by default. The masks of
                the others are 0.

        Raises:
            ValueError: If an image has no active slot.
        """
        words, attention = self._generate(slots, active, lambda log_probs: log_probs.argmax(-1))
        return self._scene(words, attention)

    def draw(
        self,
        slots: Float[Tensor, "batch slots features"],
        active: Bool[Tensor, "batch slots"] | None = None,
        generator: torch.Generator | None = None,
    ) -> DecodedScene:
        """The same with words drawn from p(z | s); the generator is on the slots' device, the global one where None."""
        return self._scene(*self.draw_words(slots, active, generator))

    def draw_words(
        self,
        slots: Float[Tensor, "batch slots features"],
        active: Bool[Tensor, "batch slots"] | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Int64[Tensor, "batch words"], Float[Tensor, "batch slots words"]]:
        """Words (B, L) from p(z | s), and the attention on slots (B, K, L)."""

        def choose(log_probs: Tensor) -> Tensor:
            return torch.multinomial(log_probs.exp(), 1, generator=generator)[:, 0]

        return self._generate(slots, active, choose)

    def _generate(
        self, slots: Tensor, active: Tensor | None, choose: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        words = []

        def continued(hidden: Tensor) -> Tensor:
            words.append(choose(self.head(hidden).log_softmax(-1)))
            return self.embedding(words[-1])

        attention = self.transformer.generate(slots, continued, active)
        return torch.stack(words, 1), attention

    @torch.no_grad()
    def _scene(self, words: Tensor, attention: Tensor) -> DecodedScene:
        picture = self.painter.picture(words)
        masks = grid_masks(attention, self.painter.grid, (picture.shape[2], picture.shape[3]))
        return DecodedScene(picture[:, None].expand(-1, attention.shape[1], -1, -1, -1), masks)


def grid_masks(
    shares: Float[Tensor, "batch slots words"], grid: tuple[int, int], size: tuple[int, int]
) -> Float[Tensor, "batch slots height width"]:
    """log of masks of an image's size from each cell's shares of the slots, interpolated between cells.

    Args:
        shares: (B, K, cells) >= 0, sums to 1 over K; the cells row-major.
        grid: Rows and columns of cells.
        size: (H, W).
    """
    pictures = shares.unflatten(2, grid)
    masks = nn.functional.interpolate(pictures, size, mode="bilinear") if size != grid else pictures
    return (masks / masks.sum(1, keepdim=True)).log()
