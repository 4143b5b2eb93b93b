from collections.abc import Callable

import pytest
import torch
from sklearn.cluster import KMeans

from psa.metrics import BASELINES, adjusted_rand_index, foreground_ari, k_means, quadrants


def noise(batch: int = 2, height: int = 6, width: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (batch, height, width, 3), generator=generator, dtype=torch.uint8)


def two_red_squares_and_a_blue() -> tuple[torch.Tensor, torch.Tensor]:
    image, mask = torch.zeros(1, 16, 16, 3, dtype=torch.uint8), torch.zeros(1, 16, 16, dtype=torch.int64)
    for label, (row, column, channel) in enumerate([(1, 1, 0), (11, 11, 0), (1, 11, 2)], start=1):
        image[0, row : row + 4, column : column + 4, channel] = 255
        mask[0, row : row + 4, column : column + 4] = label
    return image, mask


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_labels_every_pixel_of_every_image(name: str) -> None:
    images = noise()
    labels = BASELINES[name](images, 5)
    assert labels.shape == images.shape[:3]
    assert labels.dtype == torch.int64
    assert labels.min() == 0
    assert labels.max() < 5


def test_the_baselines_have_the_names_that_tables_print() -> None:
    assert list(BASELINES) == ["quadrants", "k-means colour", "k-means colour + position"]


def test_quadrants_are_the_four_quarters() -> None:
    assert quadrants(noise(1, 4, 5)).tolist() == [[[0, 0, 1, 1, 1]] * 2 + [[2, 2, 3, 3, 3]] * 2]


def test_colour_alone_joins_objects_of_one_colour_and_position_parts_them() -> None:
    image, mask = two_red_squares_and_a_blue()
    by_colour = BASELINES["k-means colour"](image, 3)
    assert by_colour[0, 1, 1] == by_colour[0, 11, 11]
    assert foreground_ari(by_colour, mask).item() < 1.0
    assert foreground_ari(BASELINES["k-means colour + position"](image, 8), mask).item() == 1.0


def test_k_means_matches_scikit_learn_on_all_pixels() -> None:
    image, _ = two_red_squares_and_a_blue()
    expected = KMeans(2, n_init=4, random_state=0).fit_predict(image.reshape(-1, 3) / 255.0)
    assert adjusted_rand_index(k_means(image, 2).flatten(1), torch.from_numpy(expected)[None].long()).item() == 1.0


def test_k_means_with_fewer_colours_than_clusters_labels_each_colour() -> None:
    image, _ = two_red_squares_and_a_blue()
    assert k_means(image, 9).unique().tolist() == [0, 1, 2]
    assert k_means(torch.zeros_like(image), 4).unique().tolist() == [0]


def test_k_means_of_an_image_does_not_depend_on_its_batch() -> None:
    images = noise(3)
    assert torch.equal(k_means(images, 4)[1:2], k_means(images[1:2], 4))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quadrants(noise().float()), r"images: expected uint8, came torch\.float32"),
        (lambda: quadrants(noise()[0]), r"images: expected \(B, H, W, 3\), came shape \(6, 7, 3\)"),
        (lambda: k_means(noise()[..., :2], 3), r"images: expected \(B, H, W, 3\), came shape \(2, 6, 7, 2\)"),
        (lambda: k_means(noise(), 0), "num_clusters: expected at least 1, came 0"),
        (lambda: k_means(noise(), 2, position_weight=-1.0), "position_weight: expected a finite number >= 0, came -1"),
    ],
)
def test_baselines_reject_what_they_cannot_take(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
