"""Claim: the posterior draws are draws from the posterior (simulation-based calibration, Talts et al. 2018).

Parameters are drawn from the prior, tokens from the parameters, and draws from the posterior given the tokens; then the
rank of the true value of any function among its values at independent draws is uniform. The functions are free of
labels: log p(v | theta), the weights' entropy, the largest weight, the weighted mean.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.stats
import torch
from jaxtyping import Float, Int
from torch import Tensor

from psa.inference.draws import MixtureDraws
from psa.inference.enumeration import enumerate_posterior
from psa.inference.fits import LocalMixtureFit
from psa.inference.gibbs import pose, prior_draws
from psa.inference.nuts import sample_posterior
from psa.inference.replicates import fit_sample
from psa.inference.variational import fit_local_mixture
from psa.models.local_mixture import LocalMixturePrior

PRIOR = LocalMixturePrior(1.0, 0.0, 0.1, 2.0, 1.0)
NUM_TOKENS, NUM_SLOTS, NUM_RANKS = 10, 3, 63
NUM_BINS = 8

Sampler = Callable[[Tensor, torch.Generator], MixtureDraws]


@dataclass(frozen=True)
class Ranks:
    """Ranks of one sampler.

    Attributes:
        sampler: Its name.
        ranks: Function's name to ranks in 0..63 of every set.
        p_values: Function's name to the p-value of a chi-squared test of uniformity in 8 bins.
    """

    sampler: str
    ranks: dict[str, Int[Tensor, " sets"]]
    p_values: dict[str, float]

    @property
    def smallest(self) -> float:
        """The smallest p-value times the number of tests (Bonferroni)."""
        return min(self.p_values.values()) * len(self.p_values)


def prior_predictive(num_sets: int, generator: torch.Generator) -> tuple[Float[Tensor, "sets tokens 2"], MixtureDraws]:
    """Token sets and the parameters that they came from, as one draw of one chain."""
    theta = prior_draws(pose(torch.zeros(num_sets, NUM_TOKENS, 2), PRIOR, NUM_SLOTS, None), 1, generator)
    true = MixtureDraws(theta.log_weights[:, :, None], theta.loc[:, :, None], theta.precision[:, :, None])
    return true.replicated(NUM_TOKENS, generator)[:, 0, 0], true


def exact_draws(tokens: Tensor, generator: torch.Generator) -> MixtureDraws:
    """Independent draws by enumeration."""
    draws = [enumerate_posterior(image, PRIOR, NUM_SLOTS).draws(NUM_RANKS, generator) for image in tokens]
    return MixtureDraws(
        torch.cat([d.log_weights for d in draws]),
        torch.cat([d.loc for d in draws]),
        torch.cat([d.precision for d in draws]),
    )


def nuts_draws(tokens: Tensor, generator: torch.Generator, thinning: int = 10, num_warmup: int = 500) -> MixtureDraws:
    """NUTS, 100 sets in a run, every tenth draw kept."""
    parts = []
    for index, some in enumerate(tokens.split(100)):
        draws = sample_posterior(
            some, PRIOR, NUM_SLOTS, num_samples=thinning * NUM_RANKS, num_warmup=num_warmup, num_chains=1, seed=index
        ).draws
        parts.append([part[:, :, thinning - 1 :: thinning] for part in (draws.log_weights, draws.loc, draws.precision)])
    return MixtureDraws(*(torch.cat(part) for part in zip(*parts, strict=True)))


def variational_draws(tokens: Tensor, generator: torch.Generator) -> MixtureDraws:
    """Draws from q: no claim, its intervals are too narrow."""
    fit = fit_local_mixture(tokens, PRIOR, NUM_SLOTS, num_iterations=500, num_restarts=10, generator=generator)
    assert isinstance(fit, LocalMixtureFit)
    return fit_sample(fit, NUM_RANKS, generator)


SAMPLERS: dict[str, Sampler] = {"exact": exact_draws, "nuts": nuts_draws, "variational": variational_draws}


def ranks_of(sampler: str, num_sets: int, seed: int = 0) -> Ranks:
    """The ranks of one sampler on the sets of this seed, the same for all samplers."""
    tokens, true = prior_predictive(num_sets, torch.Generator().manual_seed(seed))
    draws = SAMPLERS[sampler](tokens, torch.Generator().manual_seed(seed + 1))
    truth, drawn = true.label_free(tokens), draws.label_free(tokens)
    ranks = {name: (drawn[name][:, 0] < truth[name][:, 0]).sum(-1) for name in truth}
    return Ranks(sampler, ranks, {name: _p_value(rank) for name, rank in ranks.items()})


def _p_value(rank: Int[Tensor, " sets"]) -> float:
    count = np.bincount(rank.numpy() * NUM_BINS // (NUM_RANKS + 1), minlength=NUM_BINS)
    return float(scipy.stats.chisquare(count).pvalue)
