"""Importance sampling: proposals against sums over permutations, ratios against loops, their mean against the exact."""

import itertools
import math

import pytest
import torch
from contracts import draw
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_close, assert_mean_is
from torch import Tensor
from torch.distributions import Dirichlet, Gamma, Normal

from psa.conjugate import NormalGamma
from psa.inference import importance
from psa.inference.enumeration import enumerate_posterior
from psa.inference.gibbs import Parameters, log_likelihood, log_prior
from psa.inference.importance import Proposal, WeightedDraws, importance_draws
from psa.models.local_mixture import LocalMixturePrior

PRIOR = LocalMixturePrior(0.6, 0.4, 0.3, 2.5, 0.7)
NUM_DRAWS = 20_000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def a_proposal(batch: int, num_slots: int, dim: int, seed: int, spread: float = 1.0) -> Proposal:
    """Different numbers in every slot."""
    components = NormalGamma(
        spread * draw(batch, num_slots, dim, seed=seed),
        (spread * draw(batch, num_slots, seed=seed + 1)).exp(),
        2.0 + draw(batch, num_slots, seed=seed + 2).abs(),
        (spread * draw(batch, num_slots, dim, seed=seed + 3)).exp(),
    )
    return Proposal(1.0 + draw(batch, num_slots, seed=seed + 4).abs(), components)


def some_parameters(batch: int, num_draws: int, num_slots: int, dim: int, seed: int) -> Parameters:
    return Parameters(
        draw(batch, num_draws, num_slots, seed=seed).log_softmax(-1),
        draw(batch, num_draws, num_slots, dim, seed=seed + 1),
        (0.5 * draw(batch, num_draws, num_slots, dim, seed=seed + 2)).exp(),
    )


def one_labelling(proposal: Proposal, b: int, log_weights: Tensor, loc: Tensor, precision: Tensor) -> Tensor:
    """log q(pi) q(mu, lambda) of image b by torch.distributions; (S, K), (S, K, D), (S, K, D)."""
    q = proposal.components
    strength, shape = q.strength[b, :, None], q.shape[b, :, None]
    density = Dirichlet(proposal.concentration[b]).log_prob(log_weights.exp())
    density = density + Gamma(shape, q.rate[b]).log_prob(precision).sum((-2, -1))
    return density + Normal(q.loc[b], (strength * precision).rsqrt()).log_prob(loc).sum((-2, -1))


@given(num_slots=st.integers(1, 4), dim=st.integers(1, 3), seed=st.integers(0, 10_000))
def test_proposals_are_averaged_over_all_relabellings(num_slots: int, dim: int, seed: int):
    proposal, parameters = a_proposal(2, num_slots, dim, seed), some_parameters(2, 3, num_slots, dim, seed + 9)
    found = proposal.log_density(parameters)
    for b in range(2):
        parts = [part[b] for part in (parameters.log_weights, parameters.loc, parameters.precision)]
        terms = [
            one_labelling(proposal, b, *(part[:, list(order)] for part in parts))
            for order in itertools.permutations(range(num_slots))
        ]
        assert_close(found[b], torch.stack(terms).logsumexp(0) - math.lgamma(num_slots + 1), 1e-9)


def test_densities_of_many_slots_in_parts_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch):
    proposal, parameters = a_proposal(2, 3, 1, 0), some_parameters(2, 7, 3, 1, 1)
    whole = proposal.log_density(parameters)
    monkeypatch.setattr(importance, "MAX_TERMS", 2 * 8 * 2)
    assert_close(proposal.log_density(parameters), whole)


def test_draws_of_a_proposal_have_its_density():
    ours, other = a_proposal(1, 3, 1, 2), a_proposal(1, 3, 1, 2, spread=0.9)
    drawn = ours.draw(NUM_DRAWS, seeded())
    ratio = (other.log_density(drawn) - ours.log_density(drawn)).exp()[0]
    assert_mean_is(ratio, 1.0)
    assert float(ratio.std()) > 0.01


def test_ratios_divide_by_the_mixture_of_all_that_was_drawn_from():
    tokens = draw(2, 6, 2, seed=3)
    draws = importance_draws(tokens, PRIOR, 2, 100, generator=seeded())
    assert sum(draws.counts) == draws.log_ratios.shape[1] == 100
    assert len(draws.counts) == 1 + len(draws.proposals)
    assert min(draws.counts) > 0
    assert draws.counts[0] >= 5, "too few draws from the prior against heavy tails"
    columns = [log_prior(draws.problem, draws.parameters)]
    columns += [proposal.log_density(draws.parameters) for proposal in draws.proposals]
    assert_close(draws.log_densities, torch.stack(columns, dim=-1))
    assert_close(draws.log_joint, log_likelihood(draws.problem, draws.parameters) + columns[0])
    for b, s in itertools.product(range(2), range(0, 100, 9)):
        mixture = sum(n / 100 * float(column[b, s].exp()) for n, column in zip(draws.counts, columns, strict=True))
        assert_close(draws.log_ratios[b, s], float(draws.log_joint[b, s]) - math.log(mixture))


@pytest.mark.parametrize("num_samples", [100, 101, 137])
def test_as_many_draws_as_asked_for_come_back(num_samples: int):
    draws = importance_draws(draw(1, 4, 1, seed=4), PRIOR, 3, num_samples, generator=seeded())
    assert draws.log_ratios.shape == (1, num_samples)
    assert draws.parameters.loc.shape == (1, num_samples, 3, 1)
    assert bool(torch.isfinite(draws.log_ratios).all())


@pytest.mark.parametrize(("num_slots", "apart"), [(1, 1.0), (2, 1.0), (3, 4.0)])
def test_mean_ratio_is_the_evidence_but_for_less_than_its_own_standard_error(num_slots: int, apart: float):
    tokens = apart * draw(3, 2, seed=5).repeat(3, 1)[:8] + draw(8, 2, seed=6)
    prior = LocalMixturePrior(1.0, 0.0, 0.1, 1.0, 1.0)
    exact = enumerate_posterior(tokens, prior, num_slots).log_evidence
    draws = importance_draws(tokens.expand(24, -1, -1), prior, num_slots, 1000, generator=seeded())
    ratios = (draws.log_ratios - exact).exp()
    error = ratios.std(-1) / 1000**0.5
    assert abs(float(ratios.mean()) - 1.0) < float(error.mean())
    assert float(ratios.mean(-1).std()) < 1.5 * float(error.mean())


@pytest.mark.parametrize(("num_slots", "apart"), [(2, 1.0), (3, 4.0)])
def test_the_mean_ratio_is_unbiased_though_proposals_follow_the_ratios(num_slots: int, apart: float):
    tokens = apart * draw(3, 2, seed=5).repeat(3, 1)[:8] + draw(8, 2, seed=6)
    prior = LocalMixturePrior(1.0, 0.0, 0.1, 1.0, 1.0)
    exact = enumerate_posterior(tokens, prior, num_slots).log_evidence
    # few draws of many images: the draws that proposals followed would be low by 3 %, some ten of these errors
    draws = importance_draws(tokens.expand(120, -1, -1), prior, num_slots, 100, generator=seeded())
    assert_mean_is((draws.log_ratios - exact).exp().mean(-1), 1.0)


def test_ratios_do_not_depend_on_labels():
    draws = importance_draws(draw(1, 5, 1, seed=7), PRIOR, 3, 100, generator=seeded())
    order = torch.tensor([2, 0, 1])
    p = draws.parameters
    renamed = Parameters(p.log_weights[..., order], p.loc[:, :, order], p.precision[:, :, order])
    for proposal in draws.proposals:
        assert_close(proposal.log_density(renamed), proposal.log_density(p))


def test_extended_draws_keep_what_was_there():
    draws = importance_draws(draw(1, 5, 1, seed=8), PRIOR, 2, 100, generator=seeded())
    new = [a_proposal(1, 2, 1, seed) for seed in (20, 30, 40)]
    more = draws.extended(new, 8, seeded(1))
    assert more.counts == [*draws.counts, 3, 3, 2]
    assert more.proposals == [*draws.proposals, *new]
    assert torch.equal(more.parameters.loc[:, :100], draws.parameters.loc)
    assert torch.equal(more.log_joint[:, :100], draws.log_joint)
    assert torch.equal(more.log_densities[:, :100, : len(draws.counts)], draws.log_densities)
    columns = [proposal.log_density(more.parameters) for proposal in more.proposals]
    assert_close(more.log_densities[..., 1:], torch.stack(columns, dim=-1))


def test_masked_tokens_count_nowhere_whatever_they_hold():
    tokens, mask = draw(1, 6, 2, seed=9), torch.tensor([[True, False, True, True, False, True]])
    padded = tokens.masked_fill(~mask[..., None], math.nan)
    draws = importance_draws(padded, PRIOR, 2, 4000, mask=mask, generator=seeded())
    some = importance_draws(tokens[mask][None], PRIOR, 2, 4000, generator=seeded())
    exact = enumerate_posterior(tokens[mask], PRIOR, 2).log_evidence
    for found in (draws, some):
        error = float((found.log_ratios - exact).exp().std()) / 4000**0.5
        assert abs(float((found.log_ratios - exact).exp().mean()) - 1) < 6 * error + 0.01


def ratios_of(tokens: Tensor, seed: int) -> Tensor:
    draws: WeightedDraws = importance_draws(tokens, PRIOR, 2, 100, generator=seeded(seed))
    return draws.log_ratios


def test_draws_repeat_by_their_generator_and_leave_the_global_one_alone():
    tokens, before = draw(2, 5, 1, seed=10), torch.get_rng_state()
    first, second, other = (ratios_of(tokens, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="num_samples must be at least 100 for importance sampling, got 99"):
        importance_draws(draw(1, 3, 1, seed=11), PRIOR, 2, 99)


def test_fractional_weights_are_refused():
    with pytest.raises(ValueError, match="mask must be bool"):
        importance_draws(draw(1, 3, 1, seed=12), PRIOR, 2, 100, mask=torch.full((1, 3), 0.5))


def test_more_slots_than_a_permanent_takes_are_refused():
    message = "num_slots must be at most 14 .*, got 15: use method annealed, or NUTS for draws$"
    with pytest.raises(ValueError, match=message):
        importance_draws(draw(1, 3, 1, seed=13), PRIOR, 15, 100, generator=seeded())


def test_proposals_run_on_every_device(device: torch.device):
    tokens = draw(1, 4, 1, seed=14).to(device)
    draws = importance_draws(tokens, PRIOR, 2, 100, generator=torch.Generator(device).manual_seed(0))
    assert draws.log_ratios.device.type == device.type
    assert bool(torch.isfinite(draws.log_ratios).all())
