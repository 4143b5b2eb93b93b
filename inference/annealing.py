"""Sequential Monte Carlo that takes in one token after another (Chopin 2002; Fearnhead 2004).

A particle is what each slot owns of the tokens so far; weights, means and precisions are integrated out. A token's
weight is its predictive density, its slot is drawn from the exact conditional, and its running mean over particles
multiplies up to the evidence. When weights degenerate, particles are resampled and moved by Gibbs sweeps over all the
tokens so far. A cluster is found when its first token comes; annealing the likelihood of all tokens at once froze
particles in partitions that the sweeps could not leave. Particles come in every labelling: no log K! is added.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psa.conjugate import LOG_2PI, unpack
from psa.inference.gibbs import (
    MAX_ENTRIES,
    Parameters,
    Problem,
    component_log_density,
    draw_sums,
    given_sums,
    pose,
)
from psa.models.local_mixture import LocalMixturePrior

NUM_RUNS = 16
DEGENERATE = 0.5  # effective share of particles below which a run resamples


@dataclass(frozen=True)
class Population:
    """Where the particles ended.

    Attributes:
        parameters: (B, R P) draws from the posterior, runs one after another, about the tokens' mean.
        run_log_evidence: (B, R), each independent run's estimate, unbiased on the natural scale.
    """

    parameters: Parameters
    run_log_evidence: Float[Tensor, "batch runs"]


def anneal(
    tokens: Float[Tensor, "batch tokens features"],
    prior: LocalMixturePrior,
    num_slots: int,
    num_samples: int,
    *,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    num_sweeps: int = 3,
) -> Population:
    """Take in the tokens of every image one by one, each run in an order of its own.

    Args:
        tokens: (B, N, D).
        prior: Prior of the local model.
        num_slots: K.
        num_samples: Particles of every image, in 16 independent runs; a multiple of 16, at least 64.
        mask: (B, N) bool, False where a token is padding.
        generator: Source of all draws.
        num_sweeps: Gibbs sweeps after each resampling, and at the end.

    Raises:
        ValueError: If num_samples is not such a multiple.
    """
    if num_samples < 4 * NUM_RUNS or num_samples % NUM_RUNS:
        raise ValueError(f"num_samples must be a multiple of {NUM_RUNS} and at least {4 * NUM_RUNS}, got {num_samples}")
    size = max(1, MAX_ENTRIES // (num_samples * num_slots * tokens.shape[1]))
    parts = []
    for first in range(0, len(tokens), size):
        some = slice(first, first + size)
        problem = pose(tokens[some], prior, num_slots, None if mask is None else mask[some])
        parts.append(_anneal(problem, num_samples, num_sweeps, generator))
    parameters = [part.parameters for part in parts]
    return Population(
        Parameters(
            torch.cat([p.log_weights for p in parameters]),
            torch.cat([p.loc for p in parameters]),
            torch.cat([p.precision for p in parameters]),
        ),
        torch.cat([part.run_log_evidence for part in parts]),
    )


def _anneal(problem: Problem, num_samples: int, num_sweeps: int, generator: torch.Generator | None) -> Population:
    batch, terms, num_tokens = problem.features.shape
    num_particles = num_samples // NUM_RUNS
    sums = problem.features.new_zeros(batch, num_samples, problem.num_slots, terms)
    log_weights = problem.features.new_zeros(batch, NUM_RUNS, num_particles)
    evidence = problem.features.new_zeros(batch, NUM_RUNS)
    order = _orders(problem, generator)
    image = torch.arange(batch, device=order.device)[:, None]
    for position in range(num_tokens):
        token = problem.features.transpose(1, 2)[image, order[..., position]].repeat_interleave(num_particles, 1)
        scores = predictive_scores(problem, sums, token)
        log_weights = log_weights + scores.logsumexp(-1).unflatten(1, (NUM_RUNS, num_particles))
        sums = sums + draw_slot(scores, generator)[..., None] * token[:, :, None]
        share = log_weights.softmax(-1)
        poor = share.square().sum(-1).reciprocal() < DEGENERATE * num_particles
        if position == num_tokens - 1:
            poor = torch.ones_like(poor)
        if bool(poor.any()):
            evidence = evidence + torch.where(poor, log_weights.logsumexp(-1) - math.log(num_particles), 0.0)
            kept = _resampled(log_weights, poor, generator)
            sums = sums.gather(1, kept[..., None, None].expand_as(sums))
            log_weights = torch.where(poor[..., None], torch.zeros_like(log_weights), log_weights)
            sums = _moved(problem, sums, order[..., : position + 1], poor, num_sweeps, generator)
    return Population(given_sums(problem, sums, generator), evidence)


def _orders(problem: Problem, generator: torch.Generator | None) -> Int[Tensor, "batch runs tokens"]:
    """A random order of the tokens for every run, tokens left out last."""
    batch, _, num_tokens = problem.features.shape
    like = problem.features
    key = torch.rand((batch, NUM_RUNS, num_tokens), dtype=like.dtype, device=like.device, generator=generator)
    return (key + 1.0 - like[:, -1:]).argsort(-1)


def predictive_scores(
    problem: Problem, sums: Float[Tensor, "batch draws slots terms"], token: Float[Tensor, "batch draws terms"]
) -> Float[Tensor, "batch draws slots"]:
    """log p(c = k, v | the tokens in ``sums``): Polya's urn times a product of Student t densities.

    Of a token left out, whose features are 0, they sum to 1 over slots.
    """
    moments = unpack(sums, problem.num_features)
    q = problem.components.posterior(moments)
    value, present = token[:, :, problem.num_features : -1], token[:, :, -1]
    strength, shape = q.strength[..., None], q.shape[..., None].expand_as(q.loc)
    spread = q.rate * (strength + 1.0) / strength
    distance = (value[:, :, None] - q.loc).square() / (2.0 * spread)
    density = (
        (shape + 0.5).lgamma() - shape.lgamma() - 0.5 * (LOG_2PI + spread.log()) - (shape + 0.5) * distance.log1p()
    )
    urn = problem.concentration + moments.count
    return (urn / urn.sum(-1, keepdim=True)).log() + present[..., None] * density.sum(-1)


def draw_slot(
    scores: Float[Tensor, "batch draws slots"], generator: torch.Generator | None
) -> Float[Tensor, "batch draws slots"]:
    """One slot for every draw in proportion to exp(scores), as 0 and 1."""
    cumulative = scores.softmax(-1).cumsum(-1)
    shape = (*scores.shape[:-1], 1)
    uniform = torch.rand(shape, dtype=scores.dtype, device=scores.device, generator=generator) * cumulative[..., -1:]
    below = (uniform < cumulative).to(scores.dtype)
    return below - torch.nn.functional.pad(below[..., :-1], (1, 0))


def sweep(problem: Problem, parameters: Parameters, generator: torch.Generator | None) -> Parameters:
    """Assignments given theta, then theta given assignments, (B, S); leaves the posterior as it is."""
    scores = parameters.log_weights[..., None] + component_log_density(problem, parameters)
    return given_sums(problem, draw_sums(problem, scores, generator), generator)


def _moved(
    problem: Problem,
    sums: Float[Tensor, "batch draws slots terms"],
    seen: Int[Tensor, "batch runs seen"],
    poor: Tensor,
    num_sweeps: int,
    generator: torch.Generator | None,
) -> Float[Tensor, "batch draws slots terms"]:
    """Gibbs sweeps over the tokens seen, of the runs that were resampled: each a problem of its own."""
    num_runs = poor.shape[1]
    image, run = poor.nonzero(as_tuple=True)
    features = problem.features[image].gather(2, seen[image, run][:, None].expand(-1, problem.features.shape[1], -1))
    prior = replace(problem.components, loc=problem.components.loc[image])
    own = replace(problem, features=features, origin=problem.origin[image], components=prior)
    by_run = sums.unflatten(1, (num_runs, -1))
    now = by_run[image, run]
    for _ in range(num_sweeps):
        parameters = given_sums(own, now, generator)
        scores = parameters.log_weights[..., None] + component_log_density(own, parameters)
        now = draw_sums(own, scores, generator)
    return by_run.index_put((image, run), now).flatten(1, 2)


def _resampled(
    log_weights: Float[Tensor, "batch runs particles"], poor: Tensor, generator: torch.Generator | None
) -> Int[Tensor, "batch draws"]:
    """Systematic resampling within each poor run, the others as they are: the particles' numbers in the image."""
    batch, num_runs, num_particles = log_weights.shape
    cumulative = log_weights.softmax(-1).cumsum(-1)
    shape = (batch, num_runs, 1)
    offset = torch.rand(shape, dtype=log_weights.dtype, device=log_weights.device, generator=generator)
    own = torch.arange(num_particles, device=log_weights.device)
    index = torch.searchsorted(cumulative, (own + offset) / num_particles).clamp(max=num_particles - 1)
    index = torch.where(poor[..., None], index, own)
    first = num_particles * torch.arange(num_runs, device=index.device)[:, None]
    return (index + first).flatten(1)
