"""Matchings, against every permutation, and the affine fit, against numpy and scikit-learn."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import jaccard_score, r2_score
from tolerances import CONVERGED, assert_close
from torch import Tensor

from psa.metrics.affine_fit import canonical_maps, fit_affine, pearson, r_squared, whiten
from psa.metrics.held_out import correlation_interval, cycle, training_share
from psa.metrics.slot_matching import mask_overlap, match, match_alternating, match_by_overlap, pairs

EPS = torch.finfo(torch.float64).eps


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(1, 5), st.integers(0, 10**6))
def test_the_matching_has_most_active_pairs_and_of_those_the_least_cost(num_slots, seed):
    cost = draw(6, num_slots, num_slots, seed=seed)
    active = draw(2, 6, num_slots, seed=seed + 1) > -0.3
    found = match(cost, active[0], active[1])
    assert torch.equal(found.sort(1).values, torch.arange(num_slots).expand(6, -1))
    for image in range(6):

        def judged(order: tuple[int, ...], image: int = image) -> tuple[int, float]:
            both = [(k, j) for k, j in enumerate(order) if active[0, image, k] and active[1, image, j]]
            return -len(both), sum(float(cost[image, k, j]) for k, j in both)

        best = min(judged(order) for order in itertools.permutations(range(num_slots)))
        number, total = judged(tuple(found[image].tolist()))
        assert number == best[0]
        assert_close(total, best[1])


def test_what_an_inactive_slot_costs_is_never_read():
    cost, active = draw(20, 4, 4), draw(2, 20, 4, seed=1) > 0
    both = active[0][:, :, None] & active[1][:, None]
    junk = torch.where(both, cost, math.nan)
    assert torch.equal(match(junk, active[0], active[1]), match(cost, active[0], active[1]))


def test_the_overlap_of_hard_masks_is_the_jaccard_index():
    labels = [torch.randint(4, (3, 50), generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    a, b = (torch.nn.functional.one_hot(side, 5).mT.bool() for side in labels)  # the fifth slot owns nothing
    found = mask_overlap(a, b)
    for image, k, j in itertools.product(range(3), range(5), range(5)):
        expected = jaccard_score(a[image, k], b[image, j], zero_division=0.0)
        assert_close(found[image, k, j], float(expected))


def test_the_overlap_of_soft_masks_is_one_for_equal_ones_only():
    masks = draw(4, 3, 20).softmax(1)
    found = mask_overlap(masks, masks)
    assert_close(found.diagonal(dim1=1, dim2=2), torch.ones(4, 3))
    assert float(mask_overlap(masks, 0.5 * masks).max()) < 0.9


def test_matching_by_overlap_does_not_depend_on_how_many_images_at_once(monkeypatch):
    a, b = draw(23, 4, 9).softmax(1), draw(23, 4, 9, seed=1).softmax(1)
    active, order = torch.ones(23, 4, dtype=torch.bool), cycle(23)
    found = match_by_overlap(a, b, active, active, order)
    assert torch.equal(found, match(-mask_overlap(a, b[order]), active, active))
    monkeypatch.setattr("psa.metrics.slot_matching.MASK_NUMBERS", 4 * 9 * 5)
    assert torch.equal(match_by_overlap(a, b, active, active, order), found)


@given(st.integers(0, 10**6))
def test_turns_of_map_and_matching_find_a_planted_order_under_noise(seed):
    a = draw(300, 4, 3, seed=seed)
    b = a @ torch.linalg.qr(draw(3, 3, seed=seed + 1))[0] + 0.02 * draw(300, 4, 3, seed=seed + 2)
    order = torch.rand(300, 4, generator=torch.Generator().manual_seed(seed)).argsort(1)
    active, train = torch.ones(300, 4, dtype=torch.bool), torch.arange(300) < 150
    found = match_alternating((a, b.take_along_dim(order[..., None], 1)), (active, active), train, EPS)
    assert float((found == order.argsort(1)).double().mean()) > 0.97


def test_turns_lower_what_the_best_map_leaves_of_the_matching_by_means():
    """Noise that all slots of an image share drowns the means that the turns start from, and less so the slots."""
    active, train = torch.ones(200, 5, dtype=torch.bool), torch.arange(200) < 15
    better = 0
    for seed in range(10):
        a = draw(200, 5, 2, seed=seed)
        b = a.roll(2, 1) + draw(200, 1, 2, seed=seed + 100)
        scale = b[train].flatten(0, 1).std(0, correction=0)
        start = fit_affine(whiten(a[train].mean(1), EPS), b[train].mean(1))
        first = match(torch.cdist(start(a) / scale, b / scale).square(), active, active)
        last = match_alternating((a, b), (active, active), train, EPS)
        left = []
        for found in (first, last):
            x, y = pairs(a[train], b[train], found[train], active[train], active[train])
            left.append(float((1 - r_squared(fit_affine(whiten(x, EPS), y)(x), y)).sum()))
        assert left[1] <= left[0] + 1e-10
        better += left[1] < 0.9 * left[0]
    assert better >= 2


# Affine fit


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 10**6))
def test_the_fit_is_numpys_least_squares(features, mapped, seed):
    x = draw(30, features, seed=seed) * torch.logspace(-6, 6, features, dtype=torch.float64) + 3
    y = draw(30, mapped, seed=seed + 1)
    fitted = whiten(x, EPS)
    assert fitted.basis.shape == (30, features)
    assert_close(fitted.basis.mT @ fitted.basis, torch.eye(features))
    assert_close((x - fitted.mean) @ fitted.to_basis, fitted.basis)
    scale = x.std(0)
    design = np.column_stack([((x - x.mean(0)) / scale).numpy(), np.ones(30)])
    expected = design @ np.linalg.lstsq(design, y.numpy(), rcond=None)[0]
    assert_close(fit_affine(fitted, y)(x), torch.tensor(expected), CONVERGED)


def test_rows_of_lesser_rank_are_fitted_on_what_they_span():
    x = draw(40, 2) @ draw(2, 5, seed=1)
    fitted = whiten(x, EPS)
    assert fitted.basis.shape[1] == 2
    y = x @ draw(5, 3, seed=2) + 1
    assert_close(fit_affine(fitted, y)(x), y)
    # a copy that was rounded at 10,000 is no direction of its own, in the rounding that it had
    copied = torch.cat([x[:, :2], (x[:, :1] * 2 + 1e4).float().double()], dim=1)
    assert whiten(copied, torch.finfo(torch.float32).eps).basis.shape[1] == 2
    assert whiten(copied, EPS).basis.shape[1] == 3
    assert whiten(torch.full((7, 2), 0.1, dtype=torch.float64), EPS).basis.shape[1] == 0


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 10**6))
def test_canonical_correlations_are_the_roots_of_the_eigenvalue_problem(features, mapped, seed):
    x = draw(50, features, seed=seed)
    y = x @ draw(features, mapped, seed=seed + 1) + draw(50, mapped, seed=seed + 2)
    left, right = canonical_maps(whiten(x, EPS), whiten(y, EPS))
    found = pearson(x @ left, y @ right)
    joint = np.cov(np.column_stack([x, y]), rowvar=False)
    xx, xy, yy = joint[:features, :features], joint[:features, features:], joint[features:, features:]
    roots = np.linalg.eigvals(np.linalg.solve(xx, xy) @ np.linalg.solve(yy, xy.T)).real
    expected = np.sqrt(np.sort(roots.clip(0))[::-1][: min(features, mapped)])
    assert_close(found, torch.tensor(expected.copy()), CONVERGED)


def test_correlation_and_r_squared_are_numpys_and_scikit_learns():
    x, y = draw(30, 4), draw(30, 4, seed=1) + 2
    assert_close(pearson(x, y), torch.tensor([np.corrcoef(x[:, d], y[:, d])[0, 1] for d in range(4)]))
    assert_close(r_squared(x, y), torch.tensor(r2_score(y.numpy(), x.numpy(), multioutput="raw_values")))
    assert_close(pearson(x, torch.ones_like(x)), torch.zeros(4))


# What is held out


@given(st.integers(2, 40), st.floats(0.01, 0.99), st.integers(0, 10**6))
def test_a_share_is_fitted_on_and_some_are_always_held_out(count, share, seed):
    train = training_share(count, share, "images", torch.Generator().manual_seed(seed))
    assert int(train.sum()) == min(max(round(share * count), 1), count - 1)


@given(st.integers(2, 40), st.integers(0, 10**6))
def test_a_cycle_is_a_permutation_that_leaves_nothing_in_its_place(length, seed):
    order = cycle(length, torch.Generator().manual_seed(seed))
    assert torch.equal(order.sort().values, torch.arange(length))
    assert not bool((order == torch.arange(length)).any())
    visited, place = set(), 0
    for _ in range(length):
        visited.add(place)
        place = int(order[place])
    assert len(visited) == length


def test_the_interval_is_the_percentiles_of_resampled_images():
    """Against numpy, the rows of the drawn images put together one resample after the other."""
    rows = torch.tensor([2, 0, 3, 1, 4, 2, 5, 3])
    x, y = draw(20, 2), draw(20, 2) + 0.7 * draw(20, 2, seed=1)
    found = correlation_interval(x + 100, y, rows, 60, torch.Generator().manual_seed(4))
    drawn = torch.randint(8, (60, 8), generator=torch.Generator().manual_seed(4))
    parts = torch.arange(20).split(rows.tolist())
    means = []
    for resample in drawn:
        index = torch.cat([parts[image] for image in resample])
        means.append(np.mean([np.corrcoef(x[index, d], y[index, d])[0, 1] for d in range(2)]))
    assert_close(torch.tensor(found, dtype=torch.float64), torch.tensor(np.quantile(means, [0.025, 0.975])))


@pytest.mark.parametrize("resamples", [1, 50])
def test_the_interval_of_an_exact_pair_is_one(resamples):
    x = draw(20, 2)
    assert_close(correlation_interval(x, 2 * x + 1, torch.full((10,), 2), resamples)[0], 1.0)
