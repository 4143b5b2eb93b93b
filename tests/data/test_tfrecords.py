import gzip
import itertools
import pickle
import struct
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tiny
from command_line import assert_says_one_line, run
from fuzzing import fuzz
from tfrecord_bytes import LAYOUTS, bitwise_crc32c, crc32c, example, framed, masked, record, write
from torch.utils.data import DataLoader

from psa.data import Conversion, FolderScenes, Preparation, Scene, TfrecordScenes, convert, gzip_streams, open_dataset
from psa.data.gzip_streams import GzipStream
from psa.data.record_framing import Limits, RecordFile
from psa.errors import DataError
from psa.progress import watching


def changed(**changes: object) -> bytes:
    """A Tetrominoes record with some features replaced, or removed where None."""
    features = {**record("tetrominoes")[0], **changes}
    return example({name: values for name, values in features.items() if values is not None})


@pytest.fixture(scope="module")
def payloads() -> list[bytes]:
    return [example(record("tetrominoes", seed)[0]) for seed in range(12)]


def read_all(path: Path) -> list[Scene]:
    return list(TfrecordScenes(path, "all"))


def read_or_error(path: Path) -> list[Scene] | str:
    try:
        return read_all(path)
    except DataError as error:
        return str(error)


def same(one: Scene, other: Scene) -> bool:
    assert one.factors is not None
    assert other.factors is not None
    return (
        np.array_equal(one.image, other.image)
        and np.array_equal(one.mask, other.mask)
        and one.factors.keys() == other.factors.keys()
        and all(np.array_equal(one.factors[name], other.factors[name]) for name in one.factors)
    )


def test_the_tests_own_checksum_is_the_published_one():
    """RFC 3720, appendix B.4: 32 zeros; and the usual check value."""
    assert bitwise_crc32c(bytes(32)) == crc32c(bytes(32)) == 0x8A9136AA
    assert bitwise_crc32c(b"123456789") == crc32c(b"123456789") == 0xE3069283


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_is_recognised_and_read_exactly(tmp_path, name):
    features, labels = record(name, seed=1)
    path = write(tmp_path / f"{name}.tfrecords", example(features), packed=True)
    dataset = TfrecordScenes(path, "all")
    family, height, width, _, entities = LAYOUTS[name]
    assert (dataset.info.name, dataset.info.size, dataset.info.num_slots) == (name, (height, width), entities)
    assert dataset.info.background_labels == (tuple(range(4)) if family == "room" else (0,))
    (scene,) = dataset
    assert np.array_equal(scene.image, np.broadcast_to(features["image"], (height, width, 3)))
    assert np.array_equal(scene.mask, labels)
    factors = {factor: values for factor, values in features.items() if factor not in ("image", "mask")}
    assert (scene.factors or {}).keys() == factors.keys()
    for factor, values in factors.items():
        assert scene.factors[factor].dtype == values.dtype
        assert np.array_equal(scene.factors[factor], values)


def test_an_array_in_one_string_is_read_as_one_in_a_string_for_each_byte(tmp_path):
    features = record("tetrominoes")[0]
    whole = {**features, "image": [features["image"].tobytes()], "mask": [features["mask"].tobytes()]}
    one, other = read_all(write(tmp_path / "a.tfrecord", example(features), example(whole)))
    assert same(one, other)


def test_factors_may_be_missing(tmp_path):
    for name in ("binarized", "colored_on_grayscale", "colored_on_colored", "tetrominoes"):
        features, labels = record(name)
        some = {factor: features[factor] for factor in ("image", "mask", "x")}
        bare = {factor: features[factor] for factor in ("image", "mask")}
        one, other = read_all(write(tmp_path / f"{name}.tfrecord", example(some), example(bare)))
        assert one.factors.keys() == {"x"}
        assert other.factors is None
        assert np.array_equal(one.mask, labels)
        assert np.array_equal(other.mask, labels)


@pytest.mark.parametrize("num_visible", [1, 2])
def test_one_object_or_none_leaves_no_other_label(tmp_path, num_visible):
    features, labels = record("binarized", num_visible=num_visible)
    (scene,) = read_all(write(tmp_path / "a.tfrecord", example(features)))
    assert np.array_equal(np.unique(scene.mask), np.arange(num_visible))
    assert np.array_equal(scene.mask, labels)


def test_an_entity_that_is_not_visible_is_no_object(tmp_path):
    features, labels = record("tetrominoes")
    features["visibility"] = np.array([1, 1, 0, 1], np.float32)
    (scene,) = read_all(write(tmp_path / "a.tfrecord", example(features)))
    assert np.array_equal(scene.mask, np.where(labels == 2, 0, labels))
    assert np.array_equal(scene.factors["visibility"], features["visibility"])


def test_a_pixel_belongs_to_the_last_entity_that_claims_it_and_to_the_background_where_none_does(tmp_path):
    mask = np.zeros((4, 35, 35), np.uint8)
    mask[1, :2], mask[3, 1:3] = 255, 255
    (scene,) = read_all(write(tmp_path / "a.tfrecord", changed(mask=mask)))
    assert scene.mask[:4, 0].tolist() == [1, 3, 3, 0]


@pytest.mark.parametrize("packed", [False, True])
def test_records_are_read_by_number_in_any_order_and_splits_are_disjoint_and_cover(tmp_path, payloads, packed):
    path = write(tmp_path / "a.tfrecords", *payloads, packed=packed)
    whole = TfrecordScenes(path, "all")
    for i in (7, 0, 11, -1, 3):
        assert np.array_equal(whole[i].mask, record("tetrominoes", i % 12)[1])
    with pytest.raises(IndexError):
        whole[12]
    sources = []
    for split, count in (("train", 10), ("val", 1), ("test", 1)):
        part = TfrecordScenes(path, split)
        assert len(part) == count
        for i, scene in enumerate(part):
            sources.append(part.source(i))
            assert same(scene, whole[int(sources[-1].removeprefix(f"{path}[").removesuffix("]"))])
    assert sorted(sources) == sorted(f"{path}[{i}]" for i in range(12))


@pytest.fixture
def near_states(monkeypatch):
    """A state of a GZIP file at every record or two."""
    monkeypatch.setattr(gzip_streams, "LEAST_SPACING", 30_000)


@pytest.mark.parametrize("packed", [False, True])
def test_worker_processes_read_the_same_scenes(tmp_path, payloads, packed, near_states):
    dataset = TfrecordScenes(write(tmp_path / "a.tfrecords", *payloads, packed=packed), "all")
    order = np.random.default_rng(0).permutation(12).tolist()
    loader = DataLoader(dataset, batch_size=None, sampler=order, num_workers=2, multiprocessing_context="fork")
    for index, scene in zip(order, loader, strict=True):
        assert same(scene, dataset[index])


def test_a_pickled_data_set_reads_the_same_as_where_processes_are_spawned(tmp_path, payloads, near_states):
    path = write(tmp_path / "a.tfrecords", *payloads, packed=True)
    dataset = TfrecordScenes(path, "all")
    copy = pickle.loads(pickle.dumps(dataset))
    for index in (11, 2, 7, 8):
        assert same(copy[index], dataset[index])


@pytest.mark.parametrize("packed", [False, True])
def test_the_records_of_a_file_are_found_once_for_its_splits_and_anew_when_it_changes(
    tmp_path, payloads, packed, monkeypatch
):
    found = []
    find = RecordFile._find_bounds
    monkeypatch.setattr(RecordFile, "_find_bounds", lambda file, *rest: (found.append(file.path), find(file, *rest)))
    path = write(tmp_path / "a.tfrecords", *payloads[:5], packed=packed)
    splits = [TfrecordScenes(path, split) for split in ("train", "val", "test")]
    assert found == [path]
    write(path, *payloads, packed=packed)
    assert len(TfrecordScenes(path, "all")) == 12
    assert found == [path, path]
    assert sum(map(len, splits)) == 5


def test_a_gzip_file_is_converted_in_one_pass_a_split(tmp_path, payloads, monkeypatch, near_states):
    """Reading never goes back but to the first record, which tells the layout, and to a split's first scene."""
    path = write(tmp_path / "a.tfrecords", *payloads, packed=True)
    begins = []
    go_on = GzipStream._go_on_from
    monkeypatch.setattr(GzipStream, "_go_on_from", lambda s, place: (begins.append(place.unpacked), go_on(s, place))[1])
    convert(Conversion(str(path), ("all",)), tmp_path / "a.h5")
    # Once for each stream that is opened, and once more where it does not stand before what is asked for.
    backwards = [b for a, b in itertools.pairwise(begins) if b < a]
    assert len(backwards) <= 2
    assert len(begins) <= 2 + 2 * len(backwards) + len(payloads)


def test_opening_tells_how_far_it_is(tmp_path, payloads):
    told = []

    @contextmanager
    def watcher(what, total, at_once):
        told.append((what, total))
        yield told.append

    for packed in (False, True):
        path = write(tmp_path / "a.tfrecords", *payloads, packed=packed)
        told.clear()
        with watching(watcher):
            RecordFile(path)
        size = path.stat().st_size
        assert told[0] == ("opening a.tfrecords", size)
        assert len(told) == 13
        assert told[1:] == sorted(told[1:])
        assert told[-1] == size


def test_a_folder_of_shards_is_read_in_the_order_of_names(tmp_path, payloads):
    folder = tmp_path / "shards"
    folder.mkdir()
    write(folder / "2.tfrecords", *payloads[:4], packed=True)
    write(folder / "10.TFRecord", *payloads[4:5])
    (folder / ".hidden.tfrecord").write_bytes(b"no record")
    (folder / "notes.txt").write_text("no record")
    dataset = open_dataset(folder, "all")
    assert isinstance(dataset, TfrecordScenes)
    assert dataset.info.name == "shards"
    assert [dataset.source(i) for i in (0, 1, 4)] == [
        str(folder / name) for name in ("10.TFRecord[0]", "2.tfrecords[0]", "2.tfrecords[3]")
    ]
    for scene, seed in zip(dataset, (4, 0, 1, 2, 3), strict=True):
        assert np.array_equal(scene.mask, record("tetrominoes", seed)[1])


def test_a_folder_without_tfrecords_is_a_folder_of_pictures(tmp_path):
    assert isinstance(open_dataset(tiny.write_folder(tmp_path / "pictures", 3)), FolderScenes)


def test_crop_and_resize_are_those_of_the_preparation(tmp_path):
    features, labels = record("clevr")
    path = write(tmp_path / "a.tfrecords", example(features))
    preparation = Preparation((20, 20), "center")
    dataset = open_dataset(path, "all", size=20, crop="center")
    assert dataset.info.size == (20, 20)
    assert np.array_equal(dataset[0].image, preparation.image(features["image"]))
    assert np.array_equal(dataset[0].mask, preparation.mask(labels.astype(np.int64)))


# Damage.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": None}, r"expected a feature 'image', found color, mask, shape, visibility, x, y$"),
        ({"mask": None}, r"expected a feature 'mask', found color, image, shape, visibility, x, y$"),
        ({"image": np.zeros((35, 35, 3), np.float32)}, r"'image': expected bytes, got float32$"),
        ({"mask": np.zeros((4, 35, 35), np.int64)}, r"'mask': expected bytes, got int64$"),
        (
            {"image": np.zeros((35, 34, 3), np.uint8)},
            r"expected the sizes of .*, got an image of 3570 and .* 4900 bytes$",
        ),
        (
            {"mask": np.zeros((3, 35, 35), np.uint8)},
            r"expected the sizes of CLEVR with masks, Tetrominoes, .* 3675 bytes$",
        ),
        ({"image": [b""]}, r"got an image of 0 and masks of 4900 bytes$"),
        ({"mask": np.full((4, 35, 35), 3, np.uint8)}, r"'mask': expected values 0 or 255, got others$"),
        ({"x": np.zeros(3, np.float32)}, r"'x': expected 4 of float32, got 3 of float32$"),
        ({"x": np.zeros(4, np.int64)}, r"'x': expected 4 of float32, got 4 of int64$"),
        ({"color": np.zeros(4, np.float32)}, r"'color': expected 12 of float32, got 4 of float32$"),
        ({"hue": np.zeros(4, np.float32)}, r"'hue': no such feature in Tetrominoes, expected image, mask, x, y, shape"),
    ],
)
def test_records_of_another_layout_are_refused_with_the_feature_named(tmp_path, changes, message):
    path = write(tmp_path / "a.tfrecords", changed(), changed(**changes))
    with pytest.raises(DataError, match=rf"a\.tfrecords\[1\]: .*{message}"):
        read_all(path)


def test_records_of_two_layouts_are_refused(tmp_path):
    path = write(tmp_path / "a.tfrecords", example(record("train")[0]), example(record("six_objects")[0]))
    with pytest.raises(DataError, match=r"\[1\]: expected ObjectsRoom of 7 entities .*, got ObjectsRoom of 10$"):
        read_all(path)


def test_data_that_are_no_example_are_refused(tmp_path):
    path = write(tmp_path / "a.tfrecords", changed(), b"\x80\x04no pickle is read.")
    with pytest.raises(DataError, match=r"a\.tfrecords\[1\]: expected a tf\.train\.Example, got "):
        read_all(path)
    with pytest.raises(DataError, match=r"a\.tfrecords\[0\]: expected a feature 'image', found none$"):
        read_all(write(path, b""))


def test_an_empty_file_is_refused(tmp_path):
    for packed in (False, True):
        with pytest.raises(DataError, match=r"a\.tfrecords: expected TFRecords, got an empty file$"):
            TfrecordScenes(write(tmp_path / "a.tfrecords", packed=packed))


@pytest.mark.parametrize("name", ["missing.tfrecords", "folder.tfrecords"])
def test_what_is_no_file_is_named(tmp_path, name):
    (tmp_path / "folder.tfrecords").mkdir()
    with pytest.raises(DataError, match=rf"{name}: expected a readable TFRecord file, got \w+: ") as caught:
        TfrecordScenes(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_truncated_anywhere_but_between_records_is_refused(tmp_path, payloads):
    path = write(tmp_path / "a.tfrecords", *payloads[:2])
    data, first = path.read_bytes(), len(framed(payloads[0]))
    for kept, number in ((1, 0), (11, 0), (12, 0), (first - 1, 0), (first + 8, 1), (first + 50, 1), (len(data) - 4, 1)):
        path.write_bytes(data[:kept])
        with pytest.raises(DataError, match=rf"a\.tfrecords\[{number}\]: expected .*, got a file that ends "):
            TfrecordScenes(path, "all")
    packed = gzip.compress(data)
    for kept in (3, 40, len(packed) // 2, len(packed) - 1):
        path.write_bytes(packed[:kept])
        with pytest.raises(DataError, match=r"a\.tfrecords\[[01]\]: expected a readable TFRecord file, got EOFError: "):
            TfrecordScenes(path, "all")


def test_lengths_and_sizes_above_the_limits_are_refused(tmp_path, payloads):
    length = struct.pack("<Q", 1 << 60)
    path = tmp_path / "a.tfrecords"
    path.write_bytes(framed(payloads[0]) + length + masked(length) + bytes(100))
    with pytest.raises(DataError, match=rf"\[1\]: expected a record of at most {1 << 24} bytes, got {1 << 60}$"):
        TfrecordScenes(path)
    longest = len(payloads[0])
    assert RecordFile(write(path, payloads[0]), Limits(record_bytes=longest))[0] == payloads[0]
    with pytest.raises(DataError, match=rf"\[0\]: expected a record of at most {longest - 1} bytes, got {longest}$"):
        RecordFile(path, Limits(record_bytes=longest - 1))
    unpacked = path.stat().st_size
    write(path, payloads[0], packed=True)
    assert RecordFile(path, Limits(unpacked_bytes=unpacked))[0] == payloads[0]
    with pytest.raises(DataError, match=rf"a\.tfrecords: expected at most {unpacked - 1} bytes when decompressed"):
        RecordFile(path, Limits(unpacked_bytes=unpacked - 1))

    with pytest.raises(DataError, match=r"a\.tfrecords: expected at most 1 records, got more$"):
        RecordFile(write(path, *payloads[:2], packed=True), Limits(records=1))


def flips(data: bytes, seed: int) -> list[bytes]:
    """The data with one bit turned, 20 times."""
    turned = []
    for bit in np.random.default_rng(seed).integers(0, 8 * len(data), 20).tolist():
        copy = bytearray(data)
        copy[bit // 8] ^= 1 << bit % 8
        turned.append(bytes(copy))
    return turned


@pytest.mark.parametrize("part", [slice(None), slice(8), slice(8, 12), slice(-4, None)], ids=str)
def test_every_flipped_bit_of_a_plain_file_is_found(tmp_path, payloads, part):
    data = framed(payloads[1])
    places = range(len(data))[part]
    for turned in flips(data[part], seed=places.start):
        damaged = data[: places.start] + turned + data[places.stop :]
        (tmp_path / "a.tfrecords").write_bytes(framed(payloads[0]) + damaged)
        with pytest.raises(DataError, match=r"a\.tfrecords\[1\]: expected "):
            read_all(tmp_path / "a.tfrecords")


def test_a_flipped_bit_of_a_gzip_file_is_found_or_changes_no_scene(tmp_path, payloads):
    """Gzip's own header has fields that tell nothing of the data, such as the time."""
    path = write(tmp_path / "a.tfrecords", *payloads[:2], packed=True)
    expected, data = read_all(path), path.read_bytes()
    damaged = [*flips(data, 0), *(turned + data[10:] for turned in flips(data[:10], 1))]
    num_found = 0
    for turned in damaged:
        path.write_bytes(turned)
        scenes = read_or_error(path)
        if isinstance(scenes, str):
            assert str(path) in scenes
            num_found += 1
        else:
            assert all(same(scene, other) for scene, other in zip(scenes, expected, strict=True))
    assert num_found >= 20


def test_a_damaged_example_with_a_right_checksum_is_refused_or_a_scene_of_the_description(tmp_path):
    """Single bits of a record whose arrays are one string each: its structure is most of what is not pixels."""
    features = record("tetrominoes")[0]
    arrays = {name: [features[name].tobytes()] for name in ("image", "mask")}
    whole = example({**features, **arrays})
    structure = len(whole) - 300  # where the factors begin
    damaged = [*flips(whole, 0), *(whole[:structure] + turned for turned in flips(whole[structure:], 1))]
    found: set[type] = set()
    for data in damaged:
        path = write(tmp_path / "a.tfrecords", data)
        scenes = read_or_error(path)
        found.add(type(scenes))
        if isinstance(scenes, str):
            assert f"{path}[0]: " in scenes
        else:
            assert scenes[0].image.shape == (35, 35, 3)
            assert set(np.unique(scenes[0].mask)) <= set(range(4))
    assert found == {str, list}


def test_damage_is_told_in_one_line_or_leaves_sound_scenes(tmp_path, payloads):
    found = fuzz(
        tmp_path,
        lambda folder: write(folder / "a.tfrecords", *payloads[:3]),
        lambda folder: TfrecordScenes(folder / "a.tfrecords", "all"),
        range(20),
    )
    assert set(found) == {"refused", "read"}


# The command line.


def test_training_takes_a_step_on_a_file_and_on_a_folder_of_shards(tmp_path, payloads):
    (tmp_path / "shards").mkdir()
    write(tmp_path / "shards/a.tfrecord", *payloads[:6])
    write(tmp_path / "shards/b.tfrecord", *payloads[6:], packed=True)
    file = write(tmp_path / "tetrominoes.tfrecords", *payloads, packed=True)
    settings = tiny.options([*tiny.SETTINGS, "data.size=16", "training.steps=1"])
    for i, source in enumerate((file, tmp_path / "shards")):
        result = run("train", "--data", source, "--out", tmp_path / f"run{i}", "--json", *settings)
        assert result.code == 0, result.err
        assert np.isfinite(result.json["mse"])


def test_damage_is_one_line_of_the_command_line(tmp_path, payloads):
    path = write(tmp_path / "a.tfrecords", *payloads)
    path.write_bytes(path.read_bytes()[:-1])
    result = run("train", "--data", path, "--out", tmp_path / "run", *tiny.options(tiny.SETTINGS))
    assert_says_one_line(result, 2, f"{path}[11]: expected", "got a file that ends")
    assert not (tmp_path / "run").exists()
