"""The ELBO of a fit averaged over its relabellings: between the ELBO and the evidence, and what it says it is."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from contracts import draw
from tolerances import CONVERGED, STANDARD_ERRORS, assert_close
from torch import Tensor

from psa.inference.evidence import exact_log_evidence, symmetrised_bound
from psa.inference.fits import LocalMixtureFit
from psa.inference.variational import FitOptions, fit_local_mixture
from psa.models.local_mixture import LocalMixturePrior

PRIOR = LocalMixturePrior(0.6, 0.4, 0.3, 1.4, 0.7)
WIDE = LocalMixturePrior(1.0, 0.0, 0.01, 1.0, 1.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clusters(num_tokens: int, num_groups: int, dim: int, apart: float, seed: int) -> Tensor:
    """(N, D), groups of scale 1 whose centres have scale ``apart``."""
    centres = apart * draw(num_groups, dim, seed=seed)
    return centres[torch.arange(num_tokens) % num_groups] + draw(num_tokens, dim, seed=seed + 1)


def fitted(
    tokens: Tensor, prior: LocalMixturePrior, num_slots: int, power: float = 1.0, mask: Tensor | None = None
) -> LocalMixtureFit:
    """After a few tempered E-steps slots are neither told apart nor alike, and the ratio of relabellings varies."""
    steps, options = 100 if power == 1.0 else 5, FitOptions(power=power)
    fit = fit_local_mixture(tokens, prior, num_slots, num_iterations=steps, mask=mask, options=options)
    assert isinstance(fit, LocalMixtureFit)
    return fit


def log_factorial(number: int) -> float:
    return math.lgamma(number + 1)


@pytest.mark.parametrize("power", [0.4, 1.0])
@pytest.mark.parametrize("alpha0", [0.1, 1.0])
@pytest.mark.parametrize(("num_slots", "dim"), [(1, 1), (2, 1), (3, 1), (3, 2)])
def test_symmetrised_bound_is_between_the_elbo_and_the_evidence(num_slots: int, dim: int, alpha0: float, power: float):
    prior = LocalMixturePrior(alpha0, 0.0, 0.1, 1.0, 1.0)
    tokens = torch.stack([clusters(8, 3, dim, apart, seed) for seed in range(5) for apart in (0.3, 1.0, 6.0)])
    fit = fitted(tokens, prior, num_slots, power)
    bound, error = symmetrised_bound(fit, generator=seeded())
    slack = STANDARD_ERRORS * error + 1e-9
    assert bool((bound <= exact_log_evidence(tokens, prior, num_slots) + slack).all())
    assert bool((bound >= fit.elbo - slack).all())
    assert bool((bound <= fit.elbo + log_factorial(num_slots) + slack).all())
    assert num_slots > 1 or bool((error < 1e-9).all())


def test_symmetrised_bound_adds_all_relabellings_of_separated_slots():
    centres = torch.tensor([[-30.0, 0.0], [0.0, 30.0], [30.0, 0.0]], dtype=torch.float64)
    tokens = (centres.repeat(3, 1) + draw(9, 2, seed=5))[None]
    fit = fitted(tokens, WIDE, 3)
    bound, error = symmetrised_bound(fit, generator=seeded())
    assert_close(bound, fit.elbo + log_factorial(3), CONVERGED)
    assert float(error) < CONVERGED
    assert float(exact_log_evidence(tokens, WIDE, 3) - bound) < 0.5


def test_symmetrised_bound_holds_where_adding_all_relabellings_does_not():
    tokens, prior = 0.3 * draw(1, 8, 1, seed=11), LocalMixturePrior(0.1, 0.0, 0.1, 1.0, 1.0)
    fit, exact = fitted(tokens, prior, 3), exact_log_evidence(tokens, prior, 3)
    bound, error = symmetrised_bound(fit, num_samples=300, generator=seeded())
    assert float(bound) <= float(exact + STANDARD_ERRORS * error)
    assert float(fit.elbo) + log_factorial(3) > float(exact) + 0.3
    assert float(bound) > float(fit.elbo) + 0.5


def log_q(fit: LocalMixtureFit, labels: Tensor, weights: Tensor, loc: Tensor, precision: Tensor) -> Tensor:
    """log q(c, pi, mu, lambda) of a single image; labels (S, N), weights (S, K), others (S, K, D)."""
    gamma = torch.distributions.Gamma(fit.precision_shape[0, :, None], fit.precision_rate[0])
    normal = torch.distributions.Normal(fit.loc[0], (fit.loc_strength[0, :, None] * precision).rsqrt())
    by_token = fit.responsibilities[0].clamp(min=1e-300).log()[labels, torch.arange(labels.shape[1])]
    total = by_token.sum(-1) + torch.distributions.Dirichlet(fit.concentration[0]).log_prob(weights)
    return total + gamma.log_prob(precision).sum((-2, -1)) + normal.log_prob(loc).sum((-2, -1))


@pytest.mark.parametrize("apart", [0.3, 1.0])
def test_symmetrised_bound_and_its_error_are_what_they_say(apart: float):
    tokens, num_draws, times = clusters(6, 3, 1, apart, seed=12)[None], 3000, 300
    fit = fitted(tokens.expand(times, -1, -1), PRIOR, 3, power=0.5)
    torch.manual_seed(0)
    weights = torch.distributions.Dirichlet(fit.concentration[0]).sample((num_draws,))
    precision = torch.distributions.Gamma(fit.precision_shape[0, :, None], fit.precision_rate[0]).sample((num_draws,))
    spread = (fit.loc_strength[0, :, None] * precision).rsqrt()
    loc = fit.loc[0] + spread * torch.randn(spread.shape, dtype=spread.dtype)
    labels = torch.distributions.Categorical(fit.responsibilities[0].T).sample((num_draws,))
    terms = []
    for order in itertools.permutations(range(3)):
        renamed = torch.tensor(order).argsort()[labels]
        terms.append(log_q(fit, renamed, weights[:, order], loc[:, order], precision[:, order]))
    ratio = torch.stack(terms).logsumexp(0) - log_q(fit, labels, weights, loc, precision)
    assert float(ratio.std()) > 0.1, "nothing to tell a wrong ratio by"
    expected, noise = float(fit.elbo[0]) + log_factorial(3) - float(ratio.mean()), float(ratio.std()) / num_draws**0.5
    bound, error = symmetrised_bound(fit, num_samples=100, generator=seeded())
    assert abs(float(bound.mean()) - expected) < STANDARD_ERRORS * math.hypot(float(bound.std()) / times**0.5, noise)
    assert abs(float(error.square().mean().sqrt() / bound.std()) - 1) < STANDARD_ERRORS / (2 * times) ** 0.5


def test_symmetrised_bound_of_more_slots_than_a_permanent_takes_holds():
    tokens = clusters(5, 2, 1, 3.0, seed=13)[None]
    bound, error = symmetrised_bound(fitted(tokens, PRIOR, 15), generator=seeded())
    assert float(bound) <= float(exact_log_evidence(tokens, PRIOR, 15) + STANDARD_ERRORS * error)
    assert bool(torch.isfinite(bound).all())


def test_symmetrised_bound_of_masked_tokens_is_that_of_the_others():
    tokens, mask = clusters(7, 2, 2, 2.0, seed=14)[None], torch.tensor([[True, False, True, True, True, False, True]])
    padded = fitted(tokens.masked_fill(~mask[..., None], math.nan), PRIOR, 2, 0.5, mask)
    some = fitted(tokens[mask][None], PRIOR, 2, 0.5)
    (bound, error), (expected, noise) = (symmetrised_bound(fit, 200, seeded()) for fit in (padded, some))
    assert bool(((bound - expected).abs() <= STANDARD_ERRORS * (error**2 + noise**2).sqrt() + CONVERGED).all())


def test_symmetrised_bound_repeats_by_its_generator_and_takes_float32():
    fit, before = fitted(clusters(6, 2, 1, 1.0, seed=15)[None].float(), PRIOR, 2, 0.5), torch.get_rng_state()
    first, second, other = (symmetrised_bound(fit, 50, seeded(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_symmetrised_bound_refuses_what_it_does_not_hold_for():
    tokens = draw(1, 6, 2, seed=16)
    fit = fitted(tokens, PRIOR, 2)
    full = fit_local_mixture(tokens, PRIOR, 2, options=FitOptions(covariance="full"))
    for other, said in ((full, "covariance 'full' and coarsening 1"), (replace(fit, coarsening=0.5), "coarsening 0.5")):
        with pytest.raises(ValueError, match=f"fit must have diagonal covariances and coarsening 1, got .*{said}"):
            symmetrised_bound(other)
