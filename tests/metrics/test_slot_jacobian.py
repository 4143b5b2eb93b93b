"""Ranks against numpy, contrast at random against all permutations, interactions by hand."""

import itertools

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerances import ALGEBRA, assert_close
from torch import Tensor

from psa.metrics.compositional_contrast import compositional_contrast
from psa.metrics.slot_jacobian import interaction, pushforward, shared_pixels, slot_ranks
from psa.models.decoders import PatchDecoder


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_jacobian_is_autograds():
    weight = draw(12, 20)

    def decode(slots: Tensor) -> Tensor:
        return torch.tanh(slots.flatten() @ weight).view(4, 5)

    slots = draw(3, 4, seed=1)
    value, found = pushforward(decode, slots)
    expected = torch.autograd.functional.jacobian(decode, slots)
    assert_close(value, decode(slots).flatten())
    assert_close(found, expected.flatten(0, 1))


def test_many_directions_are_cut_into_chunks_without_a_trace():
    weight = draw(5, 40, 3)
    _, found = pushforward(lambda slots: torch.einsum("nkd,kd->n", weight, slots), draw(40, 3))
    assert_close(found, weight)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 6), st.integers(0, 10**6))
def test_the_rank_is_numpys(pixels, features, inner, seed):
    jacobian = (draw(2, pixels, inner, seed=seed) @ draw(2, inner, features, seed=seed + 1)).movedim(0, 1)
    found = slot_ranks(jacobian)
    assert found.singular_values.shape == (2, features)
    for k in range(2):
        block = jacobian[:, k].numpy()
        assert int(found.rank[k]) == np.linalg.matrix_rank(block) == min(pixels, features, inner)
        if min(pixels, inner) >= features:
            np.testing.assert_allclose(float(found.condition[k]), np.linalg.cond(block), rtol=1e-6)
        else:
            assert float(found.condition[k]) == float("inf")


def test_a_slot_that_moves_nothing_has_rank_0():
    jacobian = draw(6, 2, 3)
    jacobian[:, 1] = 0.0
    assert slot_ranks(jacobian).rank.tolist() == [3, 0]


def test_the_contrast_at_random_is_the_mean_over_all_permutations():
    norms = draw(3, 4).abs()
    orders = list(itertools.permutations(range(4)))
    contrasts = []
    for one, other in itertools.product(orders, orders):  # the third slot may stay where it is
        laid = torch.stack([norms[0], norms[1, list(one)], norms[2, list(other)]])
        contrasts.append(float((laid[0] * laid[1] + laid[0] * laid[2] + laid[1] * laid[2]).sum()))
    assert_close(shared_pixels(norms, 1.0, 0.1).contrast_at_random, sum(contrasts) / len(contrasts))


def test_pixels_are_counted_by_the_slots_that_move_them():
    norms = torch.tensor([[0.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.5, 1.0], [0.1, 0.0, 0.5, 0.49]], dtype=torch.float64)
    found = shared_pixels(norms, 2.0, 0.5)
    assert found.counts.tolist() == [0.25, 0.25, 0.25, 0.25]
    assert found.contrast == 2.0


def test_slots_that_own_disjoint_pixels_share_none():
    weight = draw(3, 5, 2)

    def decode(slots: Tensor) -> Tensor:
        return torch.einsum("kpd,kd->kp", weight, slots).tanh()

    slots = draw(3, 2, seed=1)
    norms = pushforward(decode, slots)[1].norm(dim=2).T
    found = shared_pixels(norms, compositional_contrast(decode, slots[None]).contrast, 1e-9)
    assert found.counts.tolist() == [0.0, 1.0, 0.0, 0.0]
    assert found.contrast == 0.0 < found.contrast_at_random


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 10**6))
def test_a_sum_over_slots_has_no_interaction_however_curved(slots, features, seed):
    weight = draw(slots, features, 7, seed=seed)

    def decode(s: Tensor) -> Tensor:
        return torch.einsum("kd,kdn->kn", s, weight).exp().sum(0)

    scenes, others = draw(2, 3, slots, features, seed=seed + 1)
    assert interaction(decode, list(scenes), list(others)).share < ALGEBRA


def test_the_interaction_of_a_product_is_that_by_hand():
    """f = a b: D = (a' - a)(b' - b); the effects are (a' - a) b and a (b' - b)."""
    scenes, others = draw(2, 5, 2, 1)
    found = interaction(lambda s: s.prod(0), list(scenes), list(others))
    (a, b), (c, d) = scenes[..., 0].T, others[..., 0].T
    crossed = ((c - a) * (d - b)).square().sum()
    effects = ((c - a) * b).square().sum() + (a * (d - b)).square().sum()
    assert_close(found.share, (crossed / effects).sqrt())


def test_a_masked_decoder_interacts_and_its_order_says_nothing():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder = PatchDecoder(3, (8, 8), hidden_dim=8).double()

    def decode(slots: Tensor) -> Tensor:
        return decoder(slots[None]).mean.detach()

    scenes, others = 3 * draw(2, 4, 3, 3)
    found = interaction(decode, list(scenes), list(others))
    assert found.share > 0.01
    assert found.order < ALGEBRA


def test_a_decoder_that_knows_its_slots_places_shows_it():
    weight = draw(3, 2, 5)
    found = interaction(lambda s: torch.einsum("kd,kdn->n", s, weight), list(draw(2, 3, 2)), list(draw(2, 3, 2)))
    assert found.order > 0.1


def test_nothing_moves_under_a_constant_decoder():
    found = interaction(lambda s: torch.ones(4), list(draw(2, 3, 2)), list(draw(2, 3, 2, seed=1)))
    assert (found.share, found.order) == (0.0, 0.0)
