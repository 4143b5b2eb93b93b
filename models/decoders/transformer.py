"""An autoregressive transformer over a grid, with slots as the memory of its cross-attention (SLATE; DINOSAUR)."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from psa.models.decoders.dropout import LayerDropouts, attend
from psa.models.decoders.masked import require_active


class SlotTransformer(nn.Module):
    """h_l = T(start, u_1, ..., u_{l-1}; slots): causal self-attention and cross-attention to the slots.

    Pre-norm layers of torch's :class:`torch.nn.TransformerDecoderLayer`, with dropout whose noise can be given
    (:class:`psa.models.decoders.dropout.GivenDropout`). The start and the positions are learned; slots have no
    positions, so that their order does not matter.

    Args:
        slot_dim: Features of a slot.
        length: L, positions of the grid.
        hidden_dim: Width, a multiple of ``num_heads``; the feed-forward part is four times as wide.
        num_layers: Layers, at least 1.
        num_heads: Heads of both attentions.
        dropout: In training, in [0, 1).

    Raises:
        ValueError: If the width is not a multiple of the heads.
    """

    def __init__(
        self,
        slot_dim: int,
        length: int,
        hidden_dim: int = 64,
        num_layers: int = 2,
        num_heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if hidden_dim % num_heads:
            raise ValueError(f"decoder.hidden_dim must be a multiple of num_heads {num_heads}, got {hidden_dim}")
        self.length = length
        self.memory = nn.Linear(slot_dim, hidden_dim, bias=False)
        self.start = nn.Parameter(0.02 * torch.randn(hidden_dim))
        self.positions = nn.Parameter(0.02 * torch.randn(length, hidden_dim))
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(hidden_dim, num_heads, 4 * hidden_dim, 0.0, batch_first=True, norm_first=True)
            for _ in range(num_layers)
        )
        self.drops = dropout > 0.0
        self.dropouts = nn.ModuleList(LayerDropouts(dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(hidden_dim)

    def forward(
        self,
        previous: Float[Tensor, "batch others hidden"],
        slots: Float[Tensor, "batch slots features"],
        active: Bool[Tensor, "batch slots"] | None = None,
    ) -> Float[Tensor, "batch words hidden"]:
        """h_1..h_L given the inputs u_1..u_{L-1} (teacher forcing).

        Args:
            previous: (B, L - 1, hidden).
            slots: (B, K, D).
            active: (B, K), the slots that may be looked at, at least one an image; all of them by default.
        """
        if self.drops and self.training:
            return self.attended(previous, slots, active)[0]
        hidden, later = self._inputs(previous), self._later(previous.shape[1] + 1, previous.device)
        memory, unseen = self._memory(slots, active)
        for layer in self.layers:
            hidden = layer(hidden, memory, tgt_mask=later, memory_key_padding_mask=unseen, tgt_is_causal=True)
        return self.norm(hidden)

    def attended(
        self,
        previous: Float[Tensor, "batch others hidden"],
        slots: Float[Tensor, "batch slots features"],
        active: Bool[Tensor, "batch slots"] | None = None,
    ) -> tuple[Float[Tensor, "batch words hidden"], Float[Tensor, "batch slots words"]]:
        """The same, and the last layer's cross-attention, averaged over heads: (B, K, L), sums to 1 over K."""
        hidden, (memory, unseen) = self._inputs(previous), self._memory(slots, active)
        attention = hidden.new_zeros(0)
        for layer, dropouts in zip(self.layers, self.dropouts, strict=True):
            hidden, _, attention = layer_step(layer, dropouts, hidden, None, (memory, unseen))
        return self.norm(hidden), attention.transpose(1, 2)

    @torch.no_grad()
    def generate(
        self,
        slots: Float[Tensor, "batch slots features"],
        continued: Callable[[Float[Tensor, "batch hidden"]], Float[Tensor, "batch hidden"]],
        active: Bool[Tensor, "batch slots"] | None = None,
    ) -> Float[Tensor, "batch slots words"]:
        """Run through the grid position by position, each layer's past kept, and return the cross-attention.

        Args:
            slots: (B, K, D).
            continued: Takes h_l, chooses what stands at l, and returns u_l, the next position's input.
            active: (B, K), as above.
        """
        memory, unseen = self._memory(slots, active)
        past: list[Tensor | None] = [None] * len(self.layers)
        found = []
        new = self.start.expand(len(slots), 1, -1)
        for position in range(self.length):
            hidden = new + self.positions[position]
            for number, (layer, dropouts) in enumerate(zip(self.layers, self.dropouts, strict=True)):
                hidden, past[number], attention = layer_step(layer, dropouts, hidden, past[number], (memory, unseen))
            found.append(attention)
            new = continued(self.norm(hidden)[:, 0])[:, None]
        return torch.cat(found, 1).transpose(1, 2)

    def _inputs(self, previous: Tensor) -> Tensor:
        start = self.start.expand(len(previous), 1, -1)
        return torch.cat([start, previous], 1) + self.positions[: previous.shape[1] + 1]

    def _memory(self, slots: Tensor, active: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if active is not None:
            require_active(active)
        return self.memory(slots), None if active is None else ~active

    @staticmethod
    def _later(length: int, device: torch.device) -> Bool[Tensor, "queries keys"]:
        return torch.ones(length, length, dtype=torch.bool, device=device).triu(1)


def layer_step(
    layer: nn.Module, dropouts: nn.Module, new: Tensor, past: Tensor | None, slots: tuple[Tensor, Tensor | None]
) -> tuple[Tensor, Tensor, Tensor]:
    """A pre-norm decoder layer on some new positions after a past: what the layer's own forward gives on all of them.

    Args:
        layer: A :class:`torch.nn.TransformerDecoderLayer` with ``norm_first`` and ``batch_first``.
        dropouts: Its :class:`psa.models.decoders.dropout.LayerDropouts`.
        new: (B, M, hidden), the layer's input at the new positions.
        past: (B, P, hidden), what an earlier call returned, or None.
        slots: (B, K, hidden), and (B, K), those that may not be looked at, or None.

    Returns:
        The output at the new positions, the past with them, and the cross-attention (B, M, K).
    """
    assert isinstance(layer, nn.TransformerDecoderLayer)
    assert isinstance(dropouts, LayerDropouts)
    normed, (memory, unseen) = layer.norm1(new), slots
    past = normed if past is None else torch.cat([past, normed], 1)
    count, length = new.shape[1], past.shape[1]
    later = torch.ones(count, length, dtype=torch.bool, device=new.device).triu(1 + length - count)
    looked, _ = attend(layer.self_attn, normed, past, later, dropouts.attention)
    new = new + dropouts.looked(looked)
    unseen = None if unseen is None else unseen[:, None].expand(-1, count, -1)
    found, attention = attend(layer.multihead_attn, layer.norm2(new), memory, unseen, dropouts.cross_attention)
    new = new + dropouts.found(found)
    wide = dropouts.hidden(layer.activation(layer.linear1(layer.norm3(new))))
    return new + dropouts.wide(layer.linear2(wide)), past, attention
