"""Theorem 1: the density of slots in a random order, against the mixture of M K! block-diagonal Gaussians."""

import itertools
import math

import pyro
import pytest
import scipy.special
import scipy.stats
import torch
from contracts import draw
from hypothesis import given
from hypothesis import strategies as st
from tolerances import STANDARD_ERRORS, assert_close
from torch import Tensor

from psa.models import concatenated
from psa.models.concatenated import ConcatenatedSlots

seeds = st.integers(0, 10_000)


def some_slots(num_images: int, num_slots: int, dim: int, seed: int = 0) -> ConcatenatedSlots:
    loc = 2.0 * draw(num_images, num_slots, dim, seed=seed)
    return ConcatenatedSlots(loc, draw(num_images, num_slots, dim, seed=seed + 1).exp())


def components(slots: ConcatenatedSlots) -> list[tuple[Tensor, Tensor]]:
    """Means (K D,) and block-diagonal covariances (K D, K D) of all M K! orders."""
    return [
        (loc[list(order)].flatten(), torch.block_diag(*var[list(order)].diag_embed()))
        for loc, var in zip(slots.loc, slots.var, strict=True)
        for order in itertools.permutations(range(slots.loc.shape[1]))
    ]


def by_scipy(slots: ConcatenatedSlots, value: Tensor) -> Tensor:
    rows = value.reshape(-1, math.prod(slots.event_shape)).numpy()
    terms = [
        scipy.stats.multivariate_normal(loc.numpy(), covariance.numpy()).logpdf(rows)
        for loc, covariance in components(slots)
    ]
    total = torch.as_tensor(scipy.special.logsumexp(terms, axis=0)) - math.log(len(terms))
    return total.reshape(value.shape[:-2])


@given(
    num_images=st.integers(1, 3), num_slots=st.integers(1, 4), dim=st.integers(1, 3), seed=seeds,
    batch=st.sampled_from([(), (5,), (2, 3)]),
)  # fmt: skip
def test_density_is_that_of_the_mixture_over_all_orders(
    num_images: int, num_slots: int, dim: int, seed: int, batch: tuple[int, ...]
):
    slots = some_slots(num_images, num_slots, dim, seed)
    value = 2.0 * draw(*batch, num_slots, dim, seed=seed + 2)
    assert_close(slots.log_prob(value), by_scipy(slots, value))


def test_density_of_six_slots_is_that_of_720_gaussians():
    slots, value = some_slots(1, 6, 2), 2.0 * draw(3, 6, 2, seed=9)
    assert len(components(slots)) == 720
    assert_close(slots.log_prob(value), by_scipy(slots, value))


def test_density_in_pieces_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch):
    slots, value = some_slots(2, 3, 2), draw(7, 3, 2, seed=9)
    monkeypatch.setattr(concatenated, "ENTRIES", 40)
    assert_close(slots.log_prob(value), by_scipy(slots, value))


@given(num_slots=st.integers(2, 7), seed=seeds)
def test_density_does_not_depend_on_the_order_of_the_slots(num_slots: int, seed: int):
    slots, value = some_slots(2, num_slots, 2, seed), draw(num_slots, 2, seed=seed + 2)
    order = torch.randperm(num_slots, generator=torch.Generator().manual_seed(seed))
    assert_close(slots.log_prob(value[order]), slots.log_prob(value))


def test_one_image_may_come_without_its_axis():
    slots, value = some_slots(1, 3, 2), draw(5, 3, 2, seed=9)
    assert_close(ConcatenatedSlots(slots.loc[0], slots.var[0]).log_prob(value), slots.log_prob(value))


def test_three_slots_on_a_line_have_six_modes():
    """PSA figures 6 and 7: the six orders of the means are equally dense, and each is a maximum."""
    loc = torch.tensor([[-4.0], [0.0], [4.0]], dtype=torch.float64)
    slots = ConcatenatedSlots(loc, torch.full_like(loc, 0.25))
    modes = torch.stack([loc[list(order)] for order in itertools.permutations(range(3))])
    heights = slots.log_prob(modes)
    assert_close(heights, heights[0].expand(6))
    around = modes[:, None] + 0.2 * draw(1, 50, 3, 1, seed=0)
    assert bool((slots.log_prob(around) < heights[:, None]).all())


def test_draws_have_the_moments_of_the_mixture():
    slots = some_slots(2, 3, 1)
    torch.manual_seed(0)
    draws = slots.sample((200_000,)).flatten(1)
    parts = components(slots)
    mean = sum(loc for loc, _ in parts) / len(parts)
    second = sum(covariance + torch.outer(loc, loc) for loc, covariance in parts) / len(parts)
    for found, expected in ((draws, mean), (draws[:, :, None] * draws[:, None], second)):
        error = found.std(0) / len(found) ** 0.5
        assert bool(((found.mean(0) - expected).abs() <= STANDARD_ERRORS * error).all())


def test_draws_take_a_whole_image_and_each_of_its_slots_once():
    loc = torch.arange(6, dtype=torch.float64).reshape(2, 3, 1)
    torch.manual_seed(0)
    draws = ConcatenatedSlots(loc, torch.full_like(loc, 1e-12)).sample((4000,)).round()[..., 0]
    found = {tuple(row) for row in draws.tolist()}
    assert found == {order for image in ((0, 1, 2), (3, 4, 5)) for order in itertools.permutations(image)}


def test_it_is_a_distribution_of_pyro_over_the_slots_of_an_image():
    slots = some_slots(2, 3, 2)
    assert (slots.event_dim, slots.has_rsample, slots.sample().shape) == (2, False, (3, 2))
    with pyro.poutine.trace() as record, pyro.plate("images", 4):
        value = pyro.sample("slots", slots)
    assert value.shape == (4, 3, 2)
    assert_close(record.trace.log_prob_sum(), by_scipy(slots, value).sum())


def test_it_runs_on_every_device(device: torch.device):
    slots, value = some_slots(2, 3, 2), draw(4, 3, 2, seed=9)
    there = ConcatenatedSlots(slots.loc.to(device), slots.var.to(device))
    assert_close(there.log_prob(value.to(device)), slots.log_prob(value))
    assert there.sample().device.type == device.type


@pytest.mark.parametrize(
    ("loc", "var", "message"),
    [
        ((2, 3), (3, 2), r"must both have shape .*, got \(2, 3\) and \(3, 2\)"),
        ((2,), (2,), r"must both have shape"),
        ((0, 3, 2), (0, 3, 2), r"must both have shape"),
        ((15, 1), (15, 1), "loc must have at most 14 slots, got 15"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_other_shapes_are_refused(loc: tuple[int, ...], var: tuple[int, ...], message: str):
    with pytest.raises(ValueError, match=message):
        ConcatenatedSlots(torch.zeros(loc), torch.ones(var))


def test_variances_that_are_not_positive_are_refused():
    with pytest.raises(ValueError, match="var must be positive, got a least entry of 0"):
        ConcatenatedSlots(torch.zeros(2, 1), torch.zeros(2, 1))
