import math

import pytest
import tiny
import torch
from pyro import distributions as dist
from tolerances import CONVERGED, STANDARD_ERRORS, assert_close, assert_mean_is
from torch import Tensor

from psa.inference.annealed_scenes import Chains, Point, Schedule, _hmc, _point, anneal, annealed_weights, piloted
from psa.inference.scene_evidence import SceneEvidence, SlotProposal, estimate

NUM_SLOTS, NOISE = 2, 0.3
CPU = torch.device("cpu")
X = torch.tensor([0.9, -0.4], dtype=torch.float64)
PRIOR = dist.Normal(torch.tensor([0.2, -0.1], dtype=torch.float64), torch.tensor([1.0, 0.6]).double()).to_event(1)
# x = the sum of the slots + noise
COVARIANCE = NUM_SLOTS * PRIOR.variance + NOISE**2
EVIDENCE = float(torch.distributions.Normal(NUM_SLOTS * PRIOR.mean, COVARIANCE.sqrt()).log_prob(X).sum())
OFF = torch.tensor([[0.9, 0.2], [-0.3, -0.5]], dtype=torch.float64)  # no mode of anything


def log_likelihood(slots: Tensor) -> Tensor:
    return torch.distributions.Normal(slots.sum(1), NOISE).log_prob(X).sum(-1)


def proposal(rows: int, scale: float = 0.7) -> SlotProposal:
    loc = OFF.expand(rows, -1, -1)
    return SlotProposal(loc, torch.full_like(loc, scale))


def streams(count: int = 1, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 * seed + i) for i in range(count)]


def chains(rows: int, schedule: Schedule, seed: int = 0) -> Chains:
    both = streams(1, seed), streams(1, seed + 50)
    return piloted(lambda count: (proposal(count), log_likelihood), PRIOR, rows, both, schedule)


@pytest.mark.parametrize("num_temperatures", [1, 2, 8])
def test_the_mean_weight_is_the_evidence_whatever_the_number_of_temperatures(num_temperatures):
    found = chains(3000, Schedule(num_temperatures=num_temperatures, num_leapfrog=3))
    assert_mean_is((found.log_weights - EVIDENCE).exp(), 1.0)


def test_more_temperatures_bring_the_logarithm_closer_from_below():
    gaps = []
    for num_temperatures in (1, 4, 16, 48):
        weights = chains(400, Schedule(num_temperatures=num_temperatures, num_leapfrog=3)).log_weights
        gaps.append(EVIDENCE - float(weights.mean()))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 3.0
    assert 0.0 < gaps[-1] < 0.6
    value, error = estimate(weights[None], "annealed")
    assert abs(float(value) - EVIDENCE) < STANDARD_ERRORS * float(error) < 0.4


def test_a_move_leaves_its_target_as_it_is():
    """Draws of the target, moved ten times with steps so long that a tenth is refused, still have its moments."""
    target = SlotProposal(torch.zeros(20_000, 2, 1).double(), torch.ones(20_000, 2, 1).double())

    def point(slots: Tensor) -> Point:
        return _point(slots, target.log_density, target.log_density)

    now = point(target.at(torch.randn(20_000, 2, 1, dtype=torch.float64, generator=streams()[0])))
    generators = streams(1, 7)
    for _ in range(10):
        now, probability = _hmc(point, now, 0.3, 1.2 * target.scale, 2, generators)
    assert 0.7 < float(probability.mean()) < 0.95
    assert_mean_is(now.slots, 0.0)
    assert_mean_is(now.slots.square(), 1.0)
    assert_mean_is(now.slots.prod(1).square(), 1.0)


def test_all_orders_of_the_slots_are_approached_alike():
    """A chain of one order would be low by log 2 on every draw, with nothing to show it."""
    apart = SlotProposal(
        torch.tensor([[3.0, 0.0], [-3.0, 0.0]], dtype=torch.float64).expand(500, -1, -1),
        torch.full((500, 2, 2), 0.2, dtype=torch.float64),
    )
    centres = apart.loc[0]

    def two_modes(slots: Tensor) -> Tensor:
        orders = [torch.distributions.Normal(centres[[k, 1 - k]], 0.2).log_prob(slots).sum((1, 2)) for k in (0, 1)]
        return torch.stack(orders).logsumexp(0) - PRIOR.log_prob(slots).sum(-1)

    found = anneal(apart, PRIOR, two_modes, streams(), Schedule(num_temperatures=4), torch.full((3, 500), 0.4).double())
    assert_close(found.log_weights, torch.full_like(found.log_weights, math.log(2)), CONVERGED)


def test_temperatures_run_from_zero_to_one_and_are_finest_at_the_ends():
    for schedule in (Schedule(), Schedule(num_temperatures=1), Schedule(num_temperatures=7, steepness=1e-3)):
        betas = schedule.betas()
        assert (float(betas[0]), float(betas[-1]), len(betas)) == (0.0, 1.0, schedule.num_temperatures + 1)
        assert bool((betas.diff() > 0).all())
    widths = Schedule().betas().diff()
    assert float(widths[0]) < 0.3 * float(widths[25])
    assert_close(widths, widths.flip(0))


def test_the_pilot_brings_acceptance_near_its_aim_and_the_chains_do_not_adapt():
    schedule = Schedule(num_temperatures=40, first_step=2.0)
    found = chains(100, schedule)
    assert abs(float(found.acceptance.mean()) - schedule.acceptance) < 0.2
    assert float(found.steps[0, 0]) == pytest.approx(2.0)
    assert float(found.steps[-1, 0]) < 1.0
    assert bool((found.steps == found.steps[:, :1]).all())


def test_a_state_that_is_not_finite_is_never_accepted():
    def broken(slots: Tensor) -> Tensor:
        return torch.where(slots.sum((1, 2)) > 0.5, torch.nan, log_likelihood(slots))

    start = SlotProposal(OFF.expand(50, -1, -1) - 2.0, torch.full((50, 2, 2), 0.05).double())
    found = anneal(start, PRIOR, broken, streams(), Schedule(num_temperatures=20), torch.full((19, 50), 4.0).double())
    assert bool(found.log_weights.isfinite().all())
    assert bool((found.acceptance < 1.0).all())


@pytest.fixture(scope="module")
def scenes() -> SceneEvidence:
    autoencoder = tiny.tiny_autoencoder({"slots": {"variant": "sa"}, "objective": tiny.WITH_KL["objective"]})
    return SceneEvidence(autoencoder.eval().double(), 0.7, seed=1)


BRIEF = Schedule(num_temperatures=4, num_leapfrog=2)


def test_an_images_chains_do_not_know_the_images_beside_it(scenes):
    images = tiny.tiny_images(3).images
    weights, acceptance = annealed_weights(scenes, images, 0, 2, BRIEF)
    assert weights.shape == acceptance.shape == (3, 2)
    parts = [annealed_weights(scenes, images[first : first + 2], first, 2, BRIEF) for first in (0, 2)]
    assert_close(torch.cat([part[0] for part in parts]), weights, CONVERGED)
    assert_close(torch.cat([part[1] for part in parts]), acceptance, CONVERGED)
    again, _ = annealed_weights(scenes, images, 0, 2, BRIEF)
    assert torch.equal(again, weights)


def test_annealing_a_run_finds_what_as_many_draws_from_q_miss(scenes):
    images = tiny.tiny_images(2).images
    weights, _ = annealed_weights(scenes, images, 0, 4, Schedule(num_temperatures=10, num_leapfrog=2))
    drawn = torch.stack([scenes.importance_weights(image, index, 4 * 10 * 3) for index, image in enumerate(images)])
    value = estimate(weights, "annealed")[0]
    assert bool((value > estimate(drawn, "iwae")[0] + 1.0).all())
    assert bool((estimate(drawn, "iwae")[0] > estimate(drawn, "elbo")[0]).all())
