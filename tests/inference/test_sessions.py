import re
from pathlib import Path

import pytest
import tiny
import torch

from psa.errors import DataError
from psa.inference.autoencoder import SlotAutoencoder, build_autoencoder
from psa.inference.data_config import DataConfig
from psa.inference.sessions import open_split, prepared_as, run_images


def oblong(crop: str, size: tuple[int, int] = (16, 20)) -> SlotAutoencoder:
    data = DataConfig(source="elsewhere", size=size, crop=crop)
    return build_autoencoder(tiny.tiny_config(tiny.WITH_KL).model_copy(update={"data": data}), size)


@pytest.mark.parametrize("source", [None, "sprites"])
def test_a_runs_own_source_keeps_every_option(source: str | None):
    autoencoder = tiny.tiny_autoencoder(tiny.WITH_KL, "data.seed=5", "data.max_objects=2")
    assert prepared_as(autoencoder, source) == autoencoder.config.data


@pytest.mark.parametrize("crop", ["none", "center"])
def test_another_source_takes_size_and_crop_from_the_run_and_nothing_else(crop: str):
    assert prepared_as(oblong(crop), "folder") == DataConfig(source="folder", size=(16, 20), crop=crop)


def test_sprites_are_opened_for_a_run_of_a_cropped_folder():
    autoencoder = oblong("center", (16, 16))
    assert run_images(autoencoder, prepared_as(autoencoder, "sprites"), "test", 2).size == (16, 16)


def test_run_images_are_the_first_of_the_split():
    autoencoder = tiny.tiny_autoencoder(tiny.WITH_KL)
    everything = run_images(autoencoder, autoencoder.config.data, "val")
    some = run_images(autoencoder, autoencoder.config.data, "val", 3)
    assert len(everything) == len(open_split(autoencoder.config.data, "val")) == 20
    assert torch.equal(some.images, everything.images[:3])


def test_images_of_another_size_are_refused(tmp_path: Path):
    folder = tiny.write_folder(tmp_path / "scenes", 2, size=24)
    message = f"{folder}: expected images of 16 x 16 as the run's, got 24 x 24"
    with pytest.raises(DataError, match=re.escape(message)):
        run_images(tiny.tiny_autoencoder(tiny.WITH_KL), DataConfig(source=str(folder)), "all")
