"""The conjugate E and M steps of variational Bayes on the local model, and its ELBO (model.md section 1).

The amortised ``vb`` member and :func:`psa.inference.variational.fit_local_mixture` take these same steps.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from psa.conjugate import (
    LOG_2PI,
    Moments,
    NormalGamma,
    dirichlet_log_normaliser,
    expected_log_weights,
    pack,
    unpack,
)
from psa.inference.em import MixtureState


def with_parameters(concentration: Float[Tensor, "batch slots"], components: NormalGamma) -> MixtureState:
    """q(pi) q(mu, lambda) as a state: 1 / E[lambda] and E[pi] beside the parameters themselves."""
    covariance = components.covariance()
    return MixtureState(
        loc=components.loc,
        var=covariance.diagonal(dim1=-2, dim2=-1) if components.full else covariance,
        log_weights=(concentration / concentration.sum(-1, keepdim=True)).log(),
        covariance=covariance if components.full else None,
        concentration=concentration,
        loc_strength=components.strength,
        precision_shape=components.shape,
        precision_rate=components.rate,
    )


def parameters_of(state: MixtureState) -> tuple[Float[Tensor, "batch slots"], NormalGamma]:
    """The concentration and the components' Normal-Gammas of a state.

    Raises:
        ValueError: If the state carries none.
    """
    strength, shape, rate = state.loc_strength, state.precision_shape, state.precision_rate
    if state.concentration is None or strength is None or shape is None or rate is None:
        raise ValueError("variational agreement needs the state of a conjugate update, got means and variances alone")
    return state.concentration, NormalGamma(state.loc, strength, shape, rate, rate.ndim == 4)


def start_from_mixture(
    state: MixtureState, concentration0: float, prior: NormalGamma, num_tokens: Float[Tensor, " batch"]
) -> MixtureState:
    """q(pi, mu, lambda) of a mixture given by means, variances and weights, as if slot k owned N pi_k tokens."""
    count = num_tokens[:, None] * state.log_weights.exp()
    spread = state.var
    if prior.full:
        spread = state.var.diag_embed() if state.covariance is None else state.covariance
    rate = prior.rate + 0.5 * count.reshape(count.shape + (1,) * (spread.ndim - 2)) * spread
    components = NormalGamma(state.loc, prior.strength + count, prior.shape + 0.5 * count, rate, prior.full)
    return with_parameters(concentration0 + count, components)


def variational_natural(state: MixtureState, power: float = 1.0) -> Float[Tensor, "batch slots terms"]:
    """log rho = E[log pi_k] + power E[log Normal(v_n; mu_k, 1 / lambda_k)] under q, as parameters of the features.

    Raises:
        ValueError: If the state carries no Normal-Gamma-Dirichlet parameters.
    """
    concentration, components = parameters_of(state)
    second, first, constant = (power * term for term in components.expected_natural())
    return pack(second, first, constant + expected_log_weights(concentration))


def conjugate_update(
    sums: Float[Tensor, "batch slots terms"], concentration0: float, prior: NormalGamma, coarsening: float = 1.0
) -> MixtureState:
    """q(pi, mu, lambda) given the responsibilities, in closed form (model.md section 1).

    Args:
        sums: (B, K, terms), sum_n w_n r_kn T(v_n) of the centred tokens (:func:`psa.conjugate.token_features`).
        concentration0: alpha0.
        prior: The components' prior in the same centred coordinates; leading shape (B, 1), or none.
        coarsening: beta of the coarsened likelihood, which multiplies every count.
    """
    return given_moments(unpack(sums, prior.loc.shape[-1], prior.full).scaled(coarsening), concentration0, prior)


def given_moments(moments: Moments, concentration0: float, prior: NormalGamma) -> MixtureState:
    """:func:`conjugate_update` from what each slot owns."""
    return with_parameters(concentration0 + moments.count, prior.posterior(moments))


def entropy(
    responsibilities: Float[Tensor, "batch slots tokens"], token_weights: Float[Tensor, "batch tokens"] | None = None
) -> Float[Tensor, " batch"]:
    """- sum_nk w_n r log r, of the assignments under q(c)."""
    per_token = -torch.xlogy(responsibilities, responsibilities).sum(1)
    return (per_token if token_weights is None else per_token * token_weights).sum(-1)


def evidence_lower_bound(
    entropy: Float[Tensor, " batch"],
    state: MixtureState,
    concentration0: float,
    prior: NormalGamma,
    num_tokens: Float[Tensor, " batch"],
    coarsening: float = 1.0,
) -> Float[Tensor, " batch"]:
    """The ELBO, every constant kept, of q(c) and of the q(pi, mu, lambda) that was computed from it.

    After an M-step the expected log densities and the KL divergences collapse to ratios of normalisers: with H the
    entropy of q(c), ELBO = beta H + log B(alpha) / B(alpha0) + sum_k log Z_k / Z_0 - beta N D log(2 pi) / 2. Every
    single particle of Pyro's TraceEnum_ELBO equals it, with the assignment enumerated in the guide.

    Args:
        entropy: (B,), of q(c) over weighted tokens.
        state: q(pi, mu, lambda), computed from that q(c).
        concentration0: alpha0.
        prior: The components' prior in the coordinates of ``state``.
        num_tokens: (B,), sum of the token weights.
        coarsening: beta; the bound is on the coarsened evidence where it is not 1.
    """
    concentration, components = parameters_of(state)
    weights = dirichlet_log_normaliser(concentration) - dirichlet_log_normaliser(
        torch.full_like(concentration, concentration0)
    )
    evidence = (components.log_normaliser() - prior.log_normaliser()).sum(-1)
    tokens = 0.5 * LOG_2PI * components.loc.shape[-1] * num_tokens
    return coarsening * (entropy - tokens) + weights + evidence
