"""The E and M steps as pure functions: tensors in, a named record out (docs/em_family.md, model.md section 2).

Everything is in log space, about the tokens' mean, and as matrix products: no tensor of size
batch x slots x tokens x features exists, forward or backward.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from psa.conjugate import (
    LOG_2PI,
    gaussian_log_density,
    natural_parameters,
    pack,
    token_features,
    unpack,
)


@dataclass(frozen=True)
class MixtureState:
    """The mixture between two steps. Conjugate updates carry the Normal-Gamma-Dirichlet parameters as well.

    Attributes:
        loc: (B, K, D), in the coordinates of the values it is fitted to.
        var: (B, K, D), positive.
        log_weights: (B, K), log pi; minus infinity for a slot that owns nothing.
        covariance: (B, K, D, D), where covariances are full; ``var`` is its diagonal.
        concentration, loc_strength, precision_shape: (B, K), or None.
        precision_rate: (B, K, D), or (B, K, D, D) where covariances are full, or None.
    """

    loc: Float[Tensor, "batch slots features"]
    var: Float[Tensor, "batch slots features"]
    log_weights: Float[Tensor, "batch slots"]
    covariance: Float[Tensor, "batch slots features features"] | None = None
    concentration: Float[Tensor, "batch slots"] | None = None
    loc_strength: Float[Tensor, "batch slots"] | None = None
    precision_shape: Float[Tensor, "batch slots"] | None = None
    precision_rate: Float[Tensor, "batch slots *axes"] | None = None

    def map(self, function: Callable[..., Tensor], *others: "MixtureState") -> "MixtureState":
        """Apply a function to every tensor of this state (and the same ones of others)."""
        names = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        return replace(self, **{n: function(getattr(self, n), *(getattr(o, n) for o in others)) for n in names})


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


def dot_scores(
    keys: Float[Tensor, "batch tokens features"], queries: Float[Tensor, "batch slots features"]
) -> Float[Tensor, "batch slots tokens"]:
    """Dot agreement q_k . k_n / sqrt(D) (Locatello et al. 2020, eq. 1).

    Its softmax over slots is the posterior of an isotropic mixture with variance sqrt(D) and weights proportional to
    exp(|q_k|^2 / (2 sqrt(D))).
    """
    return (queries @ keys.transpose(1, 2)) / math.sqrt(keys.shape[-1])


def gaussian_scores(
    keys: Float[Tensor, "batch tokens features"],
    queries: Float[Tensor, "batch slots features"],
    state: MixtureState,
    power: float = 1.0,
) -> Float[Tensor, "batch slots tokens"]:
    """Gaussian agreement log pi_k + power log Normal(k_n; q_k, diag var_k) (PSA algorithm 1, line 5).

    Args:
        keys: (B, N, D), centred on their mean.
        queries: (B, K, D), in the same centred coordinates.
        state: Its variances and weights are used.
        power: Tempering beta of the E-step; 1 is the exact posterior.
    """
    if state.covariance is None:
        return state.log_weights[..., None] + power * gaussian_log_density(keys, queries, state.var)
    return mixture_natural(replace(state, loc=queries), power) @ token_features(keys, full=True)


def mixture_natural(state: MixtureState, power: float = 1.0) -> Float[Tensor, "batch slots terms"]:
    """log pi_k + power log Normal(v_n; mu_k, Sigma_k) as parameters of the tokens' features."""
    if state.covariance is None:
        precision, log_det = state.var.reciprocal(), state.var.log().sum(-1)
    else:
        factor = torch.linalg.cholesky(state.covariance)
        precision = torch.cholesky_inverse(factor)
        log_det = 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    constant = -0.5 * (log_det + state.loc.shape[-1] * LOG_2PI)
    second, first, constant = (power * term for term in natural_parameters(state.loc, precision, constant))
    return pack(second, first, constant + state.log_weights)


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


def mean_update(
    attention: Attention, values: Float[Tensor, "batch tokens features"], previous: MixtureState
) -> MixtureState:
    """mu_k = sum_n Ahat_kn v_n; variances and weights stay. A slot without mass keeps its mean."""
    return replace(previous, loc=torch.where(attention.empty, previous.loc, attention.attention @ values))


def variance_about(
    attention: Attention, values: Float[Tensor, "batch tokens features"], centre: Float[Tensor, "batch slots features"]
) -> Float[Tensor, "batch slots features"]:
    """sum_n Ahat_kn (v_n - centre_k)^2 per axis, by second moments of centred values; 0 for a slot without mass."""
    mean = attention.attention @ values
    within = (attention.attention @ values.square() - mean.square()).clamp(min=0.0)
    shift = torch.where(attention.empty, torch.zeros_like(mean), centre - mean)
    return within + shift.square()


def moments_update(
    attention: Attention,
    values: Float[Tensor, "batch tokens features"],
    previous: MixtureState,
    variance_floor: float,
    num_tokens: Float[Tensor, " batch"],
) -> MixtureState:
    """Mean, variance about the new mean, and weight of every slot (PSA algorithm 1, lines 7 to 9).

    A slot without mass keeps its mean, takes the floor, and weight 0. Weights come from A, not Ahat.

    Args:
        attention: The E-step's record.
        values: (B, N, D), centred.
        previous: The state before the step; where it has full covariances, so has the result.
        variance_floor: Least variance, or least eigenvalue, >= 0, in squared value units.
        num_tokens: (B,), sum of the token weights.
    """
    log_weights = attention.log_mass - num_tokens.log()[:, None]
    state = replace(mean_update(attention, values, previous), log_weights=log_weights)
    if previous.covariance is None:
        return replace(state, var=variance_about(attention, values, state.loc).clamp(min=variance_floor))
    moments = unpack(
        attention.attention @ token_features(values, full=True).transpose(1, 2), values.shape[-1], full=True
    )
    covariance = at_least(moments.scatter, variance_floor)
    return replace(state, covariance=covariance, var=covariance.diagonal(dim1=-2, dim2=-1))


def at_least(
    covariance: Float[Tensor, "*batch features features"], floor: float
) -> Float[Tensor, "*batch features features"]:
    """The covariance with its eigenvalues raised to the floor; the gradient is that of the covariance as it was."""
    symmetric = 0.5 * (covariance + covariance.mT)
    values, vectors = torch.linalg.eigh(symmetric.detach())
    # what rounding leaves of a small eigenvalue beside a large one may be negative
    rounding = 16.0 * torch.finfo(values.dtype).eps * values[..., -1:]
    least = rounding.clamp(min=floor)
    return symmetric + (vectors * (least - values).clamp(min=0.0)[..., None, :]) @ vectors.mT
