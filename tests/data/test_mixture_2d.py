import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerances import ALGEBRA, STANDARD_ERRORS, assert_close

from psa.data import Mixture2d, Mixture2dOptions, Points, open_dataset
from psa.data.mixture_2d import MIXING_ANGLE, MIXING_LAYERS, MIXING_SLOPE, draw_images, draw_types, mix
from psa.errors import ConfigError, DataError
from psa.inference.data_config import DataConfig
from psa.inference.sessions import open_split


def unmix(seen: np.ndarray, side: float) -> np.ndarray:
    """The inverse of mix, by NumPy: undo the LeakyReLU and turn back, twice."""
    cosine, sine = math.cos(MIXING_ANGLE), math.sin(MIXING_ANGLE)
    turn = np.array([[cosine, -sine], [sine, cosine]])
    u = (seen - side / 2) / (side / math.sqrt(12))
    for _ in range(MIXING_LAYERS):
        u = u / (2 / (1 + MIXING_SLOPE))
        u = np.where(u < 0, u / MIXING_SLOPE, u) @ turn.T
    return side / 2 + u * side / math.sqrt(12)


@given(
    num_types=st.integers(1, 6),
    num_objects=st.integers(1, 6),
    num_points=st.integers(1, 9),
    separation=st.floats(0.1, 50.0),
)
def test_images_hold_different_types_that_are_apart(num_types, num_objects, num_points, separation):
    num_objects = min(num_objects, num_types)
    data = Mixture2d(Mixture2dOptions(num_types, num_objects, num_points, separation), "val", 7, seed=3)
    assert data.tokens.shape == (7, num_objects * num_points, 2)
    assert all(len(set(row.tolist())) == num_objects for row in data.images.which)
    assert int(data.images.which.max()) < num_types
    if num_types > 1:
        assert float(torch.pdist(data.images.loc).min()) >= separation
    assert data.info.num_slots == num_objects


def test_points_lie_about_their_types_with_unit_deviation_in_the_order_of_objects():
    data = Mixture2d(Mixture2dOptions(), num_scenes=60)
    assert torch.equal(data.images.labels, torch.arange(3).repeat_interleave(128).expand(60, -1))
    about = data.tokens.unflatten(1, (3, 128)) - data.images.loc[data.images.which][:, :, None].float()
    assert float(about.mean((0, 1, 2)).abs().max()) < STANDARD_ERRORS / (60 * 384) ** 0.5
    covariance = about.flatten(0, 2).mT.cov()
    assert float((covariance - torch.eye(2)).abs().max()) < STANDARD_ERRORS * (2 / (60 * 384)) ** 0.5


def test_an_image_depends_on_options_seed_split_and_number_alone():
    long, short = (open_dataset("mixture-2d", "test", seed=2, num_scenes=n) for n in (600, 300))
    assert torch.equal(long.tokens[:300], short.tokens)
    assert torch.equal(long.images.which[:300], short.images.which)
    assert len(torch.unique(long.tokens[:, 0], dim=0)) == 600  # blocks are not repeated
    other = open_dataset("mixture-2d", "test", seed=3, num_scenes=300)
    assert not torch.equal(other.images.loc, short.images.loc)
    train = open_dataset("mixture-2d", "train", seed=2, num_scenes=300)
    assert torch.equal(train.images.loc, short.images.loc)
    assert not torch.equal(train.tokens, short.tokens)


def test_items_are_points_with_labels():
    data = open_dataset("mixture-2d", num_scenes=3, num_points=4)
    item = data[2]
    assert isinstance(item, Points)
    assert item.tokens.dtype == np.float32
    assert np.array_equal(item.tokens, data.tokens[2].numpy())
    assert item.labels is not None
    assert item.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert [len(part.tokens) for part in data.__getitems__([0, 1])] == [12, 12]
    assert data.source(1) == "mixture-2d(seed=0, split=train)[1]"
    assert data.info.kind == "points"
    with pytest.raises(IndexError):
        data[3]


def test_mixing_is_invertible_and_no_affine_map():
    options = Mixture2dOptions(mixed=True)
    data = Mixture2d(options, num_scenes=20)
    plain = data.images.tokens
    assert_close(torch.from_numpy(unmix(mix(plain, options.side).numpy(), options.side)), plain, ALGEBRA)
    assert torch.equal(data.tokens, mix(plain, options.side).float())
    rows, seen = plain.flatten(0, 1), data.tokens.double().flatten(0, 1)
    inputs = torch.cat([rows, torch.ones_like(rows[:, :1])], 1)
    residual = seen - inputs @ torch.linalg.lstsq(inputs, seen).solution
    assert float(residual.square().sum() / (seen - seen.mean(0)).square().sum()) > 0.05


def test_draws_are_those_of_their_generator():
    options = Mixture2dOptions(num_points=5)
    first, second = (
        draw_images(draw_types(options, generator), options, 4, generator)
        for generator in (torch.Generator().manual_seed(1), torch.Generator().manual_seed(1))
    )
    assert torch.equal(first.tokens, second.tokens)
    assert torch.equal(first[1:3].which, first.which[1:3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_types": 9}, r"^data\.num_types: expected an integer from 1 to 8, got 9$"),
        ({"num_objects": 6}, r"^data\.num_objects: expected an integer from 1 to 5, got 6$"),
        ({"num_points": 0}, r"^data\.num_points: expected an integer of at least 1, got 0$"),
        ({"separation": -1.0}, r"^data\.separation: expected a number above 0, got -1\.0$"),
        ({"separation": float("nan")}, r"^data\.separation: expected a number above 0, got nan$"),
        ({"num_scenes": 0}, r"^data\.num_scenes: expected an integer of at least 1, got 0$"),
        ({"seed": -1}, r"^data\.seed: expected an integer of at least 0, got -1$"),
        ({"size": 8}, r"^data\.size: no such option for mixture-2d, expected seed, num_scenes, num_types, "),
    ],
)
def test_values_outside_their_support_are_one_line(options, message):
    with pytest.raises(ConfigError, match=message):
        open_dataset("mixture-2d", **options)


def test_there_is_no_split_all():
    with pytest.raises(ConfigError, match=r"^data\.split: expected one of train, val, test for mixture-2d, got 'all'$"):
        open_dataset("mixture-2d", "all")


def test_training_on_points_is_refused_in_one_line():
    with pytest.raises(DataError, match=r"^mixture-2d: expected images, found points$"):
        open_split(DataConfig(source="mixture-2d"), "train")
