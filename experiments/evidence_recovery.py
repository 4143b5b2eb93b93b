"""Claim: the evidence finds the number of slots where clusters are apart, and its probabilities are calibrated.

Recovery: token sets of 384 points in 2-D with 1 to 5 clusters of unit deviation, their centres at least a stated number
of deviations apart. Calibration: K, weights, means and precisions drawn from the prior; among all (set, K) to which
p(K | v) gives about p, a share p must have that K.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psa.inference.compare import compare_slot_counts, occupied_distribution, weak_prior
from psa.inference.gibbs import pose, prior_draws
from psa.models.local_mixture import LocalMixturePrior

NUM_TOKENS, MAX_TRUE, MAX_SLOTS = 384, 5, 8
CALIBRATION_PRIOR = LocalMixturePrior(1.0, 0.0, 0.05, 2.0, 1.0)
EDGES = (0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0)


def separated_sets(
    num_sets: int, separation: float, generator: torch.Generator, num_features: int = 2
) -> tuple[Float[Tensor, "sets tokens features"], Int[Tensor, " sets"]]:
    """Token sets and their true K, which runs through 1..5; weights Dirichlet(5), components of unit deviation.

    Centres are uniform in a square (a cube) of 1.6 separations times sqrt(K) a side, drawn again until every two are at
    least ``separation`` apart.
    """
    tokens, counts = [], []
    for index in range(num_sets):
        count = index % MAX_TRUE + 1
        while True:
            place = torch.rand(count, num_features, generator=generator, dtype=torch.float64)
            centres = 1.6 * separation * math.sqrt(count) * place
            if count == 1 or float(torch.pdist(centres).min()) >= separation:
                break
        weights = torch._sample_dirichlet(torch.full((count,), 5.0, dtype=torch.float64), generator=generator)
        label = torch.multinomial(weights, NUM_TOKENS, replacement=True, generator=generator)
        noise = torch.randn(NUM_TOKENS, num_features, generator=generator, dtype=torch.float64)
        tokens.append(centres[label] + noise)
        counts.append(count)
    return torch.stack(tokens), torch.tensor(counts)


@dataclass(frozen=True)
class Recovery:
    """How often K is found at one separation.

    Attributes:
        separation: Least distance between centres, in deviations.
        chosen: Share of sets whose K the default evidence (annealed) chooses.
        variational: Share whose K the variational estimate chooses.
        occupied: Share whose K is the mode of the occupied count of a sparse fit with 8 slots.
        mean_probability: Mean p(K) of the true K.
        over: Share where the evidence chooses too many.
    """

    separation: float
    chosen: float
    variational: float
    occupied: float
    mean_probability: float
    over: float


def recovery(separation: float, num_sets: int = 200, seed: int = 0) -> Recovery:
    """The default evidence for K = 1..8 (alpha0 = 1), and the occupied count at alpha0 = 0.1, on every set.

    A set is shifted to mean 0 and scaled to variance 1 on each axis, which is what ``weak_prior`` does from the other
    side: so one prior serves the whole batch.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens, counts = separated_sets(num_sets, separation, generator)
    tokens = (tokens - tokens.mean(1, keepdim=True)) / tokens.std(1, correction=0, keepdim=True)
    prior = weak_prior(tokens[0])
    evidence = compare_slot_counts(tokens, prior, MAX_SLOTS, generator=generator)
    occupied = occupied_distribution(tokens, prior, MAX_SLOTS, num_samples=200, generator=generator)
    estimate = torch.stack([fit.log_evidence_estimate for fit in evidence.fits], dim=1)
    right = evidence.posterior.gather(1, counts[:, None] - 1)
    return Recovery(
        separation,
        float((evidence.best == counts).double().mean()),
        float((estimate.argmax(1) + 1 == counts).double().mean()),
        float((occupied.argmax(1) == counts).double().mean()),
        float(right.mean()),
        float((evidence.best > counts).double().mean()),
    )


@dataclass(frozen=True)
class Bin:
    """Pairs of a set and a K whose probability falls into one interval.

    Attributes:
        low, high: The interval.
        pairs: How many.
        expected: Sum of their probabilities.
        observed: How many have that K.
        z: (observed - expected) in binomial standard errors; 0 where there is none.
    """

    low: float
    high: float
    pairs: int
    expected: float
    observed: int
    z: float


def reliability(probability: Float[Tensor, "sets counts"], truth: Int[Tensor, " sets"]) -> list[Bin]:
    """Bins of all (set, K) by p(K | v)."""
    hit = truth[:, None] == torch.arange(1, probability.shape[1] + 1)
    bins = []
    for low, high in pairwise(EDGES):
        inside = (probability >= low) & ((probability < high) | (high == 1.0))
        p = probability[inside]
        error = float((p * (1.0 - p)).sum().sqrt())
        observed = int(hit[inside].sum())
        expected = float(p.sum())
        bins.append(Bin(low, high, len(p), expected, observed, (observed - expected) / error if error > 0 else 0.0))
    return bins


@dataclass(frozen=True)
class Calibration:
    """p(K | v) against frequencies, for sets drawn from the prior.

    Attributes:
        annealed: Bins of the annealed posterior.
        variational: Bins of the variational estimate's, of which nothing is claimed.
        largest_error: Largest standard error of an annealed log evidence.
        again: Sets of which an estimate failed its diagnostic, and that were run with eight times the particles.
        failed: Estimates that failed then too.
    """

    annealed: list[Bin]
    variational: list[Bin]
    largest_error: float
    again: int
    failed: int


def prior_sets(
    num_sets: int, num_tokens: int, max_slots: int, prior: LocalMixturePrior, generator: torch.Generator
) -> tuple[Float[Tensor, "sets tokens 2"], Int[Tensor, " sets"]]:
    """Token sets in 2-D with K uniform on 1..max_slots and everything else from the prior."""
    counts = torch.randint(1, max_slots + 1, (num_sets,), generator=generator)
    tokens = torch.empty(num_sets, num_tokens, 2, dtype=torch.float64)
    for count in range(1, max_slots + 1):
        which = (counts == count).nonzero()[:, 0]
        if len(which):
            problem = pose(torch.zeros(len(which), num_tokens, 2), prior, count, None)
            theta = prior_draws(problem, 1, generator)
            label = torch.multinomial(theta.log_weights[:, 0].exp(), num_tokens, replacement=True, generator=generator)
            index = label[..., None].expand(-1, -1, 2)
            noise = torch.randn(index.shape, generator=generator, dtype=torch.float64)
            scale = theta.precision[:, 0].gather(1, index).rsqrt()
            tokens[which] = theta.loc[:, 0].gather(1, index) + noise * scale
    return tokens, counts


def calibration(num_sets: int = 300, num_tokens: int = 30, max_slots: int = 4, seed: int = 0) -> Calibration:
    """Annealed and variational p(K | v) of sets drawn from the prior."""
    generator = torch.Generator().manual_seed(seed)
    tokens, counts = prior_sets(num_sets, num_tokens, max_slots, CALIBRATION_PRIOR, generator)
    annealed = compare_slot_counts(
        tokens, CALIBRATION_PRIOR, max_slots, "annealed", num_samples=2048, generator=generator
    )
    probability, error, failed = annealed.posterior.clone(), annealed.standard_error.clone(), annealed.failed.clone()
    again = annealed.failed.any(1)
    if again.any():
        more = compare_slot_counts(
            tokens[again], CALIBRATION_PRIOR, max_slots, "annealed", num_samples=16_384, generator=generator
        )
        probability[again], error[again], failed[again] = more.posterior, more.standard_error, more.failed
    estimate = torch.stack([fit.log_evidence_estimate for fit in annealed.fits], dim=1)
    return Calibration(
        reliability(probability, counts),
        reliability(estimate.softmax(-1), counts),
        float(error.max()),
        int(again.sum()),
        int(failed.sum()),
    )
