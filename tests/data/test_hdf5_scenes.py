from pathlib import Path

import h5py
import numpy as np
import pytest
from fuzzing import fuzz
from hypothesis import given, settings
from hypothesis import strategies as st

from psa.data import Hdf5Scenes, Preparation
from psa.errors import DataError

RNG = np.random.default_rng(0)
ARRAYS = {
    "image": RNG.integers(0, 256, (20, 6, 9, 3)).astype(np.uint8),
    "mask": RNG.integers(0, 5, (20, 6, 9, 1)).astype(np.uint8),
    "visibility": RNG.integers(0, 2, (20, 4)).astype(bool),
    "color": RNG.random((20, 4, 3)).astype(np.float32),
    "count": RNG.integers(0, 4, 20),
}


def write(path: Path, **changes: object) -> Path:
    with h5py.File(path, "w") as file:
        for name, array in {**ARRAYS, **changes}.items():
            if array is not None:
                file[name] = array
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write(tmp_path_factory.mktemp("hdf5") / "things-full.hdf5")


def test_all_holds_every_scene_with_its_mask_and_factors(file):
    dataset = Hdf5Scenes(file, "all")
    assert len(dataset) == len(list(dataset)) == 20
    for i, scene in enumerate(dataset):
        assert np.array_equal(scene.image, ARRAYS["image"][i])
        assert np.array_equal(scene.mask, ARRAYS["mask"][i, ..., 0])
        assert scene.factors.keys() == {"visibility", "color", "count"}
        for name, values in scene.factors.items():
            assert np.array_equal(values, ARRAYS[name][i])
    assert (dataset.info.name, dataset.info.size) == ("things", (6, 9))
    assert (dataset.info.background_labels, dataset.info.num_slots) == ((0,), None)


def test_splits_are_disjoint_and_cover_and_source_names_the_row(file):
    rows = []
    for split in ("train", "val", "test"):
        dataset = Hdf5Scenes(file, split)
        for i, scene in enumerate(dataset):
            row = next(r for r in range(20) if np.array_equal(scene.image, ARRAYS["image"][r]))
            assert dataset.source(i) == f"{file}[{row}]"
            rows.append(row)
    assert sorted(rows) == list(range(20))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-16, 15), max_size=12))
def test_several_items_are_the_single_ones_in_the_order_asked_for(file, indices):
    dataset = Hdf5Scenes(file, "train")
    together = dataset.__getitems__(indices)
    assert len(together) == len(indices)
    for scene, index in zip(together, indices, strict=True):
        assert np.array_equal(scene.image, dataset[index].image)
        assert np.array_equal(scene.mask, dataset[index].mask)


def test_masks_and_factors_are_optional_and_masks_may_lack_the_last_axis(tmp_path):
    bare = Hdf5Scenes(write(tmp_path / "a.h5", **dict.fromkeys(("mask", "visibility", "color", "count"))), "all")
    assert bare[0].mask is None
    assert bare[0].factors is None
    assert bare.info.background_labels == ()
    flat = Hdf5Scenes(write(tmp_path / "b.h5", mask=ARRAYS["mask"][..., 0].astype(np.int32)), "all")
    assert np.array_equal(flat[3].mask, ARRAYS["mask"][3, ..., 0])


def test_crop_and_resize_are_those_of_the_preparation(file):
    preparation = Preparation((4, 4), "center")
    dataset = Hdf5Scenes(file, "all", preparation)
    assert dataset.info.size == (4, 4)
    assert np.array_equal(dataset[5].image, preparation.image(ARRAYS["image"][5]))
    assert np.array_equal(dataset[5].mask, preparation.mask(ARRAYS["mask"][5, ..., 0].astype(np.int64)))


@pytest.mark.parametrize(
    ("name", "slots", "background"),
    [("objects_room", 7, (0, 1, 2, 3)), ("tetrominoes", 4, (0,)), ("clevr_10", 11, (0,))],
)
def test_labels_of_the_librarys_own_files_are_known(tmp_path, name, slots, background):
    info = Hdf5Scenes(write(tmp_path / f"{name}-full.hdf5"), "all").info
    assert (info.name, info.num_slots, info.background_labels) == (name, slots, background)


def test_groups_are_left_alone(tmp_path):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        file["extra/image"] = np.zeros(3)
    assert "extra" not in Hdf5Scenes(path, "all")[0].factors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": None}, r": expected a dataset 'image', found color, count, mask, visibility$"),
        (dict.fromkeys(ARRAYS), r": expected a dataset 'image', found no datasets$"),
        (
            {"image": np.zeros((20, 6, 9, 3))},
            r": 'image': expected uint8 of shape \(N, H, W, 3\), got float64 of shape",
        ),
        ({"image": np.zeros((20, 6, 9), np.uint8)}, r": 'image': expected uint8 .*, got uint8 of shape \(20, 6, 9\)$"),
        ({"image": np.zeros((20, 3, 6, 9), np.uint8)}, r": 'image': .*, got uint8 of shape \(20, 3, 6, 9\)$"),
        ({"image": np.zeros((0, 6, 9, 3), np.uint8)}, r": 'image': .*, got uint8 of shape \(0, 6, 9, 3\)$"),
        (
            {"mask": np.zeros((20, 6, 8, 1), int)},
            r": 'mask': expected integers of shape \(20, 6, 9\) or .*\(20, 6, 8, 1\)$",
        ),
        (
            {"mask": np.zeros((20, 6, 9, 2), int)},
            r": 'mask': expected integers .*, got int64 of shape \(20, 6, 9, 2\)$",
        ),
        ({"mask": np.zeros((20, 6, 9))}, r": 'mask': expected integers .*, got float64 of shape \(20, 6, 9\)$"),
        (
            {"count": np.zeros(19)},
            r": 'count': expected numbers, 20 along axis 0 as 'image', got float64 of shape \(19,\)$",
        ),
        ({"count": 3}, r": 'count': expected numbers, 20 along axis 0 .*, got int64 of shape \(\)$"),
        ({"count": ["name"] * 20}, r": 'count': expected numbers, .*, got object of shape \(20,\)$"),
        ({"count": np.zeros(20, "S3")}, r": 'count': expected numbers, .*, got \|S3 of shape \(20,\)$"),
    ],
)
def test_files_of_another_layout_are_refused_with_the_dataset_named(tmp_path, changes, message):
    with pytest.raises(DataError, match=rf"a\.h5{message}"):
        Hdf5Scenes(write(tmp_path / "a.h5", **changes))


def test_what_is_no_hdf5_file_is_named(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"no hdf5")
    for name in ("a.h5", "missing.h5"):
        with pytest.raises(DataError, match=rf"{name}: expected a readable HDF5 file, got \w+: .*") as caught:
            Hdf5Scenes(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_truncated_file_is_named(tmp_path):
    path = write(tmp_path / "a.h5")
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"a\.h5: expected a readable HDF5 file, got OSError: "):
        Hdf5Scenes(path)


def test_a_chunk_that_cannot_be_decompressed_names_the_row(tmp_path):
    path = write(tmp_path / "a.h5", image=None)
    with h5py.File(path, "a") as file:
        image = file.create_dataset("image", data=ARRAYS["image"], chunks=(1, 6, 9, 3), compression="gzip")
        chunk = image.id.get_chunk_info(4)
    data = bytearray(path.read_bytes())
    data[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(data)
    dataset = Hdf5Scenes(path, "all")
    assert np.array_equal(dataset[3].image, ARRAYS["image"][3])
    with pytest.raises(DataError, match=r"a\.h5\[4\]: expected a readable HDF5 file, got OSError: "):
        dataset[4]


def test_two_scenes_can_only_be_taken_whole(tmp_path):
    path = write(tmp_path / "a.h5", **{name: array[:2] for name, array in ARRAYS.items()})
    with pytest.raises(DataError, match=r"a\.h5: expected at least 3 images .*, got 2; use split 'all'"):
        Hdf5Scenes(path)
    assert len(Hdf5Scenes(path, "all")) == 2


@pytest.mark.parametrize(("name", "label", "most"), [("tetrominoes", 4, "0 to 3"), ("a", -1, "0 or more")])
def test_labels_that_the_description_does_not_allow_name_the_row(tmp_path, name, label, most):
    mask = np.zeros((20, 6, 9), np.int16)
    mask[7, 2, 3] = label
    dataset = Hdf5Scenes(write(tmp_path / f"{name}.h5", mask=mask), "all")
    assert (dataset[6].mask == 0).all()
    with pytest.raises(DataError, match=rf"{name}\.h5\[7\]: expected mask labels of {most}, got {label}$"):
        dataset[7]


@pytest.mark.parametrize("shape", [(2**40, 4, 4, 3), (3, 2**20, 2**20, 3)])
def test_a_header_that_promises_more_than_memory_holds_is_refused(tmp_path, shape):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("image", shape, np.uint8, chunks=(1, 4, 4, 3))
    with pytest.raises(
        DataError, match=r"a\.h5: 'image': expected at most 100000000 scenes of 201326592 values, got uint8"
    ):
        Hdf5Scenes(tmp_path / "a.h5")


def test_damage_is_told_in_one_line_or_leaves_sound_scenes(tmp_path):
    few = {name: array[:3] for name, array in ARRAYS.items()}
    found = fuzz(
        tmp_path,
        lambda folder: write(folder / "tetrominoes.h5", **few | {"mask": few["mask"] % 4}),
        lambda folder: Hdf5Scenes(folder / "tetrominoes.h5", "all"),
        range(20),
    )
    assert set(found) == {"refused", "read"}
