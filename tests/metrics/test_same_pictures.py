"""Other slots of the same picture are found where there are some, and not where there are none."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerances import CONVERGED, assert_close
from torch import Tensor

from psa.metrics.same_pictures import AWAY, SamePictures, same_pictures

ERROR, ENOUGH = 1 / 510, 1.0
ONE = torch.tensor([0])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def search(decode, slots: Tensor, free: Tensor = ONE, enough: float = ENOUGH, seed: int = 9) -> SamePictures:
    return same_pictures(decode, slots, free, draw(3, len(free), slots.shape[1], seed=seed), ERROR, enough)


def linear(features: int, pixels: int, rank: int, seed: int = 0):
    weight = draw(features, rank, seed=seed) @ draw(rank, pixels, seed=seed + 1)
    return lambda slots: slots @ weight


@given(st.integers(1, 5), st.integers(0, 10**6))
def test_an_injective_affine_decoder_has_no_other_slot(features, seed):
    """The map keeps all distances, so a slot one deviation away is one pixel unit away."""
    weight = torch.linalg.qr(draw(8, features, seed=seed))[0].T
    found = search(lambda s: s @ weight, draw(2, features, seed=seed + 1))
    assert bool(found.same.all())
    assert found.farthest() < 1e-2


@given(st.integers(2, 5), st.integers(0, 10**6))
def test_a_direction_that_is_lost_leads_away(features, seed):
    found = search(linear(features, 8, features - 1, seed), draw(2, features, seed=seed + 2))
    assert found.farthest() >= ENOUGH
    # where there are fewer pixels than features too
    assert search(linear(features, 1, 1, seed), draw(2, features, seed=seed + 2)).farthest() >= ENOUGH


def test_the_mirror_image_under_an_absolute_value_is_found():
    slots = torch.tensor([[1.0, -2.0, 0.7]], dtype=torch.float64)
    found = search(torch.abs, slots, enough=100.0)
    flipped = itertools.product((0.0, 1.0), repeat=3)
    distances = [(2 * slots[0] * torch.tensor(signs, dtype=torch.float64)).norm().item() for signs in flipped]
    for distance, same in zip(found.distance.tolist(), found.same.tolist(), strict=True):
        assert not same or min(abs(distance - one) for one in distances) < 0.05
    assert found.farthest() >= ENOUGH


def test_a_point_found_does_show_the_same_picture():
    found = search(linear(4, 6, 3), draw(2, 4))
    assert bool((found.error[found.same] <= ERROR).all())
    assert bool((found.error[~found.same] > ERROR).all())


def test_only_the_free_slot_moves():
    """f = s_1 + s_2 is one-to-one in either slot alone, and not in both."""

    def together(slots: Tensor) -> Tensor:
        return slots.sum(0)

    slots = draw(2, 3)
    assert search(together, slots).farthest() < ENOUGH
    assert search(together, slots, torch.tensor([1])).farthest() < ENOUGH
    assert search(together, slots, torch.tensor([0, 1])).farthest() >= ENOUGH


def test_another_order_of_the_slots_is_no_other_scene():
    """Power sums tell two numbers up to their order."""

    def decode(slots: Tensor) -> Tensor:
        return torch.stack([slots.sum(), slots.square().sum()])

    slots = torch.tensor([[-2.0], [1.5]], dtype=torch.float64)
    swapped = slots.flip(0)[None]
    found = same_pictures(decode, slots, torch.tensor([0, 1]), swapped, ERROR, ENOUGH)
    assert bool(found.same[2])
    assert_close(found.distance[2], 0.0)
    assert found.farthest() < 0.1


def test_a_flat_decoder_is_left_where_the_search_starts():
    found = search(lambda slots: torch.ones(5, dtype=torch.float64) + 0.0 * slots.sum(), draw(1, 3), enough=1e9)
    assert bool(found.same.all())
    assert_close(found.distance[:2], torch.full((2,), AWAY, dtype=torch.float64))


def test_the_search_ends_when_enough_was_found():
    calls, lost = [], linear(3, 8, 2)

    def decode(slots: Tensor) -> Tensor:
        calls.append(1)
        return lost(slots)

    assert search(decode, draw(1, 3)).farthest() >= ENOUGH
    few = len(calls)
    search(decode, draw(1, 3), enough=1e9)
    assert len(calls) > 3 * few


def test_no_start_that_shows_the_picture_gives_0():
    none = torch.tensor([False, False])
    found = SamePictures(torch.tensor([5.0, 7.0]).double(), torch.ones(2).double(), none)
    assert found.farthest() == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_steps_reach_the_slots_from_far_away_where_the_decoder_is_curved(seed):
    weight = draw(3, 30, seed=seed)

    def decode(slots: Tensor) -> Tensor:
        return torch.nn.functional.leaky_relu(slots @ weight, 0.3)

    slots = draw(1, 3, seed=seed + 10)
    found = same_pictures(decode, slots, ONE, draw(3, 1, 3, seed=seed + 20), 1e-8, ENOUGH)
    assert bool(found.same.all())
    assert_close(found.distance, torch.zeros(5, dtype=torch.float64), CONVERGED)
