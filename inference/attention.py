"""The E-step as a dense expression: scores, responsibilities, attention. Autograd differentiates it as often as asked.

:mod:`psa.inference.slot_moments` finds the same moments in chunks and by hand-written gradients.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from psa.conjugate import token_features


@dataclass(frozen=True)
class Attention:
    """An E-step's result, normalised both ways.

    Attributes:
        responsibilities: (B, K, N), A: sums to 1 over K.
        attention: (B, K, N), Ahat = A / sum_n A: sums to 1 over the valid tokens; 0 for a slot without mass.
        log_mass: (B, K), log sum_n w_n A_kn; minus infinity where the mass underflows.
        empty: (B, K, 1), the slots whose row of Ahat is 0: no mass, and no epsilon to make up for it.
    """

    responsibilities: Float[Tensor, "batch slots tokens"]
    attention: Float[Tensor, "batch slots tokens"]
    log_mass: Float[Tensor, "batch slots"]
    empty: Bool[Tensor, "batch slots 1"]


def exp_or_zero(log_p: Tensor) -> Tensor:
    """exp, with exact zeros below a third of the dtype's log range (about -29 in float32).

    A product of three such numbers is still a normal number: denormals cost a factor of 40 on a CPU.
    """
    floor = math.log(torch.finfo(log_p.dtype).tiny) / 3.0
    return torch.where(log_p < floor, torch.zeros_like(log_p), log_p.clamp(min=floor).exp())


def slot_scores(
    keys: Float[Tensor, "batch tokens features"], natural: Float[Tensor, "batch slots terms"]
) -> Float[Tensor, "batch slots tokens"]:
    """natural_k . (k_n^2, k_n, 1), any diagonal Gaussian's log density; natural_k . (k_n, 1) if it is that short."""
    terms, constant = natural[..., :-1], natural[..., -1:]
    features = token_features(keys, full=False)[:, -1 - terms.shape[-1] : -1]
    return constant + terms @ features  # the constant is added, not multiplied: it may be minus infinity


def attend(
    scores: Float[Tensor, "batch slots tokens"],
    token_weights: Float[Tensor, "batch tokens"] | None = None,
    epsilon: float = 0.0,
) -> Attention:
    """Responsibilities A = softmax of the scores over slots, and Ahat = A / sum_n A over tokens.

    Args:
        scores: (B, K, N), log pi_k p(k_n | k) up to a constant per token.
        token_weights: (B, N), non-negative, 0 for padding; they count in sums over tokens and never inside A.
        epsilon: Added to A before Ahat, as Slot Attention does (1e-8); 0 normalises in log space, so that a slot of
            tiny mass still goes to the exact mean of its tokens.

    Returns:
        The record; A sums to 1 over slots, Ahat over tokens.
    """
    log_a = scores.log_softmax(dim=1)
    responsibilities = exp_or_zero(log_a)
    log_w = None if token_weights is None else token_weights.log()[:, None]
    weighted = log_a if log_w is None else log_a + log_w
    top = weighted.amax(dim=-1, keepdim=True).detach()
    top = torch.where(top < math.log(torch.finfo(top.dtype).tiny), torch.full_like(top, torch.inf), top)
    share = exp_or_zero(weighted - top)
    total = share.sum(-1, keepdim=True)
    empty = torch.isposinf(top)
    total = torch.where(empty, torch.ones_like(total), total)
    log_mass = torch.where(empty, -top, top + total.log()).squeeze(-1)
    if epsilon > 0.0:
        share = responsibilities + epsilon
        share = share if token_weights is None else share * token_weights[:, None]
        total, empty = share.sum(-1, keepdim=True), torch.zeros_like(empty)
    return Attention(responsibilities, share / total, log_mass, empty)
