"""Gibbs steps against torch.distributions, Pyro's program and expectations summed over all assignments."""

import itertools
import math
from dataclasses import replace

import oracles
import pyro
import pytest
import torch
from contracts import draw
from enumerated import enumerated, label_free
from hypothesis import given
from hypothesis import strategies as st
from tolerances import STANDARD_ERRORS, assert_close, assert_mean_is
from torch import Tensor
from torch.distributions import Dirichlet, Gamma, Normal

from psa.conjugate import NormalGamma
from psa.inference import gibbs
from psa.inference.annealing import sweep
from psa.inference.gibbs import (
    Parameters,
    Problem,
    component_log_density,
    draw_parameters,
    draw_sums,
    given_sums,
    joined,
    log_likelihood,
    log_prior,
    pose,
    prior_draws,
)
from psa.models.local_mixture import LocalMixturePrior, local_mixture

PRIOR = oracles.Prior(alpha=0.6, loc=0.4, strength=0.3, shape=2.5, rate=0.7)
OURS = LocalMixturePrior(PRIOR.alpha, PRIOR.loc, PRIOR.strength, PRIOR.shape, PRIOR.rate)
NUM_DRAWS = 20_000
seeds = st.integers(0, 10_000)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_parameters(batch: int, num_draws: int, num_slots: int, dim: int, seed: int) -> Parameters:
    """Different numbers everywhere."""
    return Parameters(
        draw(batch, num_draws, num_slots, seed=seed).log_softmax(-1),
        draw(batch, num_draws, num_slots, dim, seed=seed + 1),
        (0.5 * draw(batch, num_draws, num_slots, dim, seed=seed + 2)).exp(),
    )


def uncentred(problem: Problem, parameters: Parameters) -> Parameters:
    """In the tokens' own coordinates."""
    return Parameters(parameters.log_weights, parameters.loc + problem.origin[:, None], parameters.precision)


def free_of_labels(problem: Problem, parameters: Parameters) -> dict[str, Tensor]:
    """Of a single image's draws."""
    outer = uncentred(problem, parameters)
    return label_free(outer.log_weights[0], outer.loc[0], outer.precision[0])


def some_components(num_slots: int, dim: int) -> NormalGamma:
    return NormalGamma(
        3 * draw(1, 1, num_slots, dim, seed=1),
        draw(1, 1, num_slots, seed=2).exp(),
        2.5 + draw(1, 1, num_slots, seed=3).abs(),
        draw(1, 1, num_slots, dim, seed=4).exp(),
    )


def test_weights_are_drawn_from_the_dirichlet():
    concentration = torch.tensor([0.05, 0.6, 3.0], dtype=torch.float64)
    drawn = draw_parameters(concentration.expand(1, NUM_DRAWS, 3), some_components(3, 1), seeded()).log_weights[0]
    law = Dirichlet(concentration)
    assert_close(drawn.logsumexp(-1), torch.zeros(NUM_DRAWS))
    assert_mean_is(drawn.exp(), law.mean)
    assert_mean_is((drawn.exp() - law.mean).square(), law.variance)
    # E[log pi_k], where a wrong tail shows
    assert_mean_is(drawn, concentration.digamma() - concentration.sum().digamma())


def test_means_and_precisions_are_drawn_from_the_normal_gamma():
    components = some_components(3, 2)
    drawn = draw_parameters(torch.ones(1, NUM_DRAWS, 3, dtype=torch.float64), components, seeded())
    loc, precision = drawn.loc[0], drawn.precision[0]
    law = Gamma(components.shape[0, 0, :, None].expand(3, 2), components.rate[0, 0])
    assert_mean_is(precision, law.mean)
    assert_mean_is((precision - law.mean).square(), law.variance)
    assert_mean_is(precision.log(), law.concentration.digamma() - law.rate.log())
    standard = (loc - components.loc[0, 0]) * (components.strength[0, 0, :, None] * precision).sqrt()
    for power, moment in ((1, 0.0), (2, 1.0), (4, 3.0)):
        assert_mean_is(standard**power, moment)
    assert_mean_is(standard * (precision - law.mean), 0.0)
    assert_mean_is(standard[:, 0] * standard[:, 1], 0.0)


def test_weights_of_a_sparse_prior_keep_their_logarithms():
    alpha0 = 1e-3
    drawn = prior_draws(pose(draw(1, 3, 1, seed=5), LocalMixturePrior(alpha0), 3, None), NUM_DRAWS, seeded())
    assert bool(torch.isfinite(drawn.log_weights).all())
    assert float(drawn.log_weights.min()) < -1e3
    expected = torch.tensor([alpha0, 3 * alpha0], dtype=torch.float64).digamma()
    assert_mean_is(drawn.log_weights[0], float(expected[0] - expected[1]))


def test_assignments_are_drawn_in_proportion_to_the_scores():
    num_tokens, num_slots = 4, 3
    scores = 2 * draw(1, 1, num_slots, num_tokens, seed=6)
    scores[..., 0, 0], scores[..., 1, 1], scores[..., 2, 2] = -1e4, -float("inf"), -1e4
    problem = pose(draw(1, num_tokens, 1, seed=7), OURS, num_slots, None)
    # features that tell tokens apart: the sums are the assignments themselves
    problem = replace(problem, features=torch.eye(num_tokens, dtype=torch.float64)[None])
    owned = draw_sums(problem, scores.expand(1, NUM_DRAWS, num_slots, num_tokens), seeded())[0]
    assert bool(((owned == 0) | (owned == 1)).all())
    assert torch.equal(owned.sum(1), torch.ones(NUM_DRAWS, num_tokens, dtype=torch.float64))
    probability = scores[0, 0].softmax(0)
    error = STANDARD_ERRORS * (probability * (1 - probability) / NUM_DRAWS).sqrt()
    assert bool(((owned.mean(0) - probability).abs() <= error).all())
    # tokens choose independently
    assert_mean_is(owned[:, 0, 2] * owned[:, 1, 3], float(probability[0, 2] * probability[1, 3]))


def test_sums_are_those_of_the_features_that_a_slot_owns():
    tokens = draw(2, 5, 2, seed=8)
    mask = torch.tensor([[True] * 5, [True, True, False, True, False]])
    problem = pose(tokens, OURS, 3, mask)
    sums = draw_sums(problem, draw(2, 7, 3, 5, seed=9), seeded())
    assert sums.shape == (2, 7, 3, 5)
    assert_close(sums.sum(2), problem.features.sum(-1)[:, None].expand(2, 7, 5))
    assert_close(sums[..., -1].sum(-1), torch.tensor([5.0, 3.0])[:, None].expand(2, 7))


def test_parameters_given_sums_follow_the_conjugate_posterior():
    tokens, labels = 2 * draw(1, 6, 1, seed=10), [0, 0, 2, 0, 2, 0]
    problem = pose(tokens, OURS, 3, None)
    owned = torch.nn.functional.one_hot(torch.tensor(labels), 3).T.to(torch.float64)
    sums = (owned @ problem.features[0].T).expand(1, NUM_DRAWS, -1, -1)
    drawn = uncentred(problem, given_sums(problem, sums, seeded()))
    concentration = PRIOR.alpha + owned.sum(1)
    assert_mean_is(drawn.log_weights[0], concentration.digamma() - concentration.sum().digamma())
    for k in range(3):
        values = [float(tokens[0, n, 0]) for n in range(6) if labels[n] == k]
        loc, strength, shape, rate = oracles.normal_gamma_posterior(values, [1.0] * len(values), PRIOR)
        mu, precision = drawn.loc[0, :, k, 0], drawn.precision[0, :, k, 0]
        assert_mean_is(precision, shape / rate)
        assert_mean_is((precision - shape / rate).square(), shape / rate**2)
        assert_mean_is(mu, loc)
        assert_mean_is(precision * (mu - loc).square(), 1 / strength)


def test_prior_draws_follow_the_prior_about_the_tokens_mean():
    problem = pose(5 + draw(2, 4, 1, seed=13), OURS, 2, None)
    drawn = uncentred(problem, prior_draws(problem, NUM_DRAWS, seeded()))
    for b, k in itertools.product(range(2), range(2)):
        assert_mean_is(drawn.log_weights.exp()[b, :, k], 0.5)
        assert_mean_is(drawn.precision[b, :, k], PRIOR.shape / PRIOR.rate)
        assert_mean_is(drawn.loc[b, :, k], PRIOR.loc)


@pytest.mark.parametrize(("num_slots", "dim"), [(1, 1), (2, 1), (3, 2)])
def test_sweep_leaves_the_posterior_as_it_is(num_slots: int, dim: int):
    tokens = 1.5 * draw(5, dim, seed=14)
    exact = enumerated(tokens, PRIOR, num_slots)
    problem = pose(tokens[None], OURS, num_slots, None)
    index = torch.multinomial(exact.probability, NUM_DRAWS, replacement=True, generator=seeded(1))
    owned = torch.nn.functional.one_hot(exact.labels[index], num_slots).transpose(1, 2).to(torch.float64)
    start = given_sums(problem, (owned @ problem.features[0].T)[None], seeded(2))
    after = sweep(problem, start, seeded(3))
    assert not torch.equal(after.loc, start.loc)
    for name, values in free_of_labels(problem, after).items():
        if num_slots == 1 and name == "sum of squared weights":
            assert_close(values, torch.ones(NUM_DRAWS))
        else:
            assert_mean_is(values, exact.expected[name])


def test_sweeps_carry_the_prior_to_the_posterior():
    tokens, generator = draw(4, 1, seed=15), seeded()
    problem = pose(tokens[None], OURS, 2, None)
    parameters = prior_draws(problem, NUM_DRAWS, generator)
    for _ in range(30):
        parameters = sweep(problem, parameters, generator)
    expected = enumerated(tokens, PRIOR, 2).expected
    for name, values in free_of_labels(problem, parameters).items():
        assert_mean_is(values, expected[name])


def program_log_joint(tokens: Tensor, parameters: Parameters, prior: LocalMixturePrior) -> float:
    """log p(v, theta) of one image and draw by Pyro's program, summed over all assignments."""
    _, num_tokens, _ = tokens.shape
    num_slots = parameters.loc.shape[2]
    terms = []
    for assignment in itertools.product(range(num_slots), repeat=num_tokens):
        values = {
            "weights": parameters.log_weights.exp()[:, :1],
            "precision": parameters.precision[:, 0],
            "loc": parameters.loc[:, 0],
            "assignment": torch.tensor(assignment)[None],
        }
        trace = pyro.poutine.trace(pyro.poutine.condition(local_mixture, values)).get_trace(tokens, prior, num_slots)
        terms.append(trace.log_prob_sum())
    return float(torch.stack(terms).logsumexp(0))


@pytest.mark.parametrize(("num_slots", "dim"), [(1, 1), (2, 2), (3, 1)])
def test_densities_equal_the_program_with_its_assignments_summed(num_slots: int, dim: int):
    prior = LocalMixturePrior(0.6, 0.5 + torch.arange(dim), 0.3, 1.4, 0.5 + torch.arange(dim))
    tokens = 1 + 2 * draw(2, 3, dim, seed=16)
    problem = pose(tokens, prior, num_slots, None)
    parameters = some_parameters(2, 2, num_slots, dim, seed=17)
    found = log_likelihood(problem, parameters) + log_prior(problem, parameters)
    outer = uncentred(problem, parameters)
    for b, s in itertools.product(range(2), range(2)):
        one = Parameters(*(part[b : b + 1, s : s + 1] for part in (outer.log_weights, outer.loc, outer.precision)))
        assert_close(found[b, s], program_log_joint(tokens[b : b + 1], one, prior))


def test_log_prior_is_dirichlet_gamma_and_normal():
    problem = pose(draw(1, 3, 2, seed=18), OURS, 3, None)
    parameters = some_parameters(1, 5, 3, 2, seed=19)
    outer = uncentred(problem, parameters)
    expected = Dirichlet(torch.full((3,), PRIOR.alpha, dtype=torch.float64)).log_prob(outer.log_weights.exp())
    gamma = Gamma(*torch.tensor([PRIOR.shape, PRIOR.rate], dtype=torch.float64))
    expected += gamma.log_prob(outer.precision).sum((-2, -1))
    normal = Normal(torch.tensor(PRIOR.loc, dtype=torch.float64), (PRIOR.strength * outer.precision).rsqrt())
    assert_close(log_prior(problem, parameters), expected + normal.log_prob(outer.loc).sum((-2, -1)))


def test_component_density_is_the_normal():
    tokens = 3 + 2 * draw(2, 6, 3, seed=20)
    problem = pose(tokens, OURS, 2, None)
    parameters = some_parameters(2, 4, 2, 3, seed=21)
    outer = uncentred(problem, parameters)
    law = Normal(outer.loc[:, :, :, None], outer.precision.rsqrt()[:, :, :, None])
    assert_close(component_log_density(problem, parameters), law.log_prob(tokens[:, None, None]).sum(-1))


@given(seed=seeds, kept=st.lists(st.booleans(), min_size=6, max_size=6).filter(any))
def test_masked_tokens_count_nowhere_whatever_they_hold(seed: int, kept: list[bool]):
    tokens, mask = draw(1, 6, 2, seed=seed), torch.tensor([kept])
    some = pose(tokens[mask][None], OURS, 2, None)
    padded = pose(tokens.masked_fill(~mask[..., None], math.nan), OURS, 2, mask)
    parameters = some_parameters(1, 3, 2, 2, seed=seed)
    assert_close(padded.origin, some.origin)
    assert_close(log_likelihood(padded, parameters), log_likelihood(some, parameters))
    assert_close(log_prior(padded, parameters), log_prior(some, parameters))
    assert_close(padded.features.sum(-1), some.features.sum(-1))


def test_fractional_weights_are_refused():
    with pytest.raises(ValueError, match=r"mask must be bool where assignments are summed or drawn, got torch.float64"):
        pose(draw(1, 3, 1, seed=22), OURS, 2, torch.full((1, 3), 0.5, dtype=torch.float64))


def test_log_likelihood_in_parts_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch):
    problem = pose(draw(2, 5, 2, seed=23), OURS, 3, None)
    parameters = some_parameters(2, 7, 3, 2, seed=24)
    whole = log_likelihood(problem, parameters)
    for entries in (1, 2 * 3 * 5 * 3):
        monkeypatch.setattr(gibbs, "MAX_ENTRIES", entries)
        assert_close(log_likelihood(problem, parameters), whole)


def test_draws_are_chosen_within_their_image_and_joined_in_order():
    parameters = some_parameters(2, 5, 3, 2, seed=25)
    index = torch.tensor([[4, 0, 0], [1, 2, 3]])
    chosen = parameters[index]
    for b, s in itertools.product(range(2), range(3)):
        assert torch.equal(chosen.log_weights[b, s], parameters.log_weights[b, index[b, s]])
        assert torch.equal(chosen.loc[b, s], parameters.loc[b, index[b, s]])
        assert torch.equal(chosen.precision[b, s], parameters.precision[b, index[b, s]])
    both = joined([parameters, chosen])
    assert torch.equal(both.loc[:, :5], parameters.loc)
    assert torch.equal(both.precision[:, 5:], chosen.precision)
    assert both.log_weights.shape == (2, 8, 3)


def test_draws_repeat_by_their_generator_and_leave_the_global_one_alone():
    problem = pose(draw(2, 4, 2, seed=26), OURS, 3, None)
    before = torch.get_rng_state()
    first, second, other = (prior_draws(problem, 9, seeded(seed)) for seed in (1, 1, 2))
    swept, again = (sweep(problem, first, seeded(3)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    for name in ("log_weights", "loc", "precision"):
        assert torch.equal(getattr(first, name), getattr(second, name))
        assert torch.equal(getattr(swept, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))


def test_sweeps_run_on_every_device(device: torch.device):
    problem = pose(draw(2, 4, 2, seed=27).to(device), OURS, 3, None)
    generator = torch.Generator(device).manual_seed(0)
    swept = sweep(problem, prior_draws(problem, 5, generator), generator)
    assert swept.loc.device.type == device.type
    assert bool(torch.isfinite(log_likelihood(problem, swept) + log_prior(problem, swept)).all())
