"""The E and M steps of slots with types: q(c) q(t) q(pi) q(mu, lambda), and the ELBO (model.md section 4).

A type is a Normal-Gamma, (G,); ``types`` below have locations (B, G, D), about the mean of each image's tokens.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from psa.conjugate import NormalGamma, unpack
from psa.inference.ascent import EStep, Tokens
from psa.inference.conjugate_steps import (
    conjugate_update,
    evidence_lower_bound,
    parameters_of,
    variational_natural,
)
from psa.inference.em import MixtureState


@dataclass(frozen=True)
class TypedState(MixtureState):
    """The mixture between two steps, and q(t).

    Attributes:
        type_probabilities: (B, K, G), tau, sums to 1 over G.
    """

    type_probabilities: Float[Tensor, "batch slots types"] | None = None


def averaged(types: NormalGamma, type_probabilities: Float[Tensor, "batch slots types"]) -> NormalGamma:
    """The Normal-Gamma (B, K) whose natural parameters are the types' averaged under q(t).

    kappa = sum_g tau_g kappa_g, kappa m = sum_g tau_g kappa_g m_g, a = sum_g tau_g a_g, and, about the averaged mean,
    b = sum_g tau_g (b_g + kappa_g (m_g - m)^2 / 2). With one type it is that type.
    """
    tau = type_probabilities
    weight = tau * types.strength
    strength = weight.sum(-1)
    loc = (weight / strength[..., None]) @ types.loc
    spread = (weight[..., None] * (types.loc[:, None] - loc[:, :, None]).square()).sum(2)
    return NormalGamma(loc, strength, tau @ types.shape, tau @ types.rate + 0.5 * spread)


def expected_log_types(types: NormalGamma, components: NormalGamma) -> Float[Tensor, "batch slots types"]:
    """E_q[log NormalGamma(mu_k, lambda_k; type g)] under q(mu, lambda), in nats."""
    precision = components.expected_precision()
    distance = (components.loc[:, :, None] - types.loc[:, None]).square()
    away = (precision[:, :, None] * distance).sum(-1) + components.loc.shape[-1] / components.strength[..., None]
    return (
        (types.shape - 0.5) * components.expected_log_det()[..., None]
        - precision @ types.rate.T
        - 0.5 * types.strength * away
        - types.log_normaliser()
    )


def log_type_evidence(
    types: NormalGamma, sums: Float[Tensor, "batch slots terms"]
) -> Float[Tensor, "batch slots types"]:
    """log Z_g(tokens that slot k owns) / Z_g: how well each type by itself predicts them, up to a constant per slot."""
    moments = unpack(sums[:, :, None], types.loc.shape[-1])
    facing = NormalGamma(types.loc[:, None], types.strength, types.shape, types.rate)
    return facing.posterior(moments).log_normaliser() - types.log_normaliser()


@dataclass(frozen=True)
class TypedRule:
    """Variational Bayes with types, as a rule of :func:`psa.inference.ascent.ascend`; the tokens' prior is the types'.

    One iteration is an E-step for c and t together, which do not meet in the bound, and then q(pi, mu, lambda). So the
    ELBO never falls, and its state follows from the responsibilities and type probabilities kept beside it.

    Attributes:
        concentration: alpha0.
        log_weights: (G,), log of the types' weights; minus infinity for a type that is not used.
    """

    concentration: float
    log_weights: Float[Tensor, " types"]
    late = False

    def natural(self, state: MixtureState) -> Float[Tensor, "batch slots terms"]:
        """E[log pi_k] + E[log Normal]."""
        return variational_natural(state)

    def update(self, step: EStep, state: MixtureState, tokens: Tokens) -> MixtureState:
        """q(t) of the state before, then q(pi, mu, lambda) under the averaged prior.

        A state without q(mu, lambda), at the start, gives each slot the types that predict what it owns.
        """
        if state.precision_rate is None:
            log_tau = log_type_evidence(tokens.prior, step.sums)
        else:
            log_tau = expected_log_types(tokens.prior, parameters_of(state)[1])
        tau = (log_tau + self.log_weights).softmax(-1)
        updated = conjugate_update(step.sums, self.concentration, averaged(tokens.prior, tau))
        return TypedState(**vars(updated), type_probabilities=tau)

    def objective(
        self, step: EStep, before: MixtureState, after: MixtureState, tokens: Tokens
    ) -> Float[Tensor, " batch"]:
        """The ELBO of section 1 under the averaged prior, and what q(t) adds to it.

        That is sum_k [log Z(averaged_k) - sum_g tau_kg log Z_g - KL(q(t_k) || weights)], at most 0.
        """
        assert isinstance(after, TypedState)
        assert after.type_probabilities is not None
        tau = after.type_probabilities
        prior = averaged(tokens.prior, tau)
        under_average = evidence_lower_bound(step.entropy, after, self.concentration, prior, tokens.num_tokens)
        normaliser = prior.log_normaliser() - tau @ tokens.prior.log_normaliser()
        kl = (torch.xlogy(tau, tau) - torch.xlogy(tau, self.log_weights.exp())).sum(-1)
        return under_average + (normaliser - kl).sum(-1)
