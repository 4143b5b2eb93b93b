import math

import pytest
import torch
from tolerances import CONVERGED, STANDARD_ERRORS, assert_close

from psa.inference.em import MixtureState
from psa.inference.point_slots import PointSlots, fit_point_slots
from psa.inference.variational import FitOptions, fit_local_mixture
from psa.models.local_mixture import LocalMixturePrior, mixture_log_likelihood


def groups(num_images: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Points (M, 90, 2) of three far groups, and the groups' means (M, 3, 2)."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.rand(num_images, 1, generator=generator, dtype=torch.float64) + torch.arange(3) * 2.1
    loc = 8 * torch.stack([angle.cos(), angle.sin()], -1)
    noise = torch.randn(num_images, 3, 30, 2, generator=generator, dtype=torch.float64)
    return (loc[:, :, None] + noise).flatten(1, 2), loc


def likelihood(points: torch.Tensor, slots: PointSlots, seed: int = 0) -> torch.Tensor:
    found = fit_point_slots(points, slots, torch.Generator().manual_seed(seed))
    return mixture_log_likelihood(points, found.weights, found.loc, found.var)


def test_far_groups_are_the_slots():
    points, loc = groups(6)
    found = fit_point_slots(points, PointSlots(), torch.Generator().manual_seed(0))
    nearest = torch.cdist(loc, found.loc).min(2).values
    assert float(nearest.max()) < STANDARD_ERRORS / 30**0.5
    assert_close(found.weights.sum(1), torch.ones(6))
    assert_close(found.responsibilities.sum(1), torch.ones(6, 90))


def test_more_restarts_never_lower_the_likelihood_and_sometimes_raise_it():
    points = torch.randn(20, 40, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    one, five = (likelihood(points, PointSlots(num_slots=4, num_restarts=n)) for n in (1, 5))
    assert bool((five >= one - CONVERGED * one.abs()).all())
    assert bool((five > one + 0.1).any())


def test_no_restart_starts_with_an_empty_slot():
    """As fit_local_mixture's own restarts do, which is why they are not used: under maximum likelihood it stays so."""
    points, _ = groups(4)
    for seed in range(5):
        found = fit_point_slots(points, PointSlots(num_restarts=2), torch.Generator().manual_seed(seed))
        assert float(found.weights.min()) > 0.2


def test_a_standard_normal_start_is_em_from_normal_means_unit_variances_and_equal_weights():
    points, _ = groups(3)
    slots = PointSlots(start="standard-normal", num_restarts=1, num_iterations=3)
    found = fit_point_slots(points, slots, torch.Generator().manual_seed(5))
    loc = torch.randn(3, 3, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    start = MixtureState(loc, torch.ones_like(loc), torch.full((3, 3), -math.log(3), dtype=torch.float64))
    options = FitOptions(start=start, estimate="ml", variance_floor=1e-4)
    same = fit_local_mixture(points, LocalMixturePrior(), 3, num_iterations=3, tol=1e-4, options=options)
    assert_close(found.loc, same.slot_posterior().loc)
    assert_close(found.initial_loc, loc)


def test_one_normal_start_is_worse_than_five_far_ones():
    points, _ = groups(30)
    one = likelihood(points, PointSlots(start="standard-normal", num_restarts=1))
    assert float((likelihood(points, PointSlots()) - one).mean()) > 1.0


def test_no_gradient_flows_through_the_slots():
    points = groups(2)[0].requires_grad_()
    assert not fit_point_slots(points, PointSlots(), torch.Generator().manual_seed(0)).loc.requires_grad


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": "far"}, r"^start must be one of farthest, standard-normal, got 'far'$"),
        ({"num_restarts": 0}, r"^num_restarts must be at least 1, got 0$"),
    ],
)
def test_unknown_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PointSlots(**settings)
