import numpy as np
import pytest
import scipy.linalg
import torch
from tolerances import assert_close

from psa.metrics.generation import FewImagesWarning, frechet_distance

NUM_FEATURES = 12


def drawn(count: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, 3, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def features(images: torch.Tensor) -> torch.Tensor:
    mix = torch.randn(NUM_FEATURES, NUM_FEATURES, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return images.flatten(1) @ mix


def closed_form(one: torch.Tensor, other: torch.Tensor) -> float:
    (a, b), (cov_a, cov_b) = ((x.numpy() for x in (one, other)), (np.cov(x.numpy().T) for x in (one, other)))
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root))


@pytest.mark.parametrize("offset", [0.0, 1e5], ids=["centred", "far from 0"])
@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_it_is_the_closed_form_on_gaussian_features(offset, shift):
    one, other = drawn(400, 0), drawn(300, 1, shift)

    def away(images: torch.Tensor) -> torch.Tensor:
        return features(images) + offset

    found = frechet_distance(one.split(64), other.split(100), away)
    # the difference of means is taken at the offset by the oracle, which loses 1e5 / 1e16 of it there
    assert_close(found, closed_form(away(one), away(other)), 1e-8)
    assert_close(found, frechet_distance(other.split(37), [one], away), 1e-8)


def test_a_set_is_at_no_distance_from_itself_and_a_translation_is_its_square():
    one = drawn(200, 0)
    assert frechet_distance([one], one.split(50), features) < 1e-9
    moved = frechet_distance([one], [one], lambda images: features(images))
    assert moved < 1e-9
    far = frechet_distance([one], [one + 1.0], lambda images: images.flatten(1))
    assert_close(far, float(NUM_FEATURES), 1e-8)


def test_float32_features_are_summed_in_float64():
    one, other = drawn(400, 0).float(), drawn(300, 1).float()
    found = frechet_distance([one], [other], lambda images: images.flatten(1) + 1000.0)
    expected = closed_form(*((x.flatten(1) + 1000.0).double() for x in (one, other)))
    assert_close(found, expected, 1e-8)


def test_fewer_images_than_features_are_warned_of():
    with pytest.warns(FewImagesWarning, match="10 images for 12 features: the covariance is singular"):
        frechet_distance([drawn(10, 0)], [drawn(50, 1)], features)


def test_it_refuses_too_few_images_and_features_of_another_shape():
    with pytest.raises(ValueError, match="at least 2 images each, got 1 and 30"):
        frechet_distance([drawn(1, 0)], [drawn(30, 1)], features)
    with pytest.raises(ValueError, match="at least 2 images each, got 0 and 0"):
        frechet_distance([], [], features)
    with pytest.raises(ValueError, match=r"features must give \(B, F\) for 30 images, got \(30, 3, 2, 2\)"):
        frechet_distance([drawn(30, 0)], [drawn(30, 1)], lambda images: images)
    with pytest.raises(ValueError, match="features must be finite"):
        frechet_distance([drawn(30, 0)], [drawn(30, 1)], lambda images: images.flatten(1) / 0.0)
