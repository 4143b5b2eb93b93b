"""An E-step and the moments it gives to every slot, in one call: all that an update needs (model.md section 2)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from psa.conjugate import token_features
from psa.inference.em import attend
from psa.inference.fused_moments import chosen, fused_moments


@dataclass(frozen=True)
class SlotMoments:
    """What each slot owns, with A = softmax of the scores over slots and Ahat_kn = w_n A_kn / sum_m w_m A_km.

    Every row of Ahat is normalised in log space about its own maximum, so that a slot of tiny mass still gets the
    exact moments of its tokens.

    Attributes:
        log_mass: (B, K), log sum_n w_n A_kn; minus infinity where the mass underflows.
        mean: (B, K, D), sum_n Ahat_kn v_n; 0 for an empty slot.
        second: (B, K, D), sum_n Ahat_kn v_n^2; 0 for an empty slot.
        empty: (B, K, 1), the slots without mass.
    """

    log_mass: Float[Tensor, "batch slots"]
    mean: Float[Tensor, "batch slots features"]
    second: Float[Tensor, "batch slots features"]
    empty: Bool[Tensor, "batch slots 1"]


def slot_scores(
    keys: Float[Tensor, "batch tokens features"], natural: Float[Tensor, "batch slots terms"]
) -> Float[Tensor, "batch slots tokens"]:
    """natural_k . (k_n^2, k_n, 1): any diagonal Gaussian's log density; dot agreement has 0 for the first D."""
    terms, constant = natural[..., :-1], natural[..., -1:]
    # the constant is added, not multiplied: it may be minus infinity
    return constant + terms @ token_features(keys, full=False)[:, :-1]


def slot_moments(
    keys: Float[Tensor, "batch tokens features"],
    values: Float[Tensor, "batch tokens features"],
    natural: Float[Tensor, "batch slots terms"],
    token_weights: Float[Tensor, "batch tokens"] | None = None,
) -> SlotMoments:
    """Responsibilities of every slot for every token, and the moments of the values under them.

    On a CUDA device by the kernels of :mod:`psa.inference.fused_moments`, where they can and PSA_FUSED lets them.

    Args:
        keys: (B, N, D), about their mean, as a square is expanded.
        values: (B, N, D), about their mean.
        natural: (B, K, 2 D + 1), the scores' parameters (:func:`slot_scores`).
        token_weights: (B, N), non-negative, 0 for padding; constants, through which no gradient goes.
    """
    if chosen(keys, values, natural.shape[1]):
        found = fused_moments(keys, values, natural, token_weights)
        return SlotMoments(found.log_mass, found.mean, found.second, found.empty)
    attention = attend(slot_scores(keys, natural), None if token_weights is None else token_weights.detach())
    mean, second = attention.attention @ values, attention.attention @ torch.square(values)
    return SlotMoments(attention.log_mass, mean, second, attention.empty)
