"""Gains between rows of seeds against scipy, and the verdict that they give."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_close
from torch import tensor

from psa.experiments.over_seeds import best_of_all, gain, spread

scores = st.lists(st.floats(0, 1), min_size=2, max_size=6, unique=True)


@given(ours=scores, theirs=scores)
def test_a_gain_is_welchs_test(ours: list[float], theirs: list[float]):
    if max(np.std(ours), np.std(theirs)) < 1e-6:
        return
    found = gain(ours, theirs)
    above = scipy.stats.ttest_ind(ours, theirs, equal_var=False, alternative="greater")
    assert_close(tensor(found.p_above), tensor(above.pvalue), 1e-6)
    assert_close(tensor(found.p_above + found.p_below), tensor(1.0), 1e-6)
    assert_close(tensor(found.mean / found.error), tensor(above.statistic), 1e-6)


def test_one_seed_or_none_that_varies_has_no_p_value():
    assert math.isnan(gain([0.9], [0.1, 0.2]).p_above)
    assert math.isnan(gain([0.9, 0.9], [0.1, 0.1]).p_above)
    assert str(gain([0.9], [0.1])) == "+0.800"


HIGH, MIDDLE, LOW = [0.90, 0.91, 0.92], [0.50, 0.92, 0.70], [0.10, 0.11, 0.12]


@pytest.mark.parametrize(
    ("claimed", "others", "verdict"),
    [
        (HIGH, {"a": LOW, "b": [0.2, 0.3, 0.1]}, "holds"),
        (HIGH, {"a": LOW, "b": MIDDLE}, "not decided at this scale"),
        (LOW, {"a": HIGH, "b": MIDDLE}, "fails"),
        ([0.9], {"a": [0.1]}, "not decided at this scale"),
    ],
)
def test_the_claimed_row_must_be_above_every_other(claimed: list[float], others: dict[str, list[float]], verdict: str):
    assert best_of_all(claimed, others) == verdict


def test_a_row_that_is_better_by_chance_does_not_fail_a_claim():
    ours, theirs = [0.5, 0.6, 0.7], [0.6, 0.72, 0.79]  # one-sided p of 0.10
    assert best_of_all(ours, {"a": theirs}) == "not decided at this scale"


def test_spread_is_the_standard_deviation_of_the_seeds():
    assert spread([0.1, 0.3]) == {"mean ± sd": "0.200 ± 0.141", "each seed": "0.100, 0.300"}
    assert spread([0.1]) == {"mean ± sd": "0.100", "each seed": "0.100"}
