"""Blocked Gibbs steps of the local model, diagonal covariances: parameters given sums, assignments given parameters.

Every function takes any number of draws of each image side by side, (B, S, ...), and an image's tokens once.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psa.conjugate import (
    LOG_2PI,
    NormalGamma,
    dirichlet_log_normaliser,
    natural_parameters,
    pack,
    token_features,
    unpack,
)
from psa.inference.coordinates import centre
from psa.models.local_mixture import LocalMixturePrior

MAX_ENTRIES = 1 << 24  # of draws x slots x tokens at once


@dataclass(frozen=True)
class Parameters:
    """Draws of theta = (pi, mu, lambda), about the tokens' mean.

    Attributes:
        log_weights: (B, S, K), log pi: at a small alpha0 weights underflow, their logarithms do not.
        loc: (B, S, K, D).
        precision: (B, S, K, D).
    """

    log_weights: Float[Tensor, "batch draws slots"]
    loc: Float[Tensor, "batch draws slots features"]
    precision: Float[Tensor, "batch draws slots features"]

    def __getitem__(self, index: Int[Tensor, "batch draws"]) -> "Parameters":
        """Draws by their number within each image."""
        image = torch.arange(len(index), device=index.device)[:, None]
        return Parameters(self.log_weights[image, index], self.loc[image, index], self.precision[image, index])


def joined(parts: list[Parameters]) -> Parameters:
    """Draws one after another."""
    return Parameters(
        torch.cat([part.log_weights for part in parts], dim=1),
        torch.cat([part.loc for part in parts], dim=1),
        torch.cat([part.precision for part in parts], dim=1),
    )


@dataclass(frozen=True)
class Problem:
    """A batch of images, centred, and the prior of the local model.

    Attributes:
        features: (B, terms, N), T(v_n); 0 at tokens left out, which so have density 1 and count nowhere.
        origin: (B, 1, D), what was taken off.
        concentration: alpha0.
        components: (B, 1, 1) prior over one component.
        num_slots: K.
    """

    features: Float[Tensor, "batch terms tokens"]
    origin: Float[Tensor, "batch 1 features"]
    concentration: float
    components: NormalGamma
    num_slots: int

    @property
    def num_features(self) -> int:
        """D."""
        return self.origin.shape[-1]


def pose(tokens: Tensor, prior: LocalMixturePrior, num_slots: int, mask: Tensor | None) -> Problem:
    """Centre a batch in float64; the mask is 0/1, as weights have no sampling distribution.

    Raises:
        ValueError: If the mask is not bool.
    """
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool where assignments are summed or drawn, got {mask.dtype}")
    values, weights, origin = centre(tokens.to(torch.float64), mask)
    components = prior.components(values).shifted(-origin[:, None])
    features = token_features(values, full=False)
    features = features if weights is None else features * weights[:, None]
    return Problem(features, origin, prior.concentration, components, num_slots)


def draw_parameters(
    concentration: Float[Tensor, "batch draws slots"], components: NormalGamma, generator: torch.Generator | None
) -> Parameters:
    """pi ~ Dirichlet(concentration) in log space; lambda ~ Gamma, mu | lambda ~ Normal of every component."""
    loc = components.loc.expand(*concentration.shape, -1)
    # Gamma(a) = Gamma(a + 1) U^(1 / a), whose logarithm does not underflow at a small a
    boosted = torch._standard_gamma(concentration + 1.0, generator=generator).log()
    uniform = torch.rand(concentration.shape, dtype=loc.dtype, device=loc.device, generator=generator)
    log_gamma = boosted + uniform.clamp(min=torch.finfo(loc.dtype).tiny).log() / concentration
    shape = components.shape.expand(concentration.shape)[..., None].expand(loc.shape)
    precision = torch._standard_gamma(shape.contiguous(), generator=generator) / components.rate
    precision = precision.clamp(min=torch.finfo(loc.dtype).tiny)
    noise = torch.randn(loc.shape, dtype=loc.dtype, device=loc.device, generator=generator)
    strength = components.strength.expand(concentration.shape)[..., None]
    return Parameters(
        log_gamma - log_gamma.logsumexp(-1, keepdim=True), loc + noise * (strength * precision).rsqrt(), precision
    )


def component_log_density(problem: Problem, parameters: Parameters) -> Float[Tensor, "batch draws slots tokens"]:
    """log Normal(v_n; mu_k, 1 / lambda_k) of every draw, slot and token; 0 at tokens left out."""
    constant = 0.5 * (parameters.precision.log().sum(-1) - problem.num_features * LOG_2PI)
    natural = pack(*natural_parameters(parameters.loc, parameters.precision, constant))
    scores = natural.flatten(1, 2) @ problem.features
    return scores.unflatten(1, parameters.log_weights.shape[1:])


def draw_sums(
    problem: Problem, scores: Float[Tensor, "batch draws slots tokens"], generator: torch.Generator | None
) -> Float[Tensor, "batch draws slots terms"]:
    """One draw of the assignments in proportion to exp(scores), as sums of features over what each slot owns."""
    cumulative = scores.softmax(2).cumsum(2)
    shape = (*scores.shape[:2], 1, scores.shape[3])
    uniform = torch.rand(shape, dtype=scores.dtype, device=scores.device, generator=generator) * cumulative[:, :, -1:]
    below = (uniform < cumulative).to(scores.dtype)
    owned = below - torch.nn.functional.pad(below[:, :, :-1], (0, 0, 1, 0))
    sums = owned.flatten(1, 2) @ problem.features.transpose(1, 2)
    return sums.unflatten(1, scores.shape[1:3])


def given_sums(
    problem: Problem, sums: Float[Tensor, "batch draws slots terms"], generator: torch.Generator | None
) -> Parameters:
    """theta given what each slot owns."""
    moments = unpack(sums, problem.num_features)
    return draw_parameters(problem.concentration + moments.count, problem.components.posterior(moments), generator)


def prior_draws(problem: Problem, num_draws: int, generator: torch.Generator | None) -> Parameters:
    """theta from the prior, (B, S)."""
    batch, terms, _ = problem.features.shape
    empty = problem.features.new_zeros(batch, num_draws, problem.num_slots, terms)
    return given_sums(problem, empty, generator)


def log_likelihood(problem: Problem, parameters: Parameters) -> Float[Tensor, "batch draws"]:
    """log p(v | theta), assignments summed out; in parts that fit memory."""
    batch, num_draws, num_slots = parameters.log_weights.shape
    size = max(1, MAX_ENTRIES // (batch * num_slots * problem.features.shape[-1]))
    parts = []
    for first in range(0, num_draws, size):
        index = torch.arange(first, min(first + size, num_draws), device=problem.features.device).expand(batch, -1)
        part = parameters[index]
        scores = part.log_weights[..., None] + component_log_density(problem, part)
        parts.append(scores.logsumexp(2).sum(-1))
    return torch.cat(parts, dim=1)


def log_prior(problem: Problem, parameters: Parameters) -> Float[Tensor, "batch draws"]:
    """log p(pi, mu, lambda)."""
    alpha0 = problem.concentration
    normaliser = dirichlet_log_normaliser(torch.full_like(parameters.log_weights[:, 0], alpha0))
    weights = (alpha0 - 1.0) * parameters.log_weights.sum(-1) - normaliser[:, None]
    return weights + problem.components.log_density(parameters.loc, parameters.precision).sum(-1)
