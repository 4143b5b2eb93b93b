"""NUTS against posteriors known in closed form and by enumeration; random streams; what the diagnostics notice."""

import itertools
import math
import random

import numpy as np
import oracles
import pytest
import scipy.special
import scipy.stats
import torch
from contracts import draw
from tolerances import CONVERGED, STANDARD_ERRORS, assert_close
from torch import Tensor

import psa.inference.nuts
from psa.arviz import ess
from psa.inference.draws import MixtureDraws
from psa.inference.nuts import MixtureStart, NutsResult, diagnose, sample_posterior
from psa.models.local_mixture import LocalMixturePrior

NUM_CHAINS, NUM_SAMPLES = 4, 160
RUN = {"num_chains": NUM_CHAINS, "num_samples": NUM_SAMPLES, "num_warmup": 80}
SHORT = {"num_chains": 2, "num_samples": 3, "num_warmup": 2}

ONE_SLOT = oracles.Prior(1.0, 0.5, 0.5, 2.5, 1.0)
ONE_SLOT_TOKENS = 1 + 2 * draw(2, 6, 2, seed=0)
ONE_SLOT_MASK = torch.tensor([[True] * 6, [True, True, False, True, False, True]])

TWO_SLOTS = oracles.Prior(0.8, 0.2, 0.3, 3.0, 1.0)
TWO_SLOTS_TOKENS = torch.tensor([[[-1.6], [-1.0], [-0.5], [0.9], [1.3], [2.0]]], dtype=torch.float64)


def prior_of(prior: oracles.Prior) -> LocalMixturePrior:
    return LocalMixturePrior(prior.alpha, prior.loc, prior.strength, prior.shape, prior.rate)


def assert_expectation_is(values: Tensor, expected: float, deviation: float | None = None) -> None:
    """The mean of (chains, draws) is within 6 of its standard errors, by effective sample size.

    The standard deviation of one draw is the exact one where it is given: that of a sample of squares falls short
    together with their mean.
    """
    deviation = float(values.std()) if deviation is None else deviation
    error = deviation / math.sqrt(ess(values.numpy()))
    away = abs(float(values.mean()) - expected)
    assert away <= STANDARD_ERRORS * error, f"{away / error:.1f} standard errors of {error:.3g} from {expected:.4g}"
    assert error < 0.1 * deviation, "too few draws to tell"


@pytest.fixture(scope="module")
def one_slot() -> NutsResult:
    padded = ONE_SLOT_TOKENS.masked_fill(~ONE_SLOT_MASK[..., None], torch.nan)
    return sample_posterior(padded, prior_of(ONE_SLOT), 1, mask=ONE_SLOT_MASK, **RUN)


@pytest.fixture(scope="module")
def two_slots() -> NutsResult:
    return sample_posterior(TWO_SLOTS_TOKENS, prior_of(TWO_SLOTS), 2, **RUN)


def test_one_slot_has_its_normal_gamma_posterior(one_slot):
    """Means and variances of mu (Student t) and lambda (Gamma) on each axis, of padded images too."""
    for b, d in itertools.product(range(2), range(2)):
        values = ONE_SLOT_TOKENS[b, ONE_SLOT_MASK[b], d].tolist()
        loc, strength, shape, rate = oracles.normal_gamma_posterior(values, [1.0] * len(values), ONE_SLOT)
        mu, precision = one_slot.draws.loc[b, :, :, 0, d], one_slot.draws.precision[b, :, :, 0, d]
        student = scipy.stats.t(2 * shape, loc, math.sqrt(rate / (strength * shape)))
        for found, exact in ((mu, student), (precision, scipy.stats.gamma(shape, scale=1 / rate))):
            mean, var, _, excess = (float(moment) for moment in exact.stats("mvsk"))
            assert_expectation_is(found, mean, math.sqrt(var))
            assert_expectation_is((found - mean).square(), var, var * math.sqrt(excess + 2))


def exact_two_slots() -> dict[str, float]:
    """Posterior expectations by the sum over all 2^6 assignments, conjugate given each."""
    tokens, prior = TWO_SLOTS_TOKENS[0, :, 0].tolist(), TWO_SLOTS
    log_weights, terms = [], []
    for assignment in itertools.product(range(2), repeat=len(tokens)):
        groups = [[v for v, k in zip(tokens, assignment, strict=True) if k == slot] for slot in range(2)]
        evidence = oracles.log_urn(assignment, 2, prior.alpha)
        log_weights.append(evidence + sum(oracles.log_predictive(group, prior) for group in groups))
        posteriors = [oracles.normal_gamma_posterior(group, [1.0] * len(group), prior) for group in groups]
        terms.append(expectations([prior.alpha + len(group) for group in groups], posteriors))
    share = scipy.special.softmax(log_weights)
    return {name: float(share @ [term[name] for term in terms]) for name in terms[0]}


def expectations(alpha: list[float], posteriors: list[tuple[float, ...]]) -> dict[str, float]:
    """Given the assignment: pi ~ Dirichlet(alpha), and a Normal-Gamma (m, kappa, a, b) for each slot."""
    total, (one, two) = sum(alpha), alpha
    digamma = scipy.special.digamma
    # E max(p, 1 - p), p ~ Beta: each half is an incomplete beta function
    upper = one / total * scipy.stats.beta.sf(0.5, one + 1, two) + two / total * scipy.stats.beta.cdf(0.5, one, two + 1)
    return {
        "weight_entropy": sum(a / total * (digamma(total + 1) - digamma(a + 1)) for a in alpha),
        "largest_weight": upper,
        "weighted_mean_0": sum(a / total * m for a, (m, *_) in zip(alpha, posteriors, strict=True)),
        "total_precision": sum(shape / rate for *_, shape, rate in posteriors),
        "squared_means": sum(m**2 + b / (kappa * (a - 1)) for m, kappa, a, b in posteriors),
    }


def test_two_slots_agree_with_the_sum_over_assignments(two_slots):
    draws = two_slots.draws
    found = draws.label_free(TWO_SLOTS_TOKENS) | {
        "total_precision": draws.precision.sum((-2, -1)),
        "squared_means": draws.loc.square().sum((-2, -1)),
    }
    for name, expected in exact_two_slots().items():
        assert_expectation_is(found[name][0], expected)


def test_both_converge_without_divergences(one_slot, two_slots):
    for result, tokens, mask in ((one_slot, ONE_SLOT_TOKENS, ONE_SLOT_MASK), (two_slots, TWO_SLOTS_TOKENS, None)):
        found = diagnose(result.draws, tokens, mask)
        assert float(found.label_free_rhat.max()) < 1.05
        assert float(found.max_rhat.max()) < 1.05
        assert float(torch.minimum(found.min_ess, found.label_free_ess).min()) > 100
        assert result.num_divergent == 0
        assert result.num_deepest == 0


def test_draws_are_a_chain_for_every_image_and_mixtures(two_slots):
    draws = two_slots.draws
    assert draws.loc.shape == (1, NUM_CHAINS, NUM_SAMPLES, 2, 1)
    assert bool((draws.log_weights.logsumexp(-1).abs() < 1e-10).all())
    assert bool((draws.precision > 0).all())
    stats = two_slots.sample_stats()
    assert stats["diverging"].shape == stats["n_steps"].shape == (NUM_CHAINS, NUM_SAMPLES)
    assert bool((two_slots.num_steps >= 1).all())
    assert two_slots.step_size > 0
    data = draws.inference_data(TWO_SLOTS_TOKENS, extra_stats=stats, generator=torch.Generator().manual_seed(0))
    assert set(data["sample_stats"].data_vars) == {"lp", "diverging", "n_steps"}


def test_the_seed_decides_and_the_callers_random_numbers_are_untouched():
    def run(seed: int) -> Tensor:
        return sample_posterior(draw(2, 5, 2, seed=1), LocalMixturePrior(), 3, seed=seed, **SHORT).draws.loc

    def streams() -> list[float]:
        return [float(torch.rand(())), random.random(), float(np.random.rand())]  # noqa: NPY002 - the stream at stake

    def seeded() -> None:
        torch.manual_seed(7)
        random.seed(7)
        np.random.seed(7)  # noqa: NPY002

    seeded()
    undisturbed = streams()
    seeded()
    first = run(0)
    assert streams() == undisturbed
    assert torch.equal(run(0), first)
    assert not torch.equal(run(1), first)


def test_chains_of_an_image_start_apart_and_near_what_is_given(monkeypatch):
    """The first draw after the fewest transitions is near the start."""
    start = MixtureStart(
        torch.tensor([[0.3, 0.7]]).double().repeat(2, 1),
        torch.tensor([[[100.0], [-100.0]], [[0.0], [50.0]]]).double(),
        torch.full((2, 2, 1), 1e4).double(),
    )
    tokens = start.loc.repeat_interleave(3, 1) + 0.01 * draw(2, 6, 1, seed=0)
    prior = LocalMixturePrior(1.0, 0.0, 1e-4, 2.0, 1e-4)
    loc = sample_posterior(tokens, prior, 2, initial=start, **SHORT).draws.loc
    assert bool(((loc - start.loc[:, None, None]).abs() < 1).all())
    assert bool((loc[:, 0, 0] != loc[:, 1, 0]).all())
    monkeypatch.setattr(psa.inference.nuts, "JITTER", 0.0)
    assert bool((sample_posterior(tokens, prior, 2, initial=start, **SHORT).draws.loc != loc).all())
    drawn = sample_posterior(tokens, prior, 2, **SHORT).draws.loc
    assert bool((drawn[:, 0, 0] != drawn[:, 1, 0]).all())


def test_the_units_and_the_origin_of_the_tokens_do_not_matter():
    """Powers of two, so that rounding is the same; the trajectories are."""
    tokens, prior = draw(2, 5, 2, seed=1), LocalMixturePrior(0.5, 0.5, 0.1, 2.0, 1.0)
    scale = torch.tensor([2.0**-10, 2.0**10], dtype=torch.float64)
    other = LocalMixturePrior(0.5, 0.5 * scale + 8 * scale, 0.1, 2.0, scale.square())
    here = sample_posterior(tokens, prior, 3, **SHORT)
    there = sample_posterior(tokens * scale + 8 * scale, other, 3, **SHORT)
    assert_close(there.draws.loc, here.draws.loc * scale + 8 * scale, CONVERGED)
    assert_close(there.draws.precision, here.draws.precision / scale.square(), CONVERGED)
    assert_close(there.draws.log_weights, here.draws.log_weights, CONVERGED)


def test_many_slots_few_tokens_and_a_sparse_prior_give_finite_draws():
    tokens = torch.zeros(1, 2, 2, dtype=torch.float64)
    draws = sample_posterior(tokens, LocalMixturePrior(0.05), 5, **SHORT).draws
    for part in (draws.log_weights, draws.loc, draws.precision):
        assert bool(part.isfinite().all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_chains": 0}, "num_chains must be an integer of at least 1, got 0"),
        ({"num_samples": 0}, "num_samples must be an integer of at least 1, got 0"),
        ({"num_warmup": 0}, "num_warmup must be an integer of at least 1, got 0"),
        ({"num_slots": 0}, "num_slots must be an integer of at least 1, got 0"),
        ({"mask": torch.zeros(1, 6, dtype=torch.bool)}, "image 0 has none"),
        ({"tokens": TWO_SLOTS_TOKENS / 0}, "token 0 of image 0 is not"),
        (
            {"initial": MixtureStart(torch.ones(1, 1), torch.ones(1, 1, 1), torch.ones(1, 1, 1))},
            r"initial must have weights \(1, 2\), got \(1, 1\)",
        ),
        (
            {"initial": MixtureStart(torch.ones(1, 2) / 2, torch.ones(1, 2, 1), -torch.ones(1, 2, 1))},
            "initial must be finite and of positive precision",
        ),
    ],
)
def test_what_cannot_be_sampled_is_refused(change, message):
    settings = {"tokens": TWO_SLOTS_TOKENS, "prior": LocalMixturePrior(), "num_slots": 2} | SHORT | change
    with pytest.raises(ValueError, match=message):
        sample_posterior(**settings)


def made_up_draws(means: list[list[float]]) -> MixtureDraws:
    """Independent draws of one image, slots of each chain about the means given; tokens stand at -3, 0 and 3."""
    loc = torch.tensor(means, dtype=torch.float64)[:, None, :, None] + 0.1 * draw(1, len(means), 400, 2, 1, seed=0)
    return MixtureDraws((0.1 * draw(1, len(means), 400, 2, seed=1)).log_softmax(-1), loc, torch.ones_like(loc))


def test_switched_labels_are_no_failure_and_chains_in_different_places_are():
    tokens = torch.tensor([[[-3.0], [0.0], [3.0]]], dtype=torch.float64)
    switched, apart = (
        diagnose(made_up_draws(means), tokens) for means in ([[-3, 3], [3, -3]], [[-3.0, 1.5], [-1.5, 3.0]])
    )
    assert float(switched.max_rhat) < 1.05
    assert float(switched.label_free_rhat) < 1.05
    assert float(apart.max_rhat) > 1.5
    assert float(apart.label_free_rhat) > 1.5
    assert float(apart.min_ess) < 20 < float(switched.min_ess)
    assert float(apart.label_free_ess) < 20 < float(switched.label_free_ess)


def test_diagnostics_are_of_the_image_they_stand_at():
    tokens = torch.tensor([[[-3.0], [0.0], [3.0]]], dtype=torch.float64)
    parts = [made_up_draws(means) for means in ([[-3, 3], [-3, 3]], [[-3.0, 1.5], [-1.5, 3.0]])]
    names = ("log_weights", "loc", "precision")
    both = MixtureDraws(*(torch.cat([getattr(part, name) for part in parts]) for name in names))
    found = diagnose(both, tokens.expand(2, -1, -1))
    for b, part in enumerate(parts):
        alone = diagnose(part, tokens)
        assert float(found.max_rhat[b]) == float(alone.max_rhat)
        assert float(found.label_free_ess[b]) == float(alone.label_free_ess)


def test_a_single_chain_leaves_rhat_unknown():
    tokens = torch.tensor([[[-3.0], [0.0], [3.0]]], dtype=torch.float64)
    found = diagnose(made_up_draws([[-3, 3]]), tokens)
    assert math.isnan(float(found.max_rhat))
    assert math.isnan(float(found.label_free_rhat))
    assert float(found.min_ess) > 100
