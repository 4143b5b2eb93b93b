import h5py
import numpy as np
import pytest
from PIL import Image

from psa.data import DATASETS, FolderScenes, Hdf5Scenes, SpriteOptions, Sprites, open_dataset
from psa.errors import ConfigError, DataError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    for i in range(3):
        Image.new("RGB", (6, 4), (i, 0, 0)).save(tmp_path / "pictures" / f"{i}.png")
    return tmp_path / "pictures"


@pytest.fixture
def file(tmp_path):
    with h5py.File(tmp_path / "scenes.H5", "w") as file:
        file["image"] = np.zeros((3, 4, 6, 3), np.uint8)
    return tmp_path / "scenes.H5"


def test_every_listed_name_opens_and_options_reach_it():
    for name in DATASETS:
        assert len(open_dataset(name, num_scenes=2)) == 2
    opened = open_dataset("sprites", "val", seed=4, num_scenes=3, size=16, background="gray")
    assert np.array_equal(opened.images, Sprites(SpriteOptions(16, background="gray"), "val", 3, 4).images)


def test_folders_and_hdf5_files_open_by_path_with_the_same_options(folder, file):
    for path, kind in ((folder, FolderScenes), (file, Hdf5Scenes)):
        for name in (path, str(path)):
            opened = open_dataset(name, "all", size=[2, 3], crop="center")
            assert isinstance(opened, kind)
            assert opened.info.size == (2, 3)
            assert opened[2].image.shape == (2, 3, 3)
        assert len(open_dataset(path)) == 1


def test_a_name_that_is_nothing_says_what_is_accepted(tmp_path):
    files = r"\.h5, \.hdf5, \.tfrecord, \.tfrecords, \.tar, \.npz or \.npy"
    names = r"sprites, tetrominoes, multi-dsprites, mixture-2d"
    accepted = rf"expected a data set \({names}\), a folder of images, or a file ending in {files}, found "
    hint = r"; one of your own is registered by its module \(psa --plugin FILE\.py COMMAND\)"
    with pytest.raises(DataError, match=rf"^sprtes: {accepted}nothing of that name{hint}$"):
        open_dataset("sprtes")
    with pytest.raises(DataError, match=rf"none\.h5: {accepted}nothing of that name$"):
        open_dataset(tmp_path / "none.h5")
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match=rf"a\.txt: {accepted}a file of another kind$"):
        open_dataset(tmp_path / "a.txt")


def test_unknown_splits_are_rejected(folder):
    for name in ("sprites", folder):
        with pytest.raises(ConfigError, match=r"^data\.split: expected one of train, val, test, all, got 'dev'$"):
            open_dataset(name, "dev")


def test_unknown_options_are_rejected_with_the_allowed_ones(folder, file):
    allowed = "seed, num_scenes, size, min_objects, max_objects, background, min_visible, hues, max_visible, camouflage"
    with pytest.raises(ConfigError, match=rf"^data\.colour: no such option for sprites, expected {allowed}$"):
        open_dataset("sprites", colour=3)
    for path in (folder, file):
        with pytest.raises(ConfigError, match=rf"^data\.seed: no such option for {path}, expected size, crop$"):
            open_dataset(path, seed=3)
