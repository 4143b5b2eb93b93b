"""Dropout whose noise can be given, and the attention and feed-forward parts of a transformer's layer with it."""

from collections.abc import Callable, Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

Keep = Callable[[Sequence[int], float], Tensor]
"""A shape without the batch, and the share p to drop -> True with probability 1 - p in each entry, (B, *shape)."""


class GivenDropout(nn.Module):
    """x m / (1 - p) in training, m independent draws of 0 and 1 with probability p of 0; x itself otherwise.

    Args:
        share: p, in [0, 1).

    Attributes:
        keep: Draws m; None draws from torch's global generator.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.keep: Keep | None = None

    def forward(self, values: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """Of values (B, ...)."""
        if not self.training or self.share == 0.0:
            return values
        if self.keep is None:
            return nn.functional.dropout(values, self.share)
        return values * self.keep(values.shape[1:], self.share) / (1.0 - self.share)


class LayerDropouts(nn.Module):
    """Where torch's transformer decoder layer drops: the weights of both attentions, the hidden layer of the
    feed-forward part, and what each of the three parts adds.

    Args:
        share: p of each.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.attention, self.cross_attention, self.hidden = (GivenDropout(share) for _ in range(3))
        self.looked, self.found, self.wide = (GivenDropout(share) for _ in range(3))


def attend(
    attention: nn.MultiheadAttention,
    queries: Float[Tensor, "batch new hidden"],
    memory: Float[Tensor, "batch keys hidden"],
    unseen: Bool[Tensor, "*batch new keys"] | None,
    dropout: GivenDropout,
) -> tuple[Float[Tensor, "batch new hidden"], Float[Tensor, "batch new keys"]]:
    """What torch's multi-head attention gives, its weights dropped, and these weights before that, averaged over heads.

    Args:
        attention: Whose parameters are used.
        queries: (B, M, hidden).
        memory: Keys and values, (B, P, hidden).
        unseen: True where a query may not look, broadcast to (B, M, P); None for nowhere.
        dropout: Of the weights (B, heads, M, P).
    """
    width, heads = attention.embed_dim, attention.num_heads
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    query = nn.functional.linear(queries, weight[:width], bias[:width])
    key, value = nn.functional.linear(memory, weight[width:], bias[width:]).chunk(2, -1)
    query, key, value = (rearrange(part, "b l (h d) -> b h l d", h=heads) for part in (query, key, value))
    logits = query @ key.mT / (width // heads) ** 0.5
    if unseen is not None:
        logits = logits.masked_fill(unseen.expand(len(queries), -1, -1)[:, None], -torch.inf)
    weights = logits.softmax(-1)
    found = rearrange(dropout(weights) @ value, "b h l d -> b l (h d)")
    return attention.out_proj(found), weights.mean(1)
