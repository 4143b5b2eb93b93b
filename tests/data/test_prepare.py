import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psa.data import Preparation
from psa.errors import ConfigError

sides = st.integers(1, 24)


@settings(deadline=None)
@given(sides, sides, st.none() | sides | st.tuples(sides, sides), st.sampled_from(["none", "center"]))
def test_image_and_mask_end_with_the_size_foretold(height, width, size, crop):
    preparation = Preparation.from_options(size, crop)
    kept = (height, width) if crop == "none" else (min(height, width),) * 2
    expected = kept if size is None else (size, size) if isinstance(size, int) else size
    assert preparation.result_size(height, width) == expected
    assert preparation.image(np.zeros((height, width, 3), np.uint8)).shape == (*expected, 3)
    assert preparation.mask(np.zeros((height, width), np.int64)).shape == expected


@settings(deadline=None)
@given(sides, sides, sides, sides, st.integers(0, 99))
def test_resizing_makes_no_new_label(height, width, rows, columns, seed):
    mask = np.random.default_rng(seed).integers(-3, 2**40, (height, width))
    assert set(Preparation((rows, columns)).mask(mask).flat) <= set(mask.flat)


@settings(deadline=None)
@given(sides, sides, st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
def test_enlarging_a_mask_by_whole_factors_repeats_its_pixels(height, width, down, right, seed):
    mask = np.random.default_rng(seed).integers(0, 9, (height, width))
    enlarged = Preparation((height * down, width * right)).mask(mask)
    assert np.array_equal(enlarged, mask.repeat(down, axis=0).repeat(right, axis=1))


@settings(deadline=None)
@given(sides, sides, st.sampled_from(["none", "center"]))
def test_an_image_of_the_right_size_is_left_as_it_is(height, width, crop):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    assert np.array_equal(Preparation((height, width), crop).image(image), image)


def test_shrinking_an_image_averages_what_it_drops():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    assert np.abs(Preparation((8, 8)).image(stripes).astype(int) - 100).max() <= 20


@settings(deadline=None)
@given(sides, sides)
def test_center_without_size_takes_the_middle_square(height, width):
    mask = np.arange(height * width).reshape(height, width)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    assert np.array_equal(Preparation(crop="center").mask(mask), mask[top : top + side, left : left + side])


@pytest.mark.parametrize(
    ("shape", "size", "box"),
    [
        ((40, 100), (10, 20), (0, 10, 40, 80)),
        ((100, 40), (10, 20), (40, 0, 20, 40)),
        ((30, 60), (10, 20), (0, 0, 30, 60)),
        ((40, 100), (16, 16), (0, 30, 40, 40)),
    ],
)
def test_center_takes_the_largest_middle_box_of_the_aspect_ratio(shape, size, box):
    top, left, height, width = box
    assert Preparation(size, "center").box(*shape) == box
    image = np.zeros((*shape, 3), np.uint8)
    image[top : top + height, left : left + width] = 9
    assert (Preparation(size, "center").image(image) == 9).all()


def test_an_integer_is_a_square_and_a_list_is_height_and_width():
    assert Preparation.from_options(5).size == (5, 5)
    assert Preparation.from_options([5, 7]).size == (5, 7)
    assert Preparation.from_options().size is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, r"^data\.size: expected an integer of at least 1, got 0$"),
        ({"size": "64"}, r"^data\.size: expected an integer of at least 1, got '64'$"),
        ({"size": (4, 0.5)}, r"^data\.size: expected an integer of at least 1, got 0\.5$"),
        ({"size": (1, 2, 3)}, r"^data\.size: expected an integer or \(height, width\), got \(1, 2, 3\)$"),
        ({"crop": "left"}, r"^data\.crop: expected one of none, center, got 'left'$"),
    ],
)
def test_options_outside_their_support_are_rejected(options, message):
    with pytest.raises(ConfigError, match=message):
        Preparation.from_options(**options)
