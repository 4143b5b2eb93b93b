import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psa.data import split_indices
from psa.errors import DataError


@settings(deadline=None)
@given(st.integers(3, 500))
def test_splits_are_disjoint_and_cover_and_hold_a_tenth_each(num_items):
    parts = {split: split_indices(num_items, split) for split in ("train", "val", "test")}
    assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(num_items))
    assert len(parts["val"]) == len(parts["test"]) == max(1, num_items // 10)
    assert np.array_equal(split_indices(num_items, "all"), np.arange(num_items))


@settings(deadline=None)
@given(st.integers(3, 500), st.sampled_from(["train", "val", "test"]))
def test_a_split_is_ascending_and_always_the_same(num_items, split):
    indices = split_indices(num_items, split)
    assert (np.diff(indices) > 0).all()
    assert np.array_equal(indices, split_indices(num_items, split))


def test_held_out_items_are_spread_over_the_order():
    assert np.ptp(split_indices(1000, "test")) > 500


@pytest.mark.parametrize("num_items", [1, 2])
def test_two_items_can_only_be_taken_whole(num_items):
    with pytest.raises(DataError, match=rf"^here: expected at least 3 images .*, got {num_items}; use split 'all'"):
        split_indices(num_items, "val", "here")
    assert len(split_indices(num_items, "all", "here")) == num_items
