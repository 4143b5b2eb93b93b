import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_all_close, assert_close

from psa.metrics.p_values import TAILS, randomised_p_value, smoothed_p_value


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("num_replicates", [1, 19])
@pytest.mark.parametrize("values", [1, 2, 1000000], ids=["all equal", "coin", "continuous"])
def test_p_is_uniform_where_data_and_replicates_are_exchangeable_discrete_or_not(tail, num_replicates, values):
    drawn = torch.randint(values, (num_replicates + 1, 40_000), generator=generator()).double()
    p_value = randomised_p_value(drawn[0], drawn[1:], tail, generator(1))
    # 18 tests, each of which would fall below 0.001 by chance at some seeds; a lack of uniformity is far below 1e-6
    assert scipy.stats.kstest(p_value.numpy(), "uniform").pvalue > 1e-6


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=20), st.integers(-3, 3))
def test_p_is_the_rank_with_ties_shared_out(reference, observed):
    """Brute force: p lies between the ranks of the observed value put above and below its equals."""
    given_, observed_ = torch.tensor(reference).double()[:, None], torch.tensor([float(observed)])
    upper = randomised_p_value(observed_, given_, "upper", generator())
    above = sum(value > observed for value in reference)
    at_least = sum(value >= observed for value in reference)
    assert above / (len(reference) + 1) <= float(upper) <= (at_least + 1) / (len(reference) + 1)
    lower = randomised_p_value(observed_, given_, "lower", generator())
    two_sided = randomised_p_value(observed_, given_, "two-sided", generator())
    assert_all_close([lower, two_sided], [1.0 - upper, 2.0 * torch.minimum(upper, 1.0 - upper)])


def test_tails_say_which_side_is_extreme():
    reference = torch.arange(999.0)[:, None]
    high, low = torch.tensor([2000.0]), torch.tensor([-2000.0])
    assert float(randomised_p_value(high, reference, "upper")) <= 0.001
    assert float(randomised_p_value(high, reference, "lower")) >= 0.999
    assert float(randomised_p_value(low, reference, "lower")) <= 0.001
    assert all(float(randomised_p_value(end, reference, "two-sided")) <= 0.002 for end in (high, low))
    assert float(randomised_p_value(torch.tensor([499.2]), reference, "two-sided")) > 0.99


def test_infinite_statistics_have_a_rank_and_nan_has_none():
    reference = torch.tensor([[-torch.inf], [0.0], [torch.inf]])
    assert float(randomised_p_value(torch.tensor([-torch.inf]), reference, "upper")) >= 0.5
    assert 0.0 <= float(smoothed_p_value(torch.tensor([-torch.inf]), reference)) <= 1.0
    for function in (randomised_p_value, smoothed_p_value):
        with pytest.raises(ValueError, match="must not be NaN"):
            function(torch.tensor([torch.nan]), reference)
        with pytest.raises(ValueError, match="at least one replicate, got none"):
            function(torch.zeros(1), torch.zeros(0, 1))
        with pytest.raises(ValueError, match="tail must be one of two-sided, upper, lower, got 'both'"):
            function(torch.zeros(1), torch.zeros(1, 1), "both")


@pytest.mark.parametrize("tail", TAILS)
def test_the_smoothed_p_value_is_the_rank_and_orders_what_lies_outside_all_replicates(tail):
    reference = torch.randn(99, 1, generator=generator(), dtype=torch.float64).expand(-1, 50)
    observed = torch.linspace(-9.0, 9.0, 50, dtype=torch.float64)
    smoothed = smoothed_p_value(observed, reference, tail)
    ranks = randomised_p_value(observed, reference, tail, generator(1))
    assert float((smoothed - ranks).abs().max()) <= 2.0 / 100
    extreme = {"upper": observed, "lower": -observed, "two-sided": observed.abs()}[tail]
    order = extreme.argsort()
    outside = order[extreme[order] > 3.5]
    assert len(outside) > 10
    if tail == "two-sided":  # the two sides have distances from a mean that is not 0
        outside = outside[observed[outside] > 0]
    assert bool((smoothed[outside].diff() < 0).all())


def test_replicates_that_are_all_equal_are_no_division_by_zero():
    reference = torch.full((9, 3), 2.0)
    smoothed = smoothed_p_value(torch.tensor([2.0, 3.0, -1.0]), reference)
    assert smoothed[0] > 0.9
    assert_close(smoothed[1:], torch.zeros(2))
