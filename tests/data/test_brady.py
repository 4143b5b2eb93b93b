import numpy as np
import pytest
import tiny
from archives import brady, npy, write_brady, write_npz, zipped
from command_line import assert_says_one_line, run
from fuzzing import fuzz

from psa.data import BradyScenes, Preparation, open_dataset
from psa.data.npz_arrays import map_array
from psa.errors import DataError

ARRAYS = brady()
NAMES = ("x", "y", "scale", "hue", "shape")


@pytest.mark.parametrize("deflated", [False, True])
def test_all_holds_every_scene_with_the_factors_of_its_objects(tmp_path, deflated):
    path = write_brady(tmp_path, deflated=deflated)
    dataset = open_dataset(path, "all")
    assert isinstance(dataset, BradyScenes)
    assert len(dataset) == len(list(dataset)) == 12
    for i, scene in enumerate(dataset):
        assert np.array_equal(scene.image, ARRAYS["arr_0"][i])
        assert scene.mask is None
        assert scene.factors.keys() == {*NAMES, "visibility", "num_objects"} == dataset.info.factors.keys()
        for column, name in enumerate(NAMES):
            assert np.array_equal(scene.factors[name], ARRAYS["arr_1"][i, :, column])
        assert scene.factors["num_objects"] == ARRAYS["arr_2"][i]
        assert np.array_equal(scene.factors["visibility"] > 0, ARRAYS["arr_1"][i, :, 0] > 0)
    assert (dataset.info.name, dataset.info.size) == ("sprites", (16, 16))
    assert (dataset.info.background_labels, dataset.info.num_slots) == ((), 4)


def test_scenes_of_no_object_and_of_one_are_among_them(tmp_path):
    counts = [int(scene.factors["visibility"].sum()) for scene in BradyScenes(write_brady(tmp_path), "all")]
    assert counts == [0, 1, 2, 3] * 3


def test_stored_arrays_are_mapped_and_not_read_into_memory(tmp_path):
    for order in (np.ascontiguousarray, np.asfortranarray):
        path = write_npz(tmp_path / "a.npz", {"arr_0": order(ARRAYS["arr_0"]), "b": np.arange(6.0).reshape(2, 3)})
        mapped = map_array(path, "arr_0")
        assert isinstance(mapped.base, np.memmap)
        assert not mapped.flags.writeable
        assert np.array_equal(mapped, ARRAYS["arr_0"])
        path.unlink()


def test_a_file_that_changed_is_read_anew(tmp_path):
    for value in (1, 2):
        path = write_npz(tmp_path / "a.npz", {"arr_0": np.full(5 + value, value)}, deflated=True)
        assert (map_array(path, "arr_0") == value).all()


def test_splits_are_disjoint_and_cover_and_source_names_the_row(tmp_path):
    path = write_brady(tmp_path)
    sources = []
    for split in ("train", "val", "test"):
        dataset = BradyScenes(path, split)
        for i, scene in enumerate(dataset):
            row = int(dataset.source(i).removeprefix(f"{path}[").removesuffix("]"))
            assert np.array_equal(scene.image, ARRAYS["arr_0"][row])
            sources.append(row)
    assert sorted(sources) == list(range(12))


def test_factors_and_counts_may_be_missing(tmp_path):
    bare = BradyScenes(write_npz(tmp_path / "a.npz", {"arr_0": ARRAYS["arr_0"]}), "all")
    assert bare[1].factors is None
    assert bare.info.num_slots is None
    no_counts = BradyScenes(write_npz(tmp_path / "b.npz", {n: ARRAYS[n] for n in ("arr_0", "arr_1")}), "all")
    assert no_counts[1].factors.keys() == set(NAMES) == no_counts.info.factors.keys()
    column = {**ARRAYS, "arr_2": ARRAYS["arr_2"][:, None]}
    assert BradyScenes(write_npz(tmp_path / "c.npz", column), "all")[2].factors["num_objects"] == 2


def test_images_are_prepared(tmp_path):
    preparation = Preparation((8, 8))
    dataset = BradyScenes(write_brady(tmp_path), "all", preparation)
    assert dataset.info.size == (8, 8)
    assert np.array_equal(dataset[3].image, preparation.image(ARRAYS["arr_0"][3]))


OBJECTS = npy(np.zeros(12)).replace(b"'<f8'", b"'|O' ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arr_0": None}, r": expected an array 'arr_0', found arr_1, arr_2$"),
        ({"arr_0": ARRAYS["arr_0"] / 255}, r": 'arr_0': expected uint8 of shape \(N, H, W, 3\), got float64 of shape"),
        ({"arr_0": ARRAYS["arr_0"][..., :1]}, r": 'arr_0': expected uint8 .*, got uint8 of shape \(12, 16, 16, 1\)$"),
        ({"arr_0": ARRAYS["arr_0"][:0]}, r": 'arr_0': expected uint8 .*, got uint8 of shape \(0, 16, 16, 3\)$"),
        ({"arr_1": ARRAYS["arr_1"][1:]}, r": 'arr_1': expected numbers of shape \(12, K, 5\), got .*\(11, 3, 5\)$"),
        (
            {"arr_1": ARRAYS["arr_1"][..., 1:]},
            r": 'arr_1': expected numbers of shape \(12, K, 5\), got .*\(12, 3, 4\)$",
        ),
        ({"arr_1": np.full((12, 3, 5), np.nan)}, r"\[0\]: 'arr_1': expected finite numbers, got others$"),
        ({"arr_2": ARRAYS["arr_2"][1:]}, r": 'arr_2': expected integers of shape \(12,\), got int64 of shape \(11,\)$"),
        ({"arr_2": ARRAYS["arr_2"] + 0.5}, r": 'arr_2': expected integers .*, got float64 of shape \(12,\)$"),
        ({"arr_2": ARRAYS["arr_2"] + 1}, r"\[3\]: 'arr_2': expected from 0 to 3 objects, got 4$"),
        (
            {"arr_2": OBJECTS},
            r"\['arr_2'\]: expected numbers, got pickled Python objects, which are never loaded, since",
        ),
        ({"arr_2": np.array(["a"] * 12)}, r"\['arr_2'\]: expected numbers, got dtype <U1$"),
        ({"arr_0": b"no array"}, r"\['arr_0'\]: expected a readable \.npz file, got ValueError: "),
        ({"arr_2": npy(np.zeros(9))[:-8]}, r"\['arr_2'\]: expected 72 bytes for an array of shape \(9,\), got 64$"),
    ],
)
def test_arrays_of_another_content_are_refused_by_their_name(tmp_path, changes, message):
    arrays = {name: array for name, array in {**ARRAYS, **changes}.items() if array is not None}
    with pytest.raises(DataError, match=rf"a\.npz{message}"):
        list(BradyScenes(write_npz(tmp_path / "a.npz", arrays), "all"))


@pytest.mark.parametrize("deflated", [False, True])
def test_a_flipped_bit_of_an_array_is_found_by_its_sum(tmp_path, deflated):
    path = write_brady(tmp_path, deflated=deflated)
    data = bytearray(path.read_bytes())
    for place in np.random.default_rng(0).integers(500, 4000, 10):
        turned = bytearray(data)
        turned[place] ^= 1
        path.write_bytes(turned)
        with pytest.raises(DataError, match=r"sprites\.npz\['arr_0'\]: expected a readable \.npz file, got "):
            BradyScenes(path, "all")


def test_arrays_above_the_limit_and_encrypted_ones_are_refused(tmp_path, monkeypatch):
    path = write_brady(tmp_path)
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"\['arr_0'\]: expected a readable \.npz file, got RuntimeError: .*encrypted"):
        BradyScenes(path)
    monkeypatch.setattr("psa.data.npz_arrays.MAX_UNPACKED_BYTES", 1000)
    with pytest.raises(DataError, match=r"\['arr_0'\]: expected at most 1000 bytes, got 9344$"):
        BradyScenes(write_brady(tmp_path, deflated=True))


def test_what_is_no_archive_is_named(tmp_path):
    for name, data in (("missing.npz", None), ("a.npz", b""), ("b.npz", b"no archive"), ("c.npz", zipped({}))):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=rf"{name}.*: expected "):
            BradyScenes(tmp_path / name)
        with pytest.raises(DataError, match=rf"{name}.*: expected "):
            open_dataset(tmp_path / name)


@pytest.mark.parametrize("deflated", [False, True])
def test_damage_is_refused(tmp_path, deflated):
    found = fuzz(
        tmp_path,
        lambda folder: write_brady(folder, deflated=deflated),
        lambda folder: BradyScenes(folder / "sprites.npz", "all"),
        range(20),
    )
    assert found.total() == 20
    assert found["refused"] >= 10


def test_training_takes_a_step_and_damage_is_one_line(tmp_path, monkeypatch):
    # The page is most of the time of so short a run.
    monkeypatch.setattr("psa.inference.sessions.write_run_report", lambda *_, **__: None)
    path = write_brady(tmp_path)
    settings = tiny.options([*tiny.SETTINGS, "training.steps=1"])
    result = run("train", "--data", path, "--out", tmp_path / "run", "--json", *settings)
    assert result.code == 0, result.err
    assert np.isfinite(result.json["mse"])
    data = bytearray(path.read_bytes())
    data[3000] ^= 1
    path.write_bytes(data)
    result = run("train", "--data", path, "--out", tmp_path / "other", *settings)
    assert_says_one_line(result, 2, path, "arr_0")
