import json
import os
import resource
from pathlib import Path

import h5py
import numpy as np
import pytest
import tiny
from formats import FORMATS, POINTS
from fuzzing import fuzz
from layouts import write_voc

from psa.data import Conversion, DatasetInfo, Hdf5Scenes, ObjectRange, Scene, SceneDataset, convert, open_dataset
from psa.data import conversion as conversion_module
from psa.errors import ConfigError, DataError

SPLITS = ("train", "val", "test")


def assert_same(found: Scene, expected: Scene) -> None:
    assert np.array_equal(found.image, expected.image)
    assert (found.mask is None) == (expected.mask is None)
    assert expected.mask is None or np.array_equal(found.mask, expected.mask)
    assert (found.factors or {}).keys() == (expected.factors or {}).keys()
    for name, values in (expected.factors or {}).items():
        assert (found.factors[name].dtype, found.factors[name].shape) == (values.dtype, values.shape), name
        np.testing.assert_array_equal(found.factors[name], values)


class Listed(SceneDataset):
    """Given scenes, in place of what ``open_dataset`` opens."""

    def __init__(self, scenes: list[Scene], **described: object) -> None:
        fields = {"name": "listed", "background_labels": (0,), "num_slots": None} | described
        self.info = DatasetInfo("scenes", size=scenes[0].image.shape[:2], **fields)
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index) -> Scene:
        return self.scenes[index]

    def source(self, index) -> str:
        return f"listed[{index}]"


@pytest.fixture
def listed(monkeypatch):
    """Makes the data set that any name opens."""

    def use(**datasets: Listed) -> tuple[str, ...]:
        monkeypatch.setattr(conversion_module, "open_dataset", lambda source, split, **options: datasets[split])
        return tuple(datasets)

    return use


def scene(label: int = 1, **factors: object) -> Scene:
    mask = np.zeros((4, 5), np.int64)
    mask[1, 2] = label
    image = np.random.default_rng(label).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    return Scene(image, mask, {name: np.asarray(value) for name, value in factors.items()} or None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny.write_folder(tmp_path_factory.mktemp("data") / "scenes", 30)


@pytest.mark.parametrize("name", sorted({*FORMATS} - {*POINTS}))
def test_every_layout_comes_back_as_it_was(tmp_path, listed, name):
    write, open_it = FORMATS[name]
    (tmp_path / "source").mkdir()
    write(tmp_path / "source")
    original = open_it(tmp_path / "source")
    convert(Conversion("x", listed(all=original)), tmp_path / "out.h5")
    found = open_dataset(tmp_path / "out.h5", "all")
    assert found.info == original.info
    assert len(found) == len(original)
    for index in range(len(found)):
        assert_same(found[index], original[index])


@pytest.mark.parametrize("name", ["TFRecord, GZIP", "COCO", "HDF5, converted"])
def test_two_conversions_write_the_same_bytes(tmp_path, listed, name):
    """With factors that are lacking, and with none; one process writes, so there is no number of workers."""
    write, open_it = FORMATS[name]
    (tmp_path / "source").mkdir()
    write(tmp_path / "source")
    for out in ("one.h5", "other.h5"):
        convert(Conversion("x", listed(all=open_it(tmp_path / "source"))), tmp_path / out)
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "other.h5").read_bytes()


@pytest.mark.parametrize("options", [{}, {"size": 8, "crop": "center"}], ids=["plain", "prepared"])
def test_splits_stay_what_they_were(tmp_path, folder, options):
    out = tmp_path / "out.h5"
    kept = convert(Conversion(str(folder), options=options), out)
    assert kept == {"train": 24, "val": 3, "test": 3}
    for split in SPLITS:
        original, found = open_dataset(folder, split, **options), open_dataset(out, split)
        assert len(found) == len(original) == kept[split]
        assert found.info == original.info
        for index in range(len(found)):
            assert_same(found[index], original[index])
    assert len(open_dataset(out, "all")) == 30


def test_h5py_finds_the_pixels_and_attributes(tmp_path, folder):
    convert(Conversion(str(folder), options={"size": 8}), tmp_path / "out.h5")
    original = [scene for split in SPLITS for scene in open_dataset(folder, split, size=8)]
    with h5py.File(tmp_path / "out.h5") as file:
        assert np.array_equal(file["image"], [scene.image for scene in original])
        assert np.array_equal(file["mask"], [scene.mask for scene in original])
        assert file["mask"].dtype == np.uint8
        told = {name: json.loads(file.attrs[name]) for name in file.attrs if name != "source"}
        assert file.attrs["source"] == str(folder)
    assert told["splits"] == {"train": 24, "val": 3, "test": 3}
    assert told["preparation"] == {"size": 8}
    assert (told["name"], told["background_labels"], told["num_slots"]) == ("scenes", [0], None)


def test_what_labels_stand_for_is_kept(tmp_path):
    convert(Conversion(str(write_voc(tmp_path / "voc")), options={"masks": "class"}), tmp_path / "out.h5")
    assert open_dataset(tmp_path / "out.h5", "test").info.label_kind == "class"


def test_only_the_splits_asked_for_are_there(tmp_path, folder):
    convert(Conversion(str(folder), ("test",)), tmp_path / "out.h5")
    assert len(open_dataset(tmp_path / "out.h5", "test")) == len(open_dataset(tmp_path / "out.h5", "all")) == 3
    with pytest.raises(DataError, match=r"out\.h5: expected a file with scenes of split 'train', found test only$"):
        open_dataset(tmp_path / "out.h5", "train")


@pytest.mark.parametrize(("least", "most"), [(None, 2), (2, None), (2, 3)])
def test_scenes_are_kept_by_their_number_of_objects(tmp_path, least, most):
    few = {"num_scenes": 40, "size": 16}
    convert(Conversion("sprites", ("val",), few, objects=ObjectRange(least, most)), tmp_path / "out.h5")
    expected = [
        s for s in open_dataset("sprites", "val", **few) if (least or 0) <= len(np.unique(s.mask)) - 1 <= (most or 9)
    ]
    found = open_dataset(tmp_path / "out.h5", "val")
    assert 0 < len(found) == len(expected) < 40
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


def test_no_scene_of_so_many_objects_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(DataError, match=r"^sprites: expected scenes with \{'min_objects': 9\}, found none$"):
        convert(Conversion("sprites", ("val",), {"num_scenes": 3}, objects=ObjectRange(9)), tmp_path / "out.h5")
    assert list(tmp_path.iterdir()) == []


def test_factors_that_are_lacking_or_of_other_shapes_come_back_as_they_were(tmp_path, listed):
    one = [scene(1, a=[1.0, 2.0], n=3), scene(2, a=[1.0], flag=[True, False]), scene(3), scene(4, a=[1.0, 2.0])]
    other = [scene(5, a=np.ones(7), late=np.zeros((2, 3), np.float32)), scene(6, late=np.ones((5, 1), np.float32))]
    splits = listed(train=Listed(one), val=Listed(other))
    convert(Conversion("x", splits), tmp_path / "out.h5")
    for split, expected in (("train", one), ("val", other)):
        found = Hdf5Scenes(tmp_path / "out.h5", split)
        for index, original in enumerate(expected):
            assert_same(found[index], original)


@pytest.mark.parametrize(("largest", "dtype"), [(255, "uint8"), (256, "uint16"), (70_000, "uint32"), (2**40, "uint64")])
def test_labels_take_as_many_bytes_as_they_need(tmp_path, listed, largest, dtype):
    scenes = [scene(1) for _ in range(100)] + [scene(largest)]
    convert(Conversion("x", listed(train=Listed(scenes))), tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["mask"].dtype == dtype
    found = Hdf5Scenes(tmp_path / "out.h5")
    assert_same(found[0], scenes[0])
    assert_same(found[100], scenes[100])


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (Scene(np.zeros((4, 5, 3), np.uint8)), r"^listed\[1\]: expected a mask, as the scenes before have it$"),
        (Scene(np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.int64)), r"^listed\[1\]: expected an image of shape"),
        (scene(a=[1]), r"^listed\[1\]: 'a': expected float64 with 1 axes as before, got int64 with 1$"),
        (scene(a=1.0), r"^listed\[1\]: 'a': expected float64 with 1 axes as before, got float64 with 0$"),
        (scene(a=[1.0], mask=[1]), r": expected factors with other names than the file's own, got 'mask'$"),
        (scene(a=[1.0], b=["x"]), r": 'b': expected numbers, got <U1$"),
    ],
)
def test_scenes_that_are_not_alike_are_named(tmp_path, listed, second, message):
    with pytest.raises(DataError, match=message):
        convert(Conversion("x", listed(train=Listed([scene(a=[1.0]), second]))), tmp_path / "out.h5")
    assert not (tmp_path / "out.h5").exists()


def test_splits_of_different_descriptions_are_refused(tmp_path, listed):
    splits = listed(train=Listed([scene()], num_slots=3), val=Listed([scene()], num_slots=4))
    with pytest.raises(DataError, match=r"^val of listed: expected num_slots 3 as train's, got 4$"):
        convert(Conversion("x", splits), tmp_path / "out.h5")


class Stop(Exception):
    pass


def interrupted(conversion: Conversion, out: Path, after: int) -> Path:
    """Convert until so many scenes have been read; the partial file."""

    def watch(done: int, total: int) -> None:
        if done >= after:
            raise Stop

    with pytest.raises(Stop):
        convert(conversion, out, watch)
    assert not out.exists()
    return out.with_name(out.name + ".part")


@pytest.mark.parametrize("after", [0, 64, 128, 300, 330])
def test_what_is_interrupted_goes_on_to_the_same_scenes(tmp_path, after):
    conversion = Conversion(
        "sprites",
        options={"size": 8},
        split_options={name: {"num_scenes": 300 if name == "train" else 30} for name in SPLITS},
        objects=ObjectRange(max_objects=3),
    )
    convert(conversion, tmp_path / "whole.h5")
    part = interrupted(conversion, tmp_path / "out.h5", after)
    seen = []
    kept = convert(conversion, tmp_path / "out.h5", lambda done, total: seen.append((done, total)))
    assert seen[0] == (after, 360)  # nothing is read twice
    assert seen[-1] == (360, 360)
    assert not part.exists()
    with h5py.File(tmp_path / "whole.h5") as whole, h5py.File(tmp_path / "out.h5") as found:
        assert dict(found.attrs) == dict(whole.attrs)
        assert sum(kept.values()) == len(whole["image"])
        assert (tmp_path / "out.h5").stat().st_size < whole["image"].size * 2 + (1 << 19)  # what was reserved is gone
        for name in whole:
            if isinstance(whole[name], h5py.Dataset):
                assert np.array_equal(found[name], whole[name]), name


def test_what_was_written_and_not_saved_is_written_again(tmp_path, listed):
    """As a kill in the midst of a batch leaves it: some data sets are longer than what was counted."""
    scenes = [scene(i % 3, a=[float(i)]) for i in range(100)]
    conversion = Conversion("x", listed(train=Listed(scenes)))
    part = interrupted(conversion, tmp_path / "out.h5", 64)
    with h5py.File(part, "r+") as file:
        file["image"].resize(90, axis=0)
        file["a"].resize(99, axis=0)
        file["a"][64:] = 7
    convert(conversion, tmp_path / "out.h5")
    for index, found in enumerate(Hdf5Scenes(tmp_path / "out.h5", "train")):
        assert_same(found, scenes[index])


def test_another_conversions_partial_file_is_left_alone(tmp_path, folder):
    part = interrupted(Conversion("sprites", ("val",)), tmp_path / "out.h5", 64)
    before = part.read_bytes()
    for other in (Conversion("sprites", ("val",), {"seed": 1}), Conversion(str(folder), ("val",))):
        with pytest.raises(DataError, match=r"out\.h5\.part: expected a file of the same conversion, with ") as caught:
            convert(other, tmp_path / "out.h5")
        assert "\n" not in str(caught.value)
    assert part.read_bytes() == before


def test_a_source_that_changed_meanwhile_is_noticed(tmp_path):
    source = tiny.write_hdf5(tmp_path / "scenes.h5", 80)
    interrupted(Conversion(str(source), ("all",)), tmp_path / "out.h5", 64)
    os.utime(source, (1, 1))
    with pytest.raises(DataError, match=r"part: expected a file of the same conversion, with source_scenes "):
        convert(Conversion(str(source), ("all",)), tmp_path / "out.h5")


def test_a_file_that_is_there_stays_and_the_same_conversion_again_does_nothing(tmp_path, folder):
    out = tmp_path / "out.h5"
    kept = convert(Conversion(str(folder)), out)
    before = out.stat().st_mtime_ns
    assert convert(Conversion(str(folder)), out) == kept
    with pytest.raises(DataError, match=r"out\.h5: expected a file of the same conversion, with preparation \{\"size"):
        convert(Conversion(str(folder), options={"size": 8}), out)
    assert out.stat().st_mtime_ns == before
    for name, content in (("text.h5", b"text"), ("image.h5", None)):
        path = tmp_path / name
        path.write_bytes(content) if content else tiny.write_hdf5(path)
        before_bytes = path.read_bytes()
        with pytest.raises(DataError, match=rf"{name}: expected (no file of this name|a file of the same conversion)"):
            convert(Conversion(str(folder)), path)
        assert path.read_bytes() == before_bytes
    assert not list(tmp_path.glob("*.part"))


def test_a_partial_file_that_is_none_is_left_alone(tmp_path, folder):
    part = tmp_path / "out.h5.part"
    part.write_bytes(b"mine")
    with pytest.raises(DataError, match=r"part: expected a partial file that can be written, got .*; if nothing else"):
        convert(Conversion(str(folder)), tmp_path / "out.h5")
    assert part.read_bytes() == b"mine"


def test_points_and_other_endings_are_refused(tmp_path, folder):
    with pytest.raises(DataError, match=r"^mixture-2d: expected images, found points$"):
        convert(Conversion("mixture-2d"), tmp_path / "out.h5")
    with pytest.raises(ConfigError, match=r"out\.npz: expected the name of a file ending in \.h5 or \.hdf5$"):
        convert(Conversion(str(folder)), tmp_path / "out.npz")
    for splits in ((), ("train", "train"), ("all", "val")):
        with pytest.raises(ConfigError, match=r"^data\.split: expected different splits, or all alone, got "):
            Conversion("sprites", splits)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk():
    """A limit on the size of files stands for the full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("room", [0, 1 << 21, 1 << 27])
def test_a_full_disk_is_one_line_and_what_was_saved_stays(tmp_path, small_disk, room):
    """HDF5 itself would crash the process."""
    conversion = Conversion("sprites", ("val",), {"num_scenes": 1000, "size": 128})
    small_disk(room)
    with pytest.raises(DataError, match=r"part: expected (to write a partial file|.* can be written), got OSError: "):
        convert(conversion, tmp_path / "out.h5")
    small_disk(1 << 40)
    assert not (tmp_path / "out.h5").exists()
    seen = []
    assert convert(conversion, tmp_path / "out.h5", lambda done, total: seen.append(done)) == {"val": 1000}
    assert (seen[0] > 0) == (room == 1 << 27)
    assert_same(
        Hdf5Scenes(tmp_path / "out.h5", "val")[999], open_dataset("sprites", "val", num_scenes=1000, size=128)[999]
    )


def test_damage_is_told_in_one_line_or_leaves_sound_scenes(tmp_path):
    found = fuzz(tmp_path, *FORMATS["HDF5, converted"], range(20))
    assert set(found) == {"refused", "read"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("splits", '{"train": 29, "val": 0}'),
        ("splits", '{"dev": 30}'),
        ("splits", "{"),
        ("splits", "[" * 40_000),
        ("name", "3"),
        ("num_slots", '"many"'),
        ("background_labels", "0"),
        ("uneven", '["image"]'),
        ("factors", "[]"),
        ("label_kind", '"colour"'),
    ],
)
def test_attributes_that_cannot_be_are_named(tmp_path, folder, name, value):
    convert(Conversion(str(folder), ("all",)), tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5", "r+") as file:
        file.attrs[name] = value
    with pytest.raises(DataError, match=r"out\.h5: (attribute '|expected a readable HDF5 file, got )") as caught:
        open_dataset(tmp_path / "out.h5", "all")
    assert "\n" not in str(caught.value)
