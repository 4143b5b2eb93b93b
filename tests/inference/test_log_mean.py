"""The mean of ratios in log space, its standard error, and the weight of its tail."""

import math

import pytest
import torch
from contracts import draw
from hypothesis import given
from hypothesis import strategies as st
from tolerances import CONVERGED, STANDARD_ERRORS, assert_all_close, assert_close

from psa.inference.evidence import log_mean, tail_share


def test_log_mean_is_the_log_of_the_mean():
    terms = 3 * draw(4, 50, seed=9)
    estimate, error = log_mean(terms)
    assert_close(estimate, terms.exp().mean(-1).log())
    assert_close(error, terms.exp().std(-1) / terms.exp().mean(-1) / 50**0.5)
    far, same = log_mean(terms - 1e4)
    assert_close(far, estimate - 1e4)
    assert_close(same, error, CONVERGED)
    assert_all_close(log_mean(torch.full((1, 7), -3.0, dtype=torch.float64)), torch.tensor([[-3.0], [0.0]]))


@pytest.mark.parametrize("sigma", [0.2, 1.0])
def test_standard_error_is_the_spread_between_samples(sigma: float):
    num_sets, count = 4000, 2000
    estimate, error = log_mean(sigma * draw(num_sets, count, seed=10))
    spread = float(estimate.std())
    assert abs(spread - ((math.exp(sigma**2) - 1) / count) ** 0.5) < STANDARD_ERRORS * spread / (2 * num_sets) ** 0.5
    assert abs(float(error.square().mean()) ** 0.5 / spread - 1) < STANDARD_ERRORS / (2 * num_sets) ** 0.5
    assert abs(float(estimate.mean()) - 0.5 * sigma**2) < STANDARD_ERRORS * spread / num_sets**0.5 + spread**2


@given(count=st.integers(5, 400), scale=st.sampled_from([0.01, 1.0, 30.0]), seed=st.integers(0, 10_000))
def test_tail_share_is_what_the_largest_ratios_exceed_the_next_by(count: int, scale: float, seed: int):
    log_ratios = scale * draw(2, count, seed=seed)
    num_tail = math.ceil(min(0.2 * count, 3 * math.sqrt(count)))
    for found, shifted, row in zip(tail_share(log_ratios), tail_share(log_ratios + 900.0), log_ratios, strict=True):
        ratios = sorted((row - row.max()).exp().tolist(), reverse=True)
        tail = sum(ratio - ratios[num_tail] for ratio in ratios[:num_tail])
        assert_close(found, tail / sum(ratios))
        assert_close(shifted, found)


def test_tail_share_tells_one_large_ratio_from_a_plateau():
    plateau = torch.zeros(1, 200, dtype=torch.float64)
    assert_close(tail_share(plateau), torch.zeros(1))
    plateau[0, 7] = 50.0
    assert_close(tail_share(plateau), torch.ones(1))
