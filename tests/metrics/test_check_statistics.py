import math

import numpy as np
import pytest
import scipy.spatial
import scipy.stats
import torch
from tolerances import assert_close

from psa.metrics import statistics
from psa.metrics.statistics import (
    colour_entropy,
    colour_histogram,
    high_frequency_variance,
    mask_overlap,
    masked_slots_in_use,
    object_size,
    pixel_mean,
    pixel_variance,
    token_covariance,
    token_kurtosis,
    token_log_volume,
    token_nearest_distance,
    token_spread,
    weight_entropy,
)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(4, 3, 9, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randn(5, 30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 3


def test_pixel_moments_are_numpys(images):
    array = images.numpy()
    assert_close(pixel_mean(images), torch.tensor(array.mean((1, 2, 3))))
    assert_close(pixel_variance(images), torch.tensor(array.var((2, 3)).mean(1)))


@pytest.mark.parametrize("sigma", [0.05, 0.4])
def test_high_frequency_variance_is_the_noises_whatever_smooth_ramp_and_edges_lie_below(sigma):
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0, 1, 48, dtype=torch.float64)
    clean = (ramp[:, None] + 2 * ramp).expand(200, 3, 48, 48).clone()
    assert_close(high_frequency_variance(clean), torch.zeros(200))
    clean[:, :, 10:30, 12:40] += 3.0
    noise = sigma * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    found = high_frequency_variance(clean + noise)
    # the four corners of the square shift the median a little
    assert abs(float(found.mean()) / sigma**2 - 1) < 0.01
    pure = high_frequency_variance(noise)
    assert abs(float(pure.mean()) / sigma**2 - 1) < 0.01


def test_the_colour_histogram_is_numpys_and_keeps_what_lies_outside_in_the_outer_boxes(images):
    shares = colour_histogram(images, bins=3)
    points = images.flatten(2).transpose(1, 2).numpy()
    for index, cloud in enumerate(points):
        expected, _ = np.histogramdd(cloud, bins=3, range=[(0, 1)] * 3)
        assert_close(shares[index], torch.tensor(expected.ravel() / len(cloud)))
    assert_close(shares.sum(1), torch.ones(4))
    outside = colour_histogram(torch.tensor([[-5.0, 7.0], [0.1, 0.1], [0.1, 0.1]]).reshape(1, 3, 1, 2), bins=2)
    assert outside[0].nonzero().ravel().tolist() == [0, 4]


def test_colour_entropy_is_scipys(images):
    assert_close(colour_entropy(images), torch.tensor(scipy.stats.entropy(colour_histogram(images).numpy(), axis=1)))
    assert float(colour_entropy(torch.full((1, 3, 4, 4), 0.3))) == 0.0


def hard(labels: list[list[int]], num_slots: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(labels), num_slots).movedim(-1, 0)[None].double()


def test_object_size_leaves_out_the_largest_slot_and_those_not_in_use():
    labels = [[0] * 10 for _ in range(10)]
    labels[0][:6] = [1] * 6
    labels[1][:2] = [2] * 2
    assert_close(float(object_size(hard(labels, 4))), (0.06 + 0.02) / 2)
    assert int(masked_slots_in_use(hard(labels, 4))) == 3
    assert float(object_size(hard([[0] * 10] * 10, 4))) == 0.0
    crumb = [[0] * 20 for _ in range(20)]
    crumb[0][0], crumb[1][:8] = 1, [2] * 8
    assert_close(float(object_size(hard(crumb, 3))), 8 / 400)


def test_overlap_is_none_for_hard_masks_and_most_where_all_slots_share_every_pixel():
    assert float(mask_overlap(hard([[0, 1], [2, 2]], 3))) == 0.0
    assert_close(float(mask_overlap(torch.full((1, 5, 3, 3), 0.2, dtype=torch.float64))), 0.8)


def test_weight_entropy_is_scipys():
    weights = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]], dtype=torch.float64)
    assert_close(weight_entropy(weights), torch.tensor(scipy.stats.entropy(weights.numpy(), axis=1)))


def test_token_statistics_are_numpys_and_scipys(tokens):
    covariance = [np.cov(image.T.numpy(), bias=True) for image in tokens]
    assert_close(token_covariance(tokens), torch.tensor(np.stack(covariance)))
    assert_close(token_log_volume(tokens), torch.tensor([np.linalg.slogdet(c)[1] for c in covariance]))
    assert_close(token_spread(tokens), torch.tensor([np.trace(c) for c in covariance]))
    kurtosis = [scipy.stats.kurtosis(image.numpy(), fisher=False).mean() for image in tokens]
    assert_close(token_kurtosis(tokens), torch.tensor(kurtosis))


def test_an_axis_that_does_not_vary_is_no_division_by_zero():
    assert_close(token_kurtosis(torch.ones(1, 5, 2, dtype=torch.float64)), torch.ones(1))
    assert float(token_log_volume(torch.ones(1, 5, 2, dtype=torch.float64))) == -math.inf


def test_the_nearest_distance_is_that_of_a_tree_in_chunks_of_any_size(tokens, monkeypatch):
    expected = torch.tensor(
        [np.log(scipy.spatial.cKDTree(image).query(image, 2)[0][:, 1]).mean() for image in tokens.numpy()]
    )
    assert_close(token_nearest_distance(tokens), expected)
    monkeypatch.setattr(statistics, "MAX_DISTANCES", 1)
    assert_close(token_nearest_distance(tokens), expected)
