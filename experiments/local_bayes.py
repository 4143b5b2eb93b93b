"""Claims about the local model held to enumeration: bounds, estimates, and how much too narrow the mean field is."""

import math
import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from psa.inference.enumeration import enumerate_posterior
from psa.inference.evidence import EvidenceWarning, log_evidence, symmetrised_bound
from psa.inference.fits import LocalMixtureFit
from psa.inference.relabelling import relabel
from psa.inference.replicates import fit_sample
from psa.inference.variational import fit_local_mixture
from psa.models.local_mixture import LocalMixturePrior


def two_groups(num_tokens: int, num_features: int, separation: float, seed: int) -> Float[Tensor, "1 tokens features"]:
    """Two groups of equal size and unit deviation, ``separation`` apart along every axis."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(1, num_tokens, num_features, generator=generator, dtype=torch.float64)
    tokens[:, : num_tokens // 2] += separation
    return tokens


def _fit(tokens: Tensor, prior: LocalMixturePrior, num_slots: int, seed: int = 0) -> LocalMixtureFit:
    fit = fit_local_mixture(
        tokens, prior, num_slots, num_iterations=500, tol=1e-9, num_restarts=20,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    assert isinstance(fit, LocalMixtureFit)
    return fit


@dataclass(frozen=True)
class Against:
    """Bounds and estimates less the exact log evidence, nats.

    Attributes:
        name: The problem.
        exact: log p(v).
        mass: Posterior mass of the best assignment's relabellings.
        elbo, elbo_log_factorial: ELBO, and ELBO + log K!, which is no bound.
        estimate: ELBO + log(K! / (K - K+)!).
        bound: The guaranteed closed-form bound.
        symmetrised: The ELBO of q averaged over relabellings, with its standard error.
        symmetrised_error: See above.
    """

    name: str
    exact: float
    mass: float
    elbo: float
    elbo_log_factorial: float
    estimate: float
    bound: float
    symmetrised: float
    symmetrised_error: float


def against_exact(name: str, tokens: Tensor, prior: LocalMixturePrior, num_slots: int) -> Against:
    """One problem by enumeration and by all that coordinate ascent offers."""
    posterior = enumerate_posterior(tokens[0], prior, num_slots)
    exact = float(posterior.log_evidence)
    fit = _fit(tokens, prior, num_slots)
    bound, error = symmetrised_bound(fit, 500, torch.Generator().manual_seed(1))
    elbo = float(fit.elbo) - exact
    return Against(
        name,
        exact,
        posterior.best_partition_mass()[0],
        elbo,
        elbo + math.lgamma(num_slots + 1),
        float(fit.log_evidence_estimate) - exact,
        float(fit.log_evidence_bound) - exact,
        float(bound) - exact,
        float(error),
    )


def known_failures() -> list[Against]:
    """Where ELBO + log K! and the estimate fail, and where they do not."""
    rows = []
    for alpha0 in (0.1, 1.0):
        prior = LocalMixturePrior(alpha0, 0.0, 0.05, 1.0, 1.0)
        for num_slots in (2, 3, 5):
            tokens = two_groups(8, 2, 0.0, seed=3)
            rows.append(against_exact(f"one cluster, K = {num_slots}, alpha0 = {alpha0}", tokens, prior, num_slots))
        for separation in (2.0, 4.0, 8.0):
            tokens = two_groups(8, 2, separation, seed=3)
            rows.append(against_exact(f"two groups {separation:g} apart, K = 2, alpha0 = {alpha0}", tokens, prior, 2))
    return rows


@dataclass(frozen=True)
class Agreement:
    """One estimate of the evidence beside the exact value.

    Attributes:
        name: The problem.
        exact: log p(v).
        importance, annealed: Estimate less exact, nats.
        importance_z, annealed_z: The same in standard errors.
        pareto_k: Of the importance ratios.
        failed: Methods that failed their diagnostic.
    """

    name: str
    exact: float
    importance: float
    importance_z: float
    pareto_k: float
    annealed: float
    annealed_z: float
    failed: str


def agreement(num_problems: int = 24, seed: int = 0) -> list[Agreement]:
    """Random problems with N <= 10, K <= 3, D <= 2, from one cluster to two far apart."""
    rows = []
    for index in range(num_problems):
        num_tokens, num_slots, num_features = (6, 8, 10)[index % 3], 2 + index % 2, 1 + index // 2 % 2
        alpha0, separation = (0.1, 1.0)[index // 4 % 2], (0.0, 2.0, 6.0)[index // 8 % 3]
        tokens = two_groups(num_tokens, num_features, separation, seed=1000 * seed + index)
        prior = LocalMixturePrior(alpha0, 0.0, 0.05, 1.0, 1.0)
        exact = float(enumerate_posterior(tokens[0], prior, num_slots).log_evidence)
        generator = torch.Generator().manual_seed(index)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EvidenceWarning)
            sampled = [
                log_evidence(tokens, prior, num_slots, m, generator=generator) for m in ("importance", "annealed")
            ]
        off = [float(estimate.log_evidence) - exact for estimate in sampled]
        z = [difference / float(estimate.standard_error) for difference, estimate in zip(off, sampled, strict=True)]
        failed = ", ".join(estimate.method for estimate in sampled if bool(estimate.failed)) or "-"
        name = f"N = {num_tokens}, D = {num_features}, K = {num_slots}, alpha0 = {alpha0}, {separation:g} apart"
        rows.append(Agreement(name, exact, off[0], z[0], float(sampled[0].diagnostic), off[1], z[1], failed))
    return rows


@dataclass(frozen=True)
class Narrowness:
    """Posterior standard deviations of variational Bayes over the exact ones, two groups in 1-D, K = 2.

    Attributes:
        separation: Of the groups, in deviations.
        loc: Of the slots' means, after relabelling by responsibilities.
        log_precision: Of the slots' log precisions, likewise.
        largest_weight, weight_entropy, log_likelihood: Of quantities without labels.
        loc_shift: Largest difference of the means' posterior means, in exact standard deviations.
    """

    separation: float
    loc: float
    log_precision: float
    largest_weight: float
    weight_entropy: float
    log_likelihood: float
    loc_shift: float


def narrowness(separation: float, num_tokens: int = 16, num_draws: int = 4000, seed: int = 0) -> Narrowness:
    """How much too narrow the mean field is, averaged over the two slots."""
    tokens = two_groups(num_tokens, 1, separation, seed)
    prior = LocalMixturePrior(1.0, 0.0, 0.05, 2.0, 2.0)
    fit, exact = _fit(tokens, prior, 2), enumerate_posterior(tokens[0], prior, 2)
    generator = torch.Generator().manual_seed(seed)
    draws = [exact.draws(num_draws, generator), fit_sample(fit, num_draws, generator)]
    true, q = (relabel(sample, tokens, fit.responsibilities)[0] for sample in draws)
    free = [sample.label_free(tokens) for sample in (true, q)]
    ratio = {name: float(free[1][name].std() / free[0][name].std()) for name in free[0]}
    deviation = true.loc.std(2)
    return Narrowness(
        separation,
        float((q.loc.std(2) / deviation).mean()),
        float((q.precision.log().std(2) / true.precision.log().std(2)).mean()),
        ratio["largest_weight"],
        ratio["weight_entropy"],
        ratio["log_likelihood"],
        float(((q.loc.mean(2) - true.loc.mean(2)) / deviation).abs().max()),
    )
