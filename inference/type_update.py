"""The M-step of empirical Bayes: the types of slots that maximise the summed ELBO given all images' q.

The types enter it through the sum over slots and types of
tau_g (log w_g + E_q log NormalGamma(mu, lambda; m_g, kappa_g, a_g, b_g)),
of which a few additive sums are sufficient. Its maximum is in closed form but for a_g, which is one root.
"""

import math
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from psa.inference.conjugate_steps import parameters_of
from psa.inference.typed_steps import TypedState
from psa.models.typed_mixture import TypePrior

NEWTON_STEPS = 100  # never reached: it converges in about five


@dataclass(frozen=True)
class TypeStatistics:
    """Sums over slots, float64, that the types' update needs; those of several chunks or processes add.

    Attributes:
        origin: (D,), about which means are taken; the same in all that are added.
        count: (G,), sum of tau_g.
        log_precision: (G,), sum of tau_g sum_d E[log lambda_d].
        precision: (G, D), sum of tau_g E[lambda_d].
        first: (G, D), sum of tau_g E[lambda_d mu_d].
        second: (G,), sum of tau_g sum_d E[lambda_d mu_d^2].
    """

    origin: Float[Tensor, " features"]
    count: Float[Tensor, " types"]
    log_precision: Float[Tensor, " types"]
    precision: Float[Tensor, "types features"]
    first: Float[Tensor, "types features"]
    second: Float[Tensor, " types"]

    def __add__(self, other: "TypeStatistics") -> "TypeStatistics":
        if not torch.equal(self.origin, other.origin):
            raise ValueError("statistics that are added must have the same origin, got two")
        sums = (field.name for field in fields(self) if field.name != "origin")
        return TypeStatistics(self.origin, *(getattr(self, name) + getattr(other, name) for name in sums))


def type_statistics(state: TypedState, origin: Float[Tensor, " features"]) -> TypeStatistics:
    """The sums over all slots of some images' q, about ``origin`` (D,), which should be near the types' means."""
    assert state.type_probabilities is not None
    q = parameters_of(state.map(lambda tensor: tensor.to(torch.float64)))[1].shifted(-origin)
    tau = state.type_probabilities.to(torch.float64).flatten(0, 1).T
    precision = q.expected_precision()
    first = precision * q.loc
    second = (first * q.loc).sum(-1) + q.loc.shape[-1] / q.strength
    sums = (tau @ each.flatten(0, 1) for each in (q.expected_log_det(), precision, first, second))
    return TypeStatistics(origin, tau.sum(-1), *sums)


def gamma_shape(excess: Float[Tensor, " types"]) -> Float[Tensor, " types"]:
    """The root a of log a - digamma(a) = excess > 0, by Newton's method in 1 / a (Minka 2002, eq. 10)."""
    shape = (3.0 - excess + ((excess - 3.0).square() + 24.0 * excess).sqrt()) / (12.0 * excess)
    for _ in range(NEWTON_STEPS):
        slope = shape.square() * (shape.reciprocal() - torch.polygamma(1, shape))
        after = (shape.reciprocal() + (shape.log() - shape.digamma() - excess) / slope).reciprocal()
        done = bool(((after - shape).abs() <= 1e-9 * shape).all())
        shape = after
        if done:
            break
    return shape


def update_types(statistics: TypeStatistics, types: TypePrior) -> TypePrior:
    """The types that maximise the ELBO given q (the M-step of empirical Bayes), float64.

    With expectations over slots, their q(t) and q(mu, lambda): w_g = n_g / n; m_gd = E[lambda_d mu_d] / E[lambda_d];
    1 / kappa_g = E[sum_d lambda_d (mu_d - m_gd)^2] / D; b_gd = a_g / E[lambda_d]; and log a_g - digamma(a_g) = the mean
    over axes of log E[lambda_d] - E[log lambda_d]. A type that owns nothing stays as it was, with weight 0.
    """
    num_features = types.loc.shape[1]
    held = types.to(statistics.first)
    owns = statistics.count > math.sqrt(torch.finfo(torch.float64).tiny)
    count = torch.where(owns, statistics.count, torch.ones_like(statistics.count))
    precision = torch.where(owns[:, None], statistics.precision, torch.ones_like(statistics.precision))
    offset = statistics.first / precision
    distance = statistics.second - (statistics.first * offset).sum(-1)
    log_mean = (precision / count[:, None]).log()
    excess = log_mean.mean(-1) - statistics.log_precision / (count * num_features)
    shape = gamma_shape(torch.where(owns, excess, torch.ones_like(excess)))
    strength = num_features * count / torch.where(owns, distance, torch.ones_like(distance))
    return TypePrior(
        weights=torch.where(owns, statistics.count, torch.zeros_like(count)) / statistics.count[owns].sum(),
        loc=torch.where(owns[:, None], statistics.origin + offset, held.loc),
        loc_strength=torch.where(owns, strength, held.loc_strength),
        precision_shape=torch.where(owns, shape, held.precision_shape),
        precision_rate=torch.where(owns[:, None], (shape * count)[:, None] / precision, held.precision_rate),
    )
