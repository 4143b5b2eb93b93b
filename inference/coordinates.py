"""Tokens as keys and values about their mean, and queries in the same coordinates.

The Gaussian E-step expands a square, which cancels badly far from the origin; so the tokens' mean is taken off first,
the state stays in centred coordinates through all iterations, and the origin is added back once at the end.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psa.inference.projection_function import ProjectTokens


@dataclass(frozen=True)
class CentredTokens:
    """Keys and values about their images' means, float32 at least.

    Attributes:
        keys, values: (B, N, D), centred.
        key_origin, value_origin: (B, 1, D); origin + centred = the projected token.
        token_weights: (B, N), 1 for a valid token and 0 for padding; None where all are valid.
        num_tokens: (B,), valid tokens.
    """

    keys: Float[Tensor, "batch tokens features"]
    values: Float[Tensor, "batch tokens features"]
    key_origin: Float[Tensor, "batch 1 features"]
    value_origin: Float[Tensor, "batch 1 features"]
    token_weights: Float[Tensor, "batch tokens"] | None
    num_tokens: Float[Tensor, " batch"]

    def variance(self) -> Float[Tensor, "batch 1 features"]:
        """The valid tokens' variance per axis, about their mean."""
        weights = self.token_weights if self.token_weights is not None else torch.ones_like(self.values[..., 0])
        share = (weights / self.num_tokens[:, None])[:, None]
        mean = share @ self.values
        return share @ (self.values - mean).square()


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or float64 if it is float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def centre(tokens: Float[Tensor, "batch tokens inputs"], mask: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
    """Tokens about their image's mean, their weights, and the origin (B, 1, D), through which no gradient goes.

    Args:
        tokens: (B, N, D).
        mask: (B, N), bool or non-negative weights; a token of weight 0 may hold anything and becomes the mean.

    Returns:
        Centred tokens (B, N, D), weights (B, N) or None, origin; centred + origin = the token.
    """
    if mask is None:
        origin = tokens.mean(1, keepdim=True).detach()
        return tokens - origin, None, origin
    weights, keep = mask.to(tokens.dtype), (mask > 0)[..., None]
    kept = torch.where(keep, tokens, torch.zeros_like(tokens))
    origin = ((kept * weights[..., None]).sum(1, keepdim=True) / weights.sum(1)[:, None, None]).detach()
    return torch.where(keep, kept - origin, torch.zeros_like(kept)), weights, origin


class Projections(nn.Module):
    """The norms and W_q, W_k, W_v of a member; the identity where its row has none.

    Args:
        which: none, q or qkv.
        normalise: LayerNorm on the tokens and, before W_q, on the slots.
        bias: Whether W have biases.
        input_dim: Features of a token.
        slot_dim: Features of a slot.
        exact: Start at W_q = I and W_k = W_v with orthogonal rows, where a Gaussian step is exact EM.

    Raises:
        ValueError: If there is no W_v and the dimensions differ.
    """

    def __init__(
        self, which: str, normalise: bool, bias: bool, input_dim: int, slot_dim: int, exact: bool = False
    ) -> None:
        super().__init__()
        if which != "qkv" and input_dim != slot_dim:
            raise ValueError(
                f"slot_dim must equal input_dim where there is no W_k and W_v (projections {which!r}), "
                f"got slot_dim {slot_dim} and input_dim {input_dim}"
            )
        self.norm_tokens = nn.LayerNorm(input_dim) if normalise else None
        self.norm_slots = nn.LayerNorm(slot_dim) if normalise else None
        self.query = nn.Linear(slot_dim, slot_dim, bias=bias) if which != "none" else None
        self.key = nn.Linear(input_dim, slot_dim, bias=bias) if which == "qkv" else None
        self.value = nn.Linear(input_dim, slot_dim, bias=bias) if which == "qkv" else None
        if exact and self.query is not None:
            nn.init.eye_(self.query.weight)
            if self.query.bias is not None:
                nn.init.zeros_(self.query.bias)
        if exact and self.key is not None and self.value is not None:
            nn.init.orthogonal_(self.value.weight)
            self.key.load_state_dict(self.value.state_dict())

    def tokens(self, tokens: Float[Tensor, "batch tokens inputs"], mask: Tensor | None) -> CentredTokens:
        """Normalise, centre and project the tokens; padding becomes the image's mean."""
        tokens = at_least_float32(tokens)
        if self.norm_tokens is not None:
            # padding may be NaN, which would reach the gradient of the norm
            kept = tokens if mask is None else torch.where(mask[..., None], tokens, torch.zeros_like(tokens))
            tokens = at_least_float32(self.norm_tokens(kept))
        centred, weights, origin = centre(tokens, mask)
        num_tokens = tokens.new_full(tokens.shape[:1], tokens.shape[1]) if weights is None else weights.sum(1)
        keys, values = self._project(centred)
        key_origin, value_origin = (_origin(projection, origin) for projection in (self.key, self.value))
        return CentredTokens(keys, values, key_origin, value_origin, weights, num_tokens)

    def _project(self, centred: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, N, D). On a CPU the tokens of a feature lie side by side, which makes E-steps faster."""
        on_cpu = centred.device.type == "cpu"
        if self.key is None or self.value is None:
            tokens = centred.mT.contiguous().mT if on_cpu else centred
            return tokens, tokens
        weights = self.key.weight, self.value.weight
        if on_cpu:
            return ProjectTokens.apply(centred, *weights)
        keys, values = (at_least_float32(nn.functional.linear(centred, weight)) for weight in weights)
        return keys, values

    def queries(self, slots: Float[Tensor, "batch slots features"]) -> Float[Tensor, "batch slots features"]:
        """W_q LayerNorm(slots), in uncentred coordinates."""
        if self.norm_slots is not None:
            slots = self.norm_slots(slots)
        return slots if self.query is None else self.query(slots)

    def centred_queries(
        self, loc: Float[Tensor, "batch slots features"], centred: CentredTokens
    ) -> Float[Tensor, "batch slots features"]:
        """Queries about the keys' origin, of means about the values' origin.

        Where W_q is linear in the mean, the two origins meet first, so that nothing large is added to a small mean.
        """
        if self.norm_slots is not None:
            return self.queries(loc + centred.value_origin) - centred.key_origin
        offset = self.queries(centred.value_origin) - centred.key_origin
        return offset + (loc if self.query is None else nn.functional.linear(loc, self.query.weight))


def _origin(projection: nn.Linear | None, origin: Tensor) -> Tensor:
    return origin if projection is None else at_least_float32(projection(origin))
