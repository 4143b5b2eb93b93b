"""Sequential Monte Carlo over tokens: every step against its exact law, and the whole against enumeration."""

import math

import oracles
import pytest
import scipy.stats
import torch
from contracts import draw
from enumerated import enumerated, label_free
from hypothesis import given
from hypothesis import strategies as st
from tolerances import STANDARD_ERRORS, assert_close, assert_mean_is
from torch import Tensor

from psa.inference import annealing
from psa.inference.annealing import NUM_RUNS, Population, anneal, draw_slot, predictive_scores
from psa.inference.enumeration import enumerate_posterior
from psa.inference.gibbs import pose
from psa.models.local_mixture import LocalMixturePrior

PRIOR = oracles.Prior(alpha=0.6, loc=0.4, strength=0.3, shape=2.5, rate=0.7)
OURS = LocalMixturePrior(PRIOR.alpha, PRIOR.loc, PRIOR.strength, PRIOR.shape, PRIOR.rate)
MANY = 20_000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sums_of(features: Tensor, labels: Tensor, num_slots: int) -> Tensor:
    """(..., K, terms) of features (terms, N) that slots own under labels (..., N)."""
    return torch.nn.functional.one_hot(labels, num_slots).transpose(-1, -2).to(features) @ features.T


def relative_to(exact: float, population: Population) -> Tensor:
    """Every run's estimate over the evidence, on the natural scale, as one row."""
    return (population.run_log_evidence - exact).exp().flatten()


@given(num_tokens=st.integers(1, 6), num_slots=st.integers(1, 3), dim=st.integers(1, 3), seed=st.integers(0, 10_000))
def test_scores_are_the_urn_times_the_predictions(num_tokens: int, num_slots: int, dim: int, seed: int):
    tokens = 2 * draw(num_tokens, dim, seed=seed)
    labels = torch.randint(num_slots, (num_tokens,), generator=seeded(seed))
    labels[-1] = -1  # the token that comes
    problem = pose(tokens[None], OURS, num_slots, None)
    features = problem.features[0]
    sums = sums_of(features[:, :-1], labels[:-1], num_slots)
    found = predictive_scores(problem, sums[None, None], features[None, None, :, -1])[0, 0]
    before = tuple(labels[:-1].tolist())
    for k in range(num_slots):
        owned = [n for n in range(num_tokens - 1) if before[n] == k]
        expected = oracles.log_urn((*before, k), num_slots, PRIOR.alpha)
        expected -= oracles.log_urn(before, num_slots, PRIOR.alpha)
        for d in range(dim):
            columns = [[float(tokens[n, d]) for n in some] for some in ([*owned, num_tokens - 1], owned)]
            with_it, without = (oracles.log_predictive(column, PRIOR) for column in columns)
            expected += with_it - without
        assert_close(found[k], expected)


def test_scores_of_a_token_left_out_sum_to_one():
    mask = torch.tensor([[True, True, False]])
    problem = pose(draw(1, 3, 2, seed=0), OURS, 3, mask)
    sums = sums_of(problem.features[0], torch.tensor([[0, 2, 1]]), 3)[None]
    scores = predictive_scores(problem, sums, problem.features[:, None, :, 2])
    assert_close(scores.logsumexp(-1), torch.zeros(1, 1))
    assert_close(scores.exp()[0, 0], (PRIOR.alpha + torch.tensor([1.0, 0.0, 1.0])) / (3 * PRIOR.alpha + 2), 1e-7)


def test_slots_are_drawn_in_proportion_to_the_scores():
    scores = torch.tensor([0.3, -2.0, -math.inf, 1.0, -1e4], dtype=torch.float64)
    drawn = draw_slot(scores.expand(1, MANY, 5), seeded())[0]
    assert torch.equal(drawn.sum(-1), torch.ones(MANY, dtype=torch.float64))
    assert bool(((drawn == 0) | (drawn == 1)).all())
    probability = scores.softmax(0)
    error = STANDARD_ERRORS * (probability * (1 - probability) / MANY).sqrt()
    assert bool(((drawn.mean(0) - probability).abs() <= error).all())


def test_every_run_takes_the_tokens_in_an_order_of_its_own():
    mask = torch.tensor([[True] * 5, [True, False, True, False, True]])
    problem = pose(draw(2, 5, 1, seed=1), OURS, 2, mask)
    orders = [annealing._orders(problem, seeded(seed)) for seed in range(400)]
    order = torch.stack(orders, dim=1).flatten(1, 2)
    assert torch.equal(order.sort(-1).values, torch.arange(5).expand_as(order))
    assert bool((order[1, :, 3:].sort(-1).values == torch.tensor([1, 3])).all()), "tokens left out come last"
    for n in range(5):
        assert_mean_is((order[0, :, 0] == n).to(torch.float64), 0.2)
    assert len({tuple(row) for row in orders[0][0].tolist()}) > NUM_RUNS / 2


def test_resampling_is_unbiased_and_keeps_within_its_run():
    num_particles = 7
    log_weights = 2 * draw(2, NUM_RUNS, num_particles, seed=2)
    log_weights[0, 0, 3] = -math.inf
    wanted = num_particles * log_weights.softmax(-1)
    poor = torch.ones(2, NUM_RUNS, dtype=torch.bool)
    generator, counts = seeded(), []
    for _ in range(2000):
        kept = annealing._resampled(log_weights, poor, generator)
        counts.append(torch.nn.functional.one_hot(kept, NUM_RUNS * num_particles).sum(1).unflatten(1, (NUM_RUNS, -1)))
    count = torch.stack(counts).to(torch.float64)
    assert bool((count.sum(-1) == num_particles).all())
    # systematic: a particle that should come 2.3 times comes 2 or 3 times
    assert bool(((count >= wanted.floor()) & (count <= wanted.ceil())).all())
    part = wanted - wanted.floor()
    error = STANDARD_ERRORS * (part * (1 - part) / len(count)).sqrt()
    assert bool(((count.mean(0) - wanted).abs() <= error + 1e-12).all())


def test_resampling_leaves_runs_in_order_as_they_are():
    log_weights, poor = 3 * draw(1, NUM_RUNS, 5, seed=3), torch.zeros(1, NUM_RUNS, dtype=torch.bool)
    poor[0, 4] = True
    kept = annealing._resampled(log_weights, poor, seeded())[0].unflatten(0, (NUM_RUNS, 5))
    same = torch.arange(NUM_RUNS * 5).unflatten(0, (NUM_RUNS, 5))
    assert torch.equal(kept[~poor[0]], same[~poor[0]])
    assert not torch.equal(kept[4], same[4])


def test_moves_leave_the_posterior_of_the_tokens_seen_as_it_is():
    tokens, num_slots, each = 1.5 * draw(5, 2, seed=4), 2, 1500
    problem = pose(tokens[None], OURS, num_slots, None)
    features = problem.features[0]
    order = annealing._orders(problem, seeded())
    seen = order[..., :3]
    poor = torch.ones(1, NUM_RUNS, dtype=torch.bool)
    poor[0, 5] = False
    sums, expected = [], []
    for subset in seen[0]:
        exact = enumerated(tokens[subset], PRIOR, num_slots)
        index = torch.multinomial(exact.probability, each, replacement=True, generator=seeded(1))
        sums.append(sums_of(features[:, subset], exact.labels[index], num_slots))
        owned = sums_of(features[:, subset], exact.labels, num_slots)
        # counts and their products with first moments, summed over slots: free of labels
        expected.append(torch.stack([exact.probability @ f for f in (owned[..., -1].square().sum(-1), free(owned))]))
    start = torch.cat(sums)[None]
    moved = annealing._moved(problem, start, seen, poor, 2, seeded(2))
    by_run, before = (part[0].unflatten(0, (NUM_RUNS, each)) for part in (moved, start))
    assert torch.equal(by_run[5], before[5]), "a run in order was moved"
    changed = (by_run - before).abs().amax((-2, -1)) > 1e-9
    assert bool((changed.to(torch.float64).mean(-1)[poor[0]] > 0.01).all()), "nothing moved"
    assert_close(by_run.sum(2), before.sum(2))
    for run in range(NUM_RUNS):
        assert_mean_is(by_run[run, ..., -1].square().sum(-1), expected[run][0])
        assert_mean_is(free(by_run[run]), expected[run][1])


def free(sums: Tensor) -> Tensor:
    """Sum over slots of count times the first axis's first moment."""
    return (sums[..., -1] * sums[..., 2]).sum(-1)


@pytest.mark.parametrize("dim", [1, 3])
def test_evidence_of_one_slot_is_exact_in_every_run(dim: int):
    tokens = draw(2, 12, dim, seed=5)
    population = anneal(tokens, OURS, 1, 64, generator=seeded())
    for b in range(2):
        expected = sum(oracles.log_predictive(tokens[b, :, d].tolist(), PRIOR) for d in range(dim))
        assert_close(population.run_log_evidence[b], torch.full((NUM_RUNS,), expected, dtype=torch.float64))


@pytest.mark.parametrize(("num_slots", "apart", "alpha0"), [(2, 1.0, 0.6), (3, 1.0, 0.1), (3, 5.0, 1.0)])
def test_evidence_is_unbiased_on_the_natural_scale(num_slots: int, apart: float, alpha0: float):
    tokens = apart * draw(1, 3, 1, seed=6).repeat(1, 2, 1) + draw(1, 6, 1, seed=7)
    prior = LocalMixturePrior(alpha0, PRIOR.loc, PRIOR.strength, PRIOR.shape, PRIOR.rate)
    exact = float(enumerate_posterior(tokens[0], prior, num_slots).log_evidence)
    population = anneal(tokens.expand(60, -1, -1), prior, num_slots, 128, generator=seeded())
    assert_mean_is(relative_to(exact, population), 1.0)


def test_no_labelling_is_added_to_separated_clusters():
    tokens = torch.tensor([-20.0, 0.0, 20.0], dtype=torch.float64).repeat(3)[None, :, None] + draw(1, 9, 1, seed=8)
    prior = LocalMixturePrior(1.0, 0.0, 0.01, 2.0, 1.0)
    exact = float(enumerate_posterior(tokens[0], prior, 3).log_evidence)
    ratio = relative_to(exact, anneal(tokens, prior, 3, 1024, generator=seeded()))
    error = float(ratio.std()) / NUM_RUNS**0.5
    assert STANDARD_ERRORS * error < 1 - 1 / 6, "too noisy to tell log 3!"
    assert_mean_is(ratio, 1.0)


def test_particles_are_draws_from_the_posterior():
    tokens, num_slots = 1.5 * draw(5, 2, seed=9), 2
    exact = enumerated(tokens, PRIOR, num_slots)
    population = anneal(tokens.expand(30, -1, -1), OURS, num_slots, 512, generator=seeded())
    weight = relative_to(exact.log_evidence, population)
    parts = (population.parameters.log_weights, population.parameters.loc, population.parameters.precision)
    log_weights, loc, precision = (part.flatten(0, 1) for part in parts)
    for name, values in label_free(log_weights, loc + tokens.mean(0), precision).items():
        by_run = values.unflatten(0, (len(weight), -1)).mean(1)
        # a run's mean is unbiased once weighted by its estimate of the evidence
        away = by_run - exact.expected[name]
        assert_mean_is(weight.reshape(-1, *[1] * (away.ndim - 1)) * away, 0.0)


def test_particles_come_in_every_labelling():
    tokens = torch.tensor([-9.0, 9.0], dtype=torch.float64).repeat(3)[None, :, None] + draw(20, 6, 1, seed=10)
    loc = anneal(tokens, OURS, 2, 64, generator=seeded()).parameters.loc[..., 0]
    right = (loc[..., 0] > loc[..., 1]).to(torch.float64).unflatten(1, (NUM_RUNS, -1)).mean(-1).flatten()
    assert_mean_is(right, 0.5)


def test_runs_of_an_image_are_independent():
    tokens = draw(1, 6, 1, seed=11).expand(200, -1, -1)
    runs = anneal(tokens, OURS, 2, 64, generator=seeded()).run_log_evidence
    assert scipy.stats.f_oneway(*runs.tolist()).pvalue > 1e-6, "runs of an image are alike"
    assert scipy.stats.f_oneway(*runs.T.tolist()).pvalue > 1e-6, "runs differ in law"
    assert float(runs.std()) > 0


def test_images_keep_their_order_in_chunks(monkeypatch: pytest.MonkeyPatch):
    tokens = draw(3, 5, 1, seed=12) * torch.tensor([1.0, 30.0, 1000.0], dtype=torch.float64)[:, None, None]
    monkeypatch.setattr(annealing, "MAX_ENTRIES", 64 * 2 * 5 * 2)  # two images, then one
    mask = torch.tensor([[True] * 5, [True] * 4 + [False], [True] * 5])
    population = anneal(tokens, OURS, 2, 64, mask=mask, generator=seeded())
    assert population.parameters.loc.shape == population.parameters.precision.shape == (3, 64, 2, 1)
    for b, kept in enumerate(mask):
        exact = float(enumerate_posterior(tokens[b, kept], OURS, 2).log_evidence)
        assert abs(float(population.run_log_evidence[b].mean()) - exact) < 1.0


def test_masked_tokens_count_nowhere_whatever_they_hold():
    tokens, mask = draw(1, 7, 2, seed=13), torch.tensor([[True, False, True, True, False, True, True]])
    exact = float(enumerate_posterior(tokens[mask], OURS, 2).log_evidence)
    padded = tokens.masked_fill(~mask[..., None], math.nan).expand(40, -1, -1)
    population = anneal(padded, OURS, 2, 64, mask=mask.expand(40, -1), generator=seeded())
    assert_mean_is(relative_to(exact, population), 1.0)
    alone = anneal(padded[:1], OURS, 1, 64, mask=mask, generator=seeded()).run_log_evidence
    expected = float(enumerate_posterior(tokens[mask], OURS, 1).log_evidence)
    assert_close(alone, torch.full((1, NUM_RUNS), expected, dtype=torch.float64))


@pytest.mark.parametrize("num_samples", [0, 16, 48, 100])
def test_other_numbers_of_samples_are_refused(num_samples: int):
    message = f"num_samples must be a multiple of 16 and at least 64, got {num_samples}"
    with pytest.raises(ValueError, match=message):
        anneal(draw(1, 3, 1, seed=14), OURS, 2, num_samples)


def test_draws_repeat_by_their_generator_and_leave_the_global_one_alone():
    before = torch.get_rng_state()
    first, second, other = (anneal(draw(2, 5, 1, seed=15), OURS, 2, 64, generator=seeded(i)) for i in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.run_log_evidence, second.run_log_evidence)
    assert torch.equal(first.parameters.loc, second.parameters.loc)
    assert not torch.equal(first.run_log_evidence, other.run_log_evidence)


def test_a_sparse_prior_gives_finite_particles():
    population = anneal(draw(1, 6, 1, seed=16), LocalMixturePrior(1e-3), 4, 64, generator=seeded())
    parameters = population.parameters
    for part in (population.run_log_evidence, parameters.log_weights, parameters.loc, parameters.precision):
        assert bool(torch.isfinite(part).all())


def test_particles_run_on_every_device(device: torch.device):
    tokens = draw(1, 4, 1, seed=17)
    population = anneal(tokens.to(device), OURS, 1, 64, generator=torch.Generator(device).manual_seed(0))
    assert population.parameters.loc.device.type == device.type
    expected = float(enumerate_posterior(tokens[0], OURS, 1).log_evidence)
    assert_close(population.run_log_evidence, torch.full((1, NUM_RUNS), expected, dtype=torch.float64))
