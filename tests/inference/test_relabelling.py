"""Relabelling: known permutations undone, every draw's order the best of all, by brute force."""

import itertools

import pytest
import scipy.special
import torch
from contracts import draw
from tolerances import ALGEBRA, assert_close
from torch import Tensor

from psa.arviz import rhat
from psa.inference.draws import MixtureDraws
from psa.inference.relabelling import relabel

B, C, S, K, N, D = 2, 2, 200, 3, 12, 2


def separated() -> tuple[MixtureDraws, Tensor]:
    """Draws about three far clusters, slot k about cluster k, and the clusters' tokens."""
    centres = torch.tensor([[0.0, 0.0], [8.0, 0.0], [0.0, 8.0]], dtype=torch.float64)
    tokens = centres[torch.arange(N) % K] + draw(B, N, D, seed=0)
    loc = centres + 0.3 * draw(B, C, S, K, D, seed=1)
    log_weights = (0.2 * draw(B, C, S, K, seed=2)).log_softmax(-1)
    return MixtureDraws(log_weights, loc, (0.2 * draw(B, C, S, K, D, seed=3)).exp()), tokens


def overlapping(num_slots: int, num_draws: int = 6) -> tuple[MixtureDraws, Tensor]:
    shape = (1, 1, num_draws, num_slots)
    loc, precision = draw(*shape, D, seed=5), draw(*shape, D, seed=6).exp()
    return MixtureDraws(draw(*shape, seed=4).log_softmax(-1), loc, precision), draw(1, 7, D, seed=7)


def shuffles(seed: int = 9) -> Tensor:
    return draw(B, C, S, K, seed=seed).argsort(-1)


def divergence(p: Tensor, q: Tensor) -> float:
    """sum_kn p_kn log(p_kn / q_kn)."""
    return float(scipy.special.rel_entr(p.numpy(), q.numpy()).sum())


def total_divergence(draws: MixtureDraws, tokens: Tensor) -> float:
    """Of all draws of one image from their mean."""
    p = draws.responsibilities(tokens)[0, 0]
    return sum(divergence(one, p.mean(0)) for one in p)


def test_a_known_permutation_of_separated_clusters_is_undone_exactly():
    draws, tokens = separated()
    shuffle = shuffles()
    reference = draws.responsibilities(tokens).mean((1, 2))
    found, order = relabel(draws.permuted(shuffle), tokens, reference)
    assert torch.equal(shuffle.gather(-1, order), torch.arange(K).expand_as(order))
    assert torch.equal(found.loc, draws.loc)
    assert torch.equal(found.log_weights, draws.log_weights)
    assert torch.equal(found.precision, draws.precision)


def test_without_a_reference_it_is_undone_up_to_one_order_of_each_image():
    draws, tokens = separated()
    shuffle = shuffles()
    _, order = relabel(draws.permuted(shuffle), tokens)
    undone = shuffle.gather(-1, order)
    assert torch.equal(undone, undone[:, :1, :1].expand_as(undone))


def test_the_order_of_the_reference_is_kept():
    draws, tokens = separated()
    wanted = torch.tensor([2, 0, 1])
    reference = draws.responsibilities(tokens).mean((1, 2))[:, wanted]
    _, order = relabel(draws, tokens, reference)
    assert torch.equal(order, wanted.expand_as(order))


@pytest.mark.parametrize("num_slots", [1, 2, 4])
def test_the_order_of_a_draw_is_the_best_of_all_permutations(num_slots):
    draws, tokens = overlapping(num_slots)
    reference = draw(1, num_slots, 7, seed=8).softmax(1)
    p = draws.responsibilities(tokens)[0, 0]
    _, order = relabel(draws, tokens, reference, max_sweeps=1)
    for one, found in zip(p, order[0, 0], strict=True):
        costs = {way: divergence(one[list(way)], reference[0]) for way in itertools.permutations(range(num_slots))}
        assert tuple(found.tolist()) == min(costs, key=costs.__getitem__)


def test_masked_tokens_have_no_say_and_may_hold_anything():
    draws, tokens = overlapping(4, 30)
    reference = draw(1, 4, 7, seed=8).softmax(1)
    mask = torch.tensor([[True, False, False, True, False, False, True]])
    orders = [
        relabel(draws, *arguments, max_sweeps=1)[1]
        for arguments in (
            (tokens.masked_fill(~mask[..., None], torch.nan), reference, mask),
            (tokens[:, mask[0]], reference[..., mask[0]]),
            (tokens, reference),
        )
    ]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


def test_a_sweep_never_raises_the_divergence_from_the_mean():
    draws, tokens = overlapping(4, 30)
    totals = [total_divergence(relabel(draws, tokens, max_sweeps=sweeps)[0], tokens) for sweeps in range(1, 8)]
    assert all(after <= before + ALGEBRA for before, after in itertools.pairwise(totals))
    assert totals[-1] < totals[0]


def test_where_it_ends_nothing_changes_any_more():
    draws, tokens = overlapping(4, 30)
    found, _ = relabel(draws, tokens)
    mean = found.responsibilities(tokens).mean((1, 2))
    _, order = relabel(found, tokens, mean)
    assert torch.equal(order, torch.arange(4).expand_as(order))


def test_certain_assignments_are_told_apart():
    """Responsibilities of 0 and 1, under which log q is infinite."""
    loc = torch.tensor([[0.0], [1e3]], dtype=torch.float64).expand(1, 1, 4, 2, 1)
    draws = MixtureDraws(torch.full((1, 1, 4, 2), 0.5).double().log(), loc, torch.ones(1, 1, 4, 2, 1).double())
    shuffle = torch.tensor([[0, 1], [1, 0], [1, 0], [0, 1]])[None, None]
    tokens = torch.tensor([[[0.0], [1e3]]], dtype=torch.float64)
    found, _ = relabel(draws.permuted(shuffle), tokens)
    assert bool((found.loc == found.loc[:, :, :1]).all())


def test_images_do_not_meet():
    draws, tokens = separated()
    shuffled = draws.permuted(shuffles())
    both, _ = relabel(shuffled, tokens)
    for b in range(B):
        alone = MixtureDraws(shuffled.log_weights[b : b + 1], shuffled.loc[b : b + 1], shuffled.precision[b : b + 1])
        assert_close(relabel(alone, tokens[b : b + 1])[0].loc[0], both.loc[b])


def test_chains_of_switched_labels_agree_after_relabelling():
    """Chain 1 has slots 0 and 1 the other way round; R-hat of the means, before and after."""
    draws, tokens = separated()
    switch = torch.arange(K).repeat(B, C, S, 1)
    switch[:, 1] = torch.tensor([1, 0, 2])
    switched = draws.permuted(switch)
    found, _ = relabel(switched, tokens)

    def worst(some: MixtureDraws) -> float:
        return max(rhat(some.loc[b, :, :, k, d].numpy()) for b in range(B) for k in range(K) for d in range(D))

    assert worst(switched) > 1.5
    assert worst(found) < 1.05


def test_no_sweep_is_refused():
    draws, tokens = separated()
    with pytest.raises(ValueError, match="max_sweeps must be an integer of at least 1, got 0"):
        relabel(draws, tokens, max_sweeps=0)
