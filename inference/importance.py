"""Importance sampling of theta = (pi, mu, lambda), with proposals added where the ratios are largest.

Proposals are q(pi) q(mu, lambda) averaged over the K! relabellings: the joint is the same under every labelling, and a
proposal that knows one of them is low by about log K! with nothing to show it.
"""

import math
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from psa.conjugate import NormalGamma, dirichlet_log_normaliser, unpack
from psa.inference.annealing import sweep
from psa.inference.fits import LocalMixtureFit
from psa.inference.gibbs import (
    Parameters,
    Problem,
    component_log_density,
    draw_parameters,
    draw_sums,
    joined,
    log_likelihood,
    log_prior,
    pose,
    prior_draws,
)
from psa.inference.variational import FitOptions, fit_local_mixture
from psa.models.local_mixture import LocalMixturePrior
from psa.permanent import MAX_SIZE, log_permanent

NUM_FITS = 4
WIDE = 0.25  # counts of the second proposal of a fit, whose tails are heavier
NUM_ASSIGNMENTS = 16  # proposals given drawn assignments, at the start and in each round
NUM_SWEEPS = 10
NUM_ROUNDS = 2
PRIOR_SHARE = 0.1
MAX_TERMS = 1 << 22  # of permanents at once


@dataclass(frozen=True)
class Proposal:
    """q(pi) q(mu, lambda) of a batch of images, averaged over the K! relabellings.

    Attributes:
        concentration: (B, K).
        components: (B, K), about the tokens' mean.
    """

    concentration: Float[Tensor, "batch slots"]
    components: NormalGamma

    def draw(self, num_draws: int, generator: torch.Generator | None) -> Parameters:
        """Draws under one labelling: what is averaged does not depend on it."""
        concentration = self.concentration[:, None].expand(-1, num_draws, -1).contiguous()
        return draw_parameters(concentration, self._facing((1,)), generator)

    def log_density(self, parameters: Parameters) -> Float[Tensor, "batch draws"]:
        """log (1 / K!) sum over permutations s of q(s(theta)): the permanent of the slots' pairwise densities."""
        num_slots = self.concentration.shape[-1]
        match = self.matches(parameters)
        size = max(1, (MAX_TERMS >> num_slots) // len(match))
        labellings = torch.cat([log_permanent(part) for part in match.split(size, dim=1)], dim=1)
        return labellings - math.lgamma(num_slots + 1) - dirichlet_log_normaliser(self.concentration)[:, None]

    def matches(self, parameters: Parameters) -> Float[Tensor, "batch draws slots slots"]:
        """log density of every factor k (rows) at every slot j, up to the Dirichlet's normaliser."""
        normal_gamma = self._facing((1, 3)).log_density(parameters.loc[:, :, None], parameters.precision[:, :, None])
        return normal_gamma + (self.concentration[:, None, :, None] - 1.0) * parameters.log_weights[:, :, None]

    def _facing(self, axes: tuple[int, ...]) -> NormalGamma:
        """The components with axes of size 1 put in, in turn."""
        q = self.components
        for axis in axes:
            loc, strength, shape, rate = (part.unsqueeze(axis) for part in (q.loc, q.strength, q.shape, q.rate))
            q = NormalGamma(loc, strength, shape, rate)
        return q


@dataclass(frozen=True)
class WeightedDraws:
    """Draws of theta from a growing mixture of the prior and proposals, each in the denominator with its share.

    Attributes:
        problem: The images.
        parameters: (B, S), about the tokens' mean.
        log_joint: (B, S), log p(v, theta).
        log_densities: (B, S, 1 + M), log density under the prior and every proposal.
        proposals: M of them.
        counts: Draws from the prior and from each proposal; they sum to S.
    """

    problem: Problem
    parameters: Parameters
    log_joint: Float[Tensor, "batch draws"]
    log_densities: Float[Tensor, "batch draws sources"]
    proposals: list[Proposal] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    @property
    def log_ratios(self) -> Float[Tensor, "batch draws"]:
        """log p(v, theta) - log q(theta): the evidence is the mean of their exponentials (Veach and Guibas 1995)."""
        share = torch.tensor(self.counts, dtype=torch.float64, device=self.log_joint.device).log()
        return self.log_joint - (self.log_densities + share).logsumexp(-1) + math.log(sum(self.counts))

    def extended(self, new: list[Proposal], num_draws: int, generator: torch.Generator | None) -> "WeightedDraws":
        """With ``num_draws`` more, shared among new proposals."""
        counts = [len(part) for part in torch.arange(num_draws).tensor_split(len(new))]
        drawn = joined([proposal.draw(count, generator) for proposal, count in zip(new, counts, strict=True)])
        density = log_prior(self.problem, drawn)
        joint = log_likelihood(self.problem, drawn) + density
        proposals = [*self.proposals, *new]
        rows = torch.stack([density, *(proposal.log_density(drawn) for proposal in proposals)], dim=-1)
        columns = torch.stack([proposal.log_density(self.parameters) for proposal in new], dim=-1)
        return WeightedDraws(
            self.problem,
            joined([self.parameters, drawn]),
            torch.cat([self.log_joint, joint], dim=1),
            torch.cat([torch.cat([self.log_densities, columns], dim=-1), rows], dim=1),
            proposals,
            [*self.counts, *counts],
        )

    def afresh(self, generator: torch.Generator | None) -> "WeightedDraws":
        """As many new draws from the prior and from each proposal, and none of the old ones."""
        sources = zip(self.proposals, self.counts[1:], strict=True)
        first = prior_draws(self.problem, self.counts[0], generator)
        drawn = joined([first, *(proposal.draw(count, generator) for proposal, count in sources)])
        density = log_prior(self.problem, drawn)
        densities = torch.stack([density, *(proposal.log_density(drawn) for proposal in self.proposals)], dim=-1)
        joint = log_likelihood(self.problem, drawn) + density
        return replace(self, parameters=drawn, log_joint=joint, log_densities=densities)


def importance_draws(
    tokens: Float[Tensor, "batch tokens features"],
    prior: LocalMixturePrior,
    num_slots: int,
    num_samples: int,
    *,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> WeightedDraws:
    """Draws of theta and their ratios to p(v, theta), from proposals that follow the ratios.

    First the prior, variational fits from four starts, each as it is and with its counts quartered, and the
    conditionals p(theta | c, v) of assignments from short Gibbs runs; then, in two rounds, such conditionals at the
    draws of largest ratio (incremental mixture importance sampling, Raftery and Bao 2010). At the end all draws are
    made afresh from the settled mixture: those that proposals followed would bias the estimate low.

    Args:
        tokens: (B, N, D).
        prior: Prior of the local model.
        num_slots: K <= 14.
        num_samples: S >= 100, draws of every image.
        mask: (B, N) bool, False where a token is padding.
        generator: Source of starts and draws.

    Raises:
        ValueError: If num_samples is too small, or there are more slots than labellings can be summed over.
    """
    if num_slots > MAX_SIZE:
        raise ValueError(
            f"num_slots must be at most {MAX_SIZE} for importance sampling, which sums over labellings, "
            f"got {num_slots}: use method annealed, or NUTS for draws"
        )
    if num_samples < 100:
        raise ValueError(f"num_samples must be at least 100 for importance sampling, got {num_samples}")
    problem = pose(tokens, prior, num_slots, mask)
    from_prior = round(PRIOR_SHARE * num_samples)
    start = prior_draws(problem, from_prior, generator)
    density = log_prior(problem, start)
    joint = log_likelihood(problem, start) + density
    draws = WeightedDraws(problem, start, joint, density[..., None], [], [from_prior])
    new = _fitted(tokens.to(torch.float64), prior, problem, mask, generator)
    for part in torch.arange(num_samples - from_prior).tensor_split(1 + NUM_ROUNDS):
        draws = draws.extended(new, len(part), generator)
        new = _given_assignments(problem, draws.parameters[draws.log_ratios.topk(NUM_ASSIGNMENTS).indices], generator)
    return draws.afresh(generator)


def _fitted(
    tokens: Tensor, prior: LocalMixturePrior, problem: Problem, mask: Tensor | None, generator: torch.Generator | None
) -> list[Proposal]:
    """Proposals of variational fits, and of assignments that Gibbs sweeps reach from them."""
    proposals = []
    for options in [FitOptions(), *[FitOptions(start="random")] * (NUM_FITS - 1)]:
        restarts = 8 if options.start == "farthest" else 1
        fit = fit_local_mixture(
            tokens, prior, problem.num_slots, num_restarts=restarts, mask=mask, generator=generator, options=options
        )
        assert isinstance(fit, LocalMixtureFit)
        sharp = Proposal(fit.concentration, replace(fit.components, loc=fit.loc - problem.origin))
        wide = _given_sums(problem, WIDE * fit.responsibilities @ problem.features.transpose(1, 2))
        parameters = sharp.draw(NUM_ASSIGNMENTS // NUM_FITS, generator)
        for _ in range(NUM_SWEEPS):
            parameters = sweep(problem, parameters, generator)
        proposals += [sharp, wide, *_given_assignments(problem, parameters, generator)]
    return proposals


def _given_assignments(problem: Problem, parameters: Parameters, generator: torch.Generator | None) -> list[Proposal]:
    """p(theta | c, v) at one drawn c for each of a few draws of theta."""
    scores = parameters.log_weights[..., None] + component_log_density(problem, parameters)
    return [_given_sums(problem, sums) for sums in draw_sums(problem, scores, generator).unbind(1)]


def _given_sums(problem: Problem, sums: Float[Tensor, "batch slots terms"]) -> Proposal:
    moments = unpack(sums, problem.num_features)
    prior = replace(problem.components, loc=problem.components.loc[:, 0])
    return Proposal(problem.concentration + moments.count, prior.posterior(moments))
