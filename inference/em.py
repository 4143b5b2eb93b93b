"""The E and M steps as pure functions: tensors in, a named record out (docs/em_family.md, model.md section 2).

Everything is in log space, about the tokens' mean, and as matrix products: no tensor of size
batch x slots x tokens x features exists, forward or backward.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float
from torch import Tensor

from psa.conjugate import LOG_2PI, natural_parameters, pack, unpack
from psa.inference.slot_moments import SlotMoments


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


def dot_natural(
    queries: Float[Tensor, "batch slots features"], key_origin: Float[Tensor, "batch 1 features"], power: float = 1.0
) -> Float[Tensor, "batch slots terms"]:
    """Dot agreement power q_k . k_n / sqrt(D) (Locatello et al. 2020, eq. 1) as parameters of (k_n, 1).

    Its softmax over slots is the posterior of an isotropic mixture with variance sqrt(D) and weights proportional to
    exp(|q_k|^2 / (2 sqrt(D))).

    Args:
        queries: (B, K, D).
        key_origin: (B, 1, D), from which the centred keys are counted.
        power: Multiplies the agreement.
    """
    scaled = queries * (power / math.sqrt(queries.shape[-1]))
    return torch.cat([scaled, (scaled * key_origin).sum(-1, keepdim=True)], dim=-1)


def mixture_natural(state: MixtureState, power: float = 1.0) -> Float[Tensor, "batch slots terms"]:
    """Gaussian agreement log pi_k + power log Normal(k_n; mu_k, Sigma_k) as parameters of the tokens' features.

    PSA algorithm 1, line 5.

    Args:
        state: Its means are the queries, in the coordinates of the keys.
        power: Tempering beta of the E-step; 1 is the exact posterior.
    """
    if state.covariance is None:
        precision, log_det = state.var.reciprocal(), state.var.log().sum(-1)
    else:
        factor = torch.linalg.cholesky(state.covariance)
        precision = torch.cholesky_inverse(factor)
        log_det = 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    constant = -0.5 * (log_det + state.loc.shape[-1] * LOG_2PI)
    second, first, constant = (power * term for term in natural_parameters(state.loc, precision, constant))
    return pack(second, first, constant + state.log_weights)


def mean_update(moments: SlotMoments, previous: MixtureState) -> MixtureState:
    """mu_k = sum_n Ahat_kn v_n; variances and weights stay. A slot without mass keeps its mean."""
    return replace(previous, loc=torch.where(moments.empty, previous.loc, moments.mean))


def variance_about(
    moments: SlotMoments, centre: Float[Tensor, "batch slots features"]
) -> Float[Tensor, "batch slots features"]:
    """sum_n Ahat_kn (v_n - centre_k)^2 per axis, by second moments of centred values; 0 for a slot without mass."""
    assert moments.second is not None
    within = (moments.second - moments.mean.square()).clamp(min=0.0)
    shift = torch.where(moments.empty, torch.zeros_like(centre), centre - moments.mean)
    return within + shift.square()


def moments_update(
    moments: SlotMoments, previous: MixtureState, variance_floor: float, num_tokens: Float[Tensor, " batch"]
) -> MixtureState:
    """Mean, variance about the new mean, and weight of every slot (PSA algorithm 1, lines 7 to 9).

    A slot without mass keeps its mean, takes the floor, and weight 0. Weights come from A, not Ahat.

    Args:
        moments: Of the E-step, centred; of v_n v_n' where covariances are full.
        previous: The state before the step; where it has full covariances, so has the result.
        variance_floor: Least variance, or least eigenvalue, >= 0, in squared value units.
        num_tokens: (B,), sum of the token weights.
    """
    log_weights = moments.log_mass - num_tokens.log()[:, None]
    state = replace(mean_update(moments, previous), log_weights=log_weights)
    if previous.covariance is None:
        return replace(state, var=variance_about(moments, state.loc).clamp(min=variance_floor))
    assert moments.second is not None
    one = torch.ones_like(moments.log_mass)
    scatter = unpack(pack(moments.second, moments.mean, one), moments.mean.shape[-1], full=True).scatter
    covariance = at_least(scatter, variance_floor)
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
