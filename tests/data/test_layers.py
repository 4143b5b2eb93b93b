import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psa.data.layers import Bounds, Stamps, arrange, stack
from psa.errors import ConfigError


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 4))
def test_the_last_object_owns_a_pixel_and_shares_count_what_is_left(seed, num_objects, scenes):
    rng = np.random.default_rng(seed)
    cover = rng.integers(0, 2, (scenes, num_objects, 4, 3)).astype(np.uint8)
    present = rng.random((scenes, num_objects)) < 0.7
    labels, shown = stack(cover, present)
    for scene in range(scenes):
        expected = np.zeros((4, 3), int)
        for e in range(num_objects):
            for row, column in np.ndindex(4, 3):
                if present[scene, e] and cover[scene, e, row, column]:
                    expected[row, column] = e + 1
        assert np.array_equal(labels[scene], expected)
        for e in range(num_objects):
            own = cover[scene, e].sum()
            share = (expected == e + 1).sum() / own if own else 0.0
            assert shown[scene, e] == (share if present[scene, e] else 1.0)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 4), st.integers(0, 4))
def test_a_stamp_lies_where_it_is_put_and_is_cut_off_at_the_frame(rows, columns, top, left):
    stamps = np.arange(1, 2 * rows * columns + 1).reshape(2, rows, columns).astype(np.uint8)
    frames = Stamps(stamps, 5).place(np.array([0, 1]), np.array([top, 0]), np.array([left, 0]))
    for frame, stamp, y, x in zip(frames, stamps, (top, 0), (left, 0), strict=True):
        expected = np.zeros((10, 10), np.uint8)
        expected[y : y + rows, x : x + columns] = stamp
        assert np.array_equal(frame, expected[:5, :5])


def test_what_cannot_be_reached_is_an_error_and_not_a_loop_without_end():
    """Two objects that are always at one place: the first can never be seen."""
    present = np.ones((3, 2), bool)
    with pytest.raises(ConfigError, match=r"^data\.max_objects: expected scenes whose objects show at least 0\.5 .*"):
        arrange(
            np.random.default_rng(0),
            np.zeros((3, 2, 1), np.int64),
            present,
            lambda rng, old: old,
            lambda drawn: np.ones((*drawn.shape[:2], 2, 2), np.uint8),
            Bounds(0.5, 1.0),
        )
