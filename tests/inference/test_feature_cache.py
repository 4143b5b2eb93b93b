"""Kept features: those of the images, computed once, whole or not at all, and refused if of something else."""

from dataclasses import replace
from pathlib import Path

import h5py
import pytest
import torch
from tiny import tiny_images
from tolerances import assert_close

from psa.errors import RunError
from psa.inference.config import FeaturesConfig
from psa.inference.feature_cache import CHUNK, with_features
from psa.inference.frozen_network import FrozenNetwork, open_network

NETWORK = open_network(FeaturesConfig(options={"size": 16, "hidden_dim": 8, "num_layers": 1}))


def counted(network: FrozenNetwork, calls: list[int], fail_at: int | None = None) -> FrozenNetwork:
    def maps(images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        if len(calls) == fail_at:
            raise KeyboardInterrupt
        return network.maps(images)

    return replace(network, maps=maps)


def test_batches_are_the_features_of_their_images_in_any_order(tmp_path: Path):
    images = tiny_images(CHUNK + 6)
    found = with_features(images, NETWORK, tmp_path)
    expected = NETWORK.maps(images.batch(slice(None)))
    for index in (slice(None), slice(3, 9), torch.tensor([5, 2, 69, 2, 0])):
        assert_close(found.batch(index), expected[index], 1e-6)
    assert found.size == images.size
    assert torch.equal(found.images, images.images)
    assert (found.background, found.label_kind) == (images.background, images.label_kind)


def test_they_are_computed_once_and_anew_for_other_images_or_weights(tmp_path: Path):
    calls: list[int] = []
    network = counted(NETWORK, calls)
    with_features(tiny_images(5), network, tmp_path)
    with_features(tiny_images(5), network, tmp_path)
    assert calls == [5]
    with_features(tiny_images(5, "test"), network, tmp_path)
    with_features(tiny_images(4), network, tmp_path)
    with_features(tiny_images(5), replace(network, checksum="other"), tmp_path)
    with_features(tiny_images(5), replace(network, name="other"), tmp_path)
    assert calls == [5, 5, 4, 5, 5]
    assert len(list(tmp_path.iterdir())) == 5


def test_an_interruption_leaves_nothing(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        with_features(tiny_images(CHUNK + 1), counted(NETWORK, [], fail_at=2), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_something_else_or_damaged_is_refused(tmp_path: Path):
    images = tiny_images(3)
    with_features(images, NETWORK, tmp_path)
    (path,) = tmp_path.iterdir()
    with h5py.File(path, "a") as file:
        file.attrs["identity"] = "of something else"
    with pytest.raises(RunError, match="expected the features of these images by small"):
        with_features(images, NETWORK, tmp_path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(RunError, match="expected a file of features, got one that cannot be read"):
        with_features(images, NETWORK, tmp_path)


def test_a_folder_that_cannot_be_made_is_said_in_one_line(tmp_path: Path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(RunError, match="cannot be written"):
        with_features(tiny_images(2), NETWORK, tmp_path / "cache")
