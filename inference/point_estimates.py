"""MAP and maximum likelihood of the local model: EM, as rules of the same coordinate ascent.

Their objective is that of the state that the E-step saw: it comes with the E-step, one M-step late.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from psa.conjugate import NormalGamma, unpack
from psa.inference.ascent import EStep, Tokens
from psa.inference.em import MixtureState, at_least, mixture_natural


@dataclass(frozen=True)
class MaximumLikelihoodRule:
    """EM: raises sum_n w_n log sum_k pi_k Normal_k^power, the flat limit of no prior.

    Attributes:
        variance_floor: Least variance or eigenvalue, > 0: without it the likelihood has no maximum.
        power: beta of the tempered E-step.
    """

    variance_floor: float
    power: float = 1.0
    late = True

    def natural(self, state: MixtureState) -> Float[Tensor, "batch slots terms"]:
        """log pi_k + power log Normal."""
        return mixture_natural(state, self.power)

    def update(self, step: EStep, state: MixtureState, tokens: Tokens) -> MixtureState:
        """Moments; a slot without mass keeps its mean, takes the floor, and weight 0."""
        moments = unpack(step.sums, state.loc.shape[-1], tokens.prior.full)
        empty = (moments.count <= 0)[..., None]
        count = torch.where(empty, torch.ones_like(moments.mean[..., :1]), moments.count[..., None])
        loc = torch.where(empty, state.loc, moments.mean)
        log_weights = (moments.count / tokens.num_tokens[:, None]).log()
        if state.covariance is None:
            return MixtureState(loc, (moments.scatter / count).clamp(min=self.variance_floor), log_weights)
        covariance = at_least(moments.scatter / count[..., None], self.variance_floor)
        return MixtureState(loc, covariance.diagonal(dim1=-2, dim2=-1), log_weights, covariance)

    def objective(
        self, step: EStep, before: MixtureState, after: MixtureState, tokens: Tokens
    ) -> Float[Tensor, " batch"]:
        """sum_n w_n log sum_k pi_k Normal_k^power, before the M-step."""
        return step.log_normaliser


@dataclass(frozen=True)
class MaximumAPosterioriRule:
    """EM on beta log p(v | theta) + log p(pi, mu, lambda): the joint mode, in means, precisions and weights.

    It exists where alpha0 >= 1 and a0 > 1/2: elsewhere the density is infinite at an empty slot's border.

    Attributes:
        concentration: alpha0 >= 1.
        coarsening: beta of the coarsened likelihood.
    """

    concentration: float
    coarsening: float = 1.0
    late = True

    def natural(self, state: MixtureState) -> Float[Tensor, "batch slots terms"]:
        """log pi_k + log Normal."""
        return mixture_natural(state)

    def update(self, step: EStep, state: MixtureState, tokens: Tokens) -> MixtureState:
        """pi_k proportional to N_k + alpha0 - 1, mu_k = m_k, lambda_k = (a_k - 1/2) / b_k."""
        moments = unpack(step.sums, state.loc.shape[-1], tokens.prior.full).scaled(self.coarsening)
        components = tokens.prior.posterior(moments)
        mass = moments.count + self.concentration - 1.0
        log_weights = (mass / mass.sum(-1, keepdim=True)).log()
        if not components.full:
            return MixtureState(components.loc, components.rate / (components.shape - 0.5)[..., None], log_weights)
        covariance = components.rate / (components.shape - 0.5)[..., None, None]
        return MixtureState(components.loc, covariance.diagonal(dim1=-2, dim2=-1), log_weights, covariance)

    def objective(
        self, step: EStep, before: MixtureState, after: MixtureState, tokens: Tokens
    ) -> Float[Tensor, " batch"]:
        """beta log p(v | theta) + log p(theta), before the M-step."""
        return self.coarsening * step.log_normaliser + log_prior(before, self.concentration, tokens.prior)


def log_prior(state: MixtureState, concentration: float, prior: NormalGamma) -> Float[Tensor, " batch"]:
    """log p(pi, mu, lambda) of a state, every constant kept; density over the simplex's first K - 1 weights."""
    num_slots = state.loc.shape[1]
    precision = state.var.reciprocal() if state.covariance is None else torch.linalg.inv(state.covariance)
    normaliser = num_slots * math.lgamma(concentration) - math.lgamma(num_slots * concentration)
    # at alpha0 = 1 a weight of 0 has exponent 0
    weights = ((concentration - 1.0) * state.log_weights).sum(-1) if concentration != 1.0 else 0.0
    return weights - normaliser + prior.log_density(state.loc, precision).sum(-1)
