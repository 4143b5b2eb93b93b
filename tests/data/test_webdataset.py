import gzip
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tiny
from archives import members, npy, npy_gz, picture, sample, tarred, write_shards
from command_line import assert_says_one_line, run
from fuzzing import fuzz

from psa.data import FolderScenes, Preparation, WebdatasetScenes, open_dataset
from psa.errors import DataError

IMAGE = sample(0)["image"]


def write(path: Path, *parts: dict[str, bytes]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(tarred({name: data for part in parts for name, data in part.items()}))
    return path


def changed(seed: int = 0, **changes: bytes | np.ndarray | None) -> dict[str, bytes]:
    """A scene's members with some replaced, by what follows the key with _ for its dots, or removed where None."""
    arrays = {name.replace(".", "_", 1): data for name, data in members(seed, "k").items()}
    arrays = {name.removeprefix("k_").replace(".", "_"): data for name, data in arrays.items()}
    kept = {**arrays, **changes}
    return {
        f"k{seed}.{name.replace('__', '-').replace('_', '.').replace('-', '_')}": d
        if isinstance(d, bytes)
        else npy_gz(d)
        for name, d in kept.items()
        if d is not None
    }


def read_one(tmp_path: Path, **changes: bytes | np.ndarray | None):
    (scene,) = WebdatasetScenes(write(tmp_path / "a.tar", changed(**changes)), "all")
    return scene


def refused(path: Path, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        list(WebdatasetScenes(path, "all"))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_folder_of_shards_is_read_in_the_order_of_names_with_masks_and_factors(tmp_path):
    dataset = open_dataset(write_shards(tmp_path), "all")
    assert isinstance(dataset, WebdatasetScenes)
    assert len(dataset) == 12
    for seed, scene in enumerate(dataset):
        expected = sample(seed)
        assert np.array_equal(scene.image, expected["image"])
        assert np.array_equal(scene.mask, expected["mask"])
        assert scene.factors.keys() == {"color", "count"}
        for name, values in scene.factors.items():
            assert values.dtype == expected[name].dtype
            assert np.array_equal(values, expected[name])
    assert (dataset.info.name, dataset.info.size) == (tmp_path.name, (16, 16))
    assert (dataset.info.background_labels, dataset.info.num_slots) == ((0,), None)
    assert dataset.source(7) == f"{tmp_path}/shard-000001.tar[000007]"


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_one_shard_of_any_tar_format_opens_by_its_path_and_in_any_order(tmp_path, form):
    parts = [members(seed, f"deep/{seed}") for seed in range(5)]
    path = tmp_path / "a.tar"
    path.write_bytes(tarred({name: data for part in parts for name, data in part.items()}, form))
    dataset = open_dataset(path, "all")
    for i in (3, 0, 4, -1):
        assert np.array_equal(dataset[i].image, sample(i % 5)["image"])
    assert dataset.source(2) == f"{path}[deep/2]"
    with pytest.raises(IndexError):
        dataset[5]


def test_splits_of_shards_are_disjoint_and_cover(tmp_path):
    write_shards(tmp_path)
    sources = {}
    for split in ("train", "val", "test", "all"):
        dataset = WebdatasetScenes(tmp_path, split)
        sources[split] = [dataset.source(i) for i in range(len(dataset))]
    assert sorted(sources["train"] + sources["val"] + sources["test"]) == sources["all"]
    assert [len(names) for names in sources.values()] == [10, 1, 1, 12]


def test_folders_of_splits_are_those_splits_and_all_is_their_union(tmp_path):
    for seed, split in enumerate(("test", "train")):
        write(tmp_path / split / "0.tar", members(seed, "a"))
    for split, seeds in (("test", [0]), ("train", [1]), ("all", [1, 0])):
        dataset = open_dataset(tmp_path, split)
        assert [int(scene.factors["count"]) for scene in dataset] == seeds
    with pytest.raises(DataError, match=r": expected a folder val of shards, found train, test only$"):
        open_dataset(tmp_path, "val")


@pytest.mark.parametrize("extension", ["png", "jpg", "image.png", "JPEG", "image.npy"])
def test_images_may_be_pictures_or_plain_arrays(tmp_path, extension):
    kind = "PNG" if extension.endswith("png") else "JPEG"
    data = npy(IMAGE) if extension.endswith("npy") else picture(IMAGE, kind, quality=100, subsampling=0)
    (scene,) = WebdatasetScenes(write(tmp_path / "a.tar", {f"k.{extension}": data}), "all")
    assert np.abs(scene.image.astype(int) - IMAGE).max() <= (30 if kind == "JPEG" else 0)
    assert scene.mask is None
    assert scene.factors is None


def test_gray_arrays_become_rgb(tmp_path):
    for gray in (IMAGE[..., 0], IMAGE[..., :1]):
        scene = read_one(tmp_path, image_npy_gz=gray)
        assert np.array_equal(scene.image, np.repeat(IMAGE[..., :1], 3, axis=2))


LABELS = np.random.default_rng(0).integers(0, 4, (16, 16))
ENTITIES = (np.arange(4)[:, None, None] == LABELS).astype(np.uint8)


@pytest.mark.parametrize("scale", [1, 255])
@pytest.mark.parametrize("axis", ["first", "first, last of one", "third"])
def test_masks_of_entities_become_labels_along_either_axis(tmp_path, axis, scale):
    masks = {"first": ENTITIES, "first, last of one": ENTITIES[..., None], "third": np.moveaxis(ENTITIES, 0, 2)}[axis]
    assert np.array_equal(read_one(tmp_path, mask_npy_gz=scale * masks).mask, LABELS)
    objects = masks[1:] if axis != "third" else masks[..., 1:]
    scene = read_one(tmp_path, mask_npy_gz=None, instance__mask_npy_gz=scale * objects)
    assert np.array_equal(scene.mask, LABELS)


@pytest.mark.parametrize("shape", [(16, 16), (16, 16, 1), (1, 16, 16)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, bool])
def test_masks_of_labels_are_read_as_they_are_and_0_and_255_as_0_and_1(tmp_path, shape, dtype):
    labels = LABELS.astype(dtype)
    assert np.array_equal(read_one(tmp_path, mask_npy_gz=labels.reshape(shape)).mask, labels.astype(int))
    on = np.where(LABELS > 1, 255, 0).astype(np.uint8)
    scene = read_one(tmp_path, mask_npy_gz=None, instance__mask_npy_gz=on.reshape(shape))
    assert np.array_equal(scene.mask, LABELS > 1)


def test_of_two_masks_one_is_a_factor(tmp_path):
    scene = read_one(tmp_path, instance__mask_npy_gz=ENTITIES)
    assert np.array_equal(scene.mask, sample(0)["mask"])
    assert np.array_equal(scene.factors["instance_mask"], ENTITIES)


@pytest.mark.parametrize("num_objects", [0, 1, 2])
def test_no_object_or_one_leaves_no_other_label(tmp_path, num_objects):
    scene = read_one(tmp_path, mask_npy_gz=None, instance__mask_npy_gz=255 * ENTITIES[1 : 1 + num_objects])
    assert np.array_equal(scene.mask, np.where(num_objects >= LABELS, LABELS, 0))


def test_the_last_entity_owns_what_several_claim(tmp_path):
    masks = np.zeros((3, 16, 16), np.uint8)
    masks[1, :4], masks[2, 2:6] = 255, 255
    assert read_one(tmp_path, mask_npy_gz=masks).mask[:8, 0].tolist() == [1, 1, 2, 2, 2, 2, 0, 0]


def test_factors_may_be_missing_and_members_of_other_kinds_are_never_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.write_text, (tmp_path / "sprung", "sprung"))

    trap = pickle.dumps(Trap())
    others = {"k0.pyd": trap, "k0.caption.json": b"[", "k0.cls": b"3", "__notes__": b"", "a/.k.npy": trap}
    part = {**changed(color_npy_gz=None, count_npy_gz=None), **others}
    (scene,) = WebdatasetScenes(write(tmp_path / "a.tar", part), "all")
    assert scene.factors is None
    assert not (tmp_path / "sprung").exists()


def test_crop_and_resize_are_those_of_the_preparation(tmp_path):
    preparation = Preparation((4, 6), "center")
    (scene,) = dataset = WebdatasetScenes(write(tmp_path / "a.tar", changed()), "all", preparation)
    assert dataset.info.size == (4, 6)
    assert np.array_equal(scene.image, preparation.image(IMAGE))
    assert np.array_equal(scene.mask, preparation.mask(sample(0)["mask"].astype(np.int64)))


def test_images_of_mixed_sizes_need_a_size(tmp_path):
    path = write(tmp_path / "a.tar", members(0, "a"), members(1, "b", 20))
    refused(path, r"\[b\]: expected 16x16 .* as a, got 20x20 .*; data\.size=\.\.\. makes all images one size$")
    assert {scene.image.shape for scene in WebdatasetScenes(path, "all", Preparation((8, 8)))} == {(8, 8, 3)}


OBJECTS = npy(np.zeros(2)).replace(b"'<f8'", b"'|O' ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_npy_gz": None}, r"\[k0\]: expected one of image\.npy\.gz, .*, found mask\.npy\.gz, color\.npy\.gz"),
        (
            {"image_npy_gz": IMAGE.astype(float)},
            r"expected uint8 of shape \(H, W, 3\), got float64 of shape \(16, 16, 3\)$",
        ),
        ({"image_npy_gz": IMAGE[..., :2]}, r"expected uint8 of shape \(H, W, 3\), got uint8 of shape \(16, 16, 2\)$"),
        ({"image_npy_gz": IMAGE[:0]}, r"expected uint8 of shape \(H, W, 3\), got uint8 of shape \(0, 16, 3\)$"),
        ({"image_npy_gz": npy(IMAGE)}, r"\[k0\.image\.npy\.gz\]: expected a readable member, got BadGzipFile"),
        ({"image_npy_gz": gzip.compress(b"no array")}, r"expected a readable \.npy, got ValueError"),
        ({"image_npy_gz": npy_gz(IMAGE)[:-9]}, r"\[k0\.image\.npy\.gz\]: expected a readable member, got EOFError"),
        ({"mask_npy_gz": LABELS.astype(float)}, r"\[k0\.mask\.npy\.gz\]: expected a mask of integers .*, got float64$"),
        ({"mask_npy_gz": LABELS.astype(np.uint64)}, r"expected a mask of integers below 2\*\*63, got uint64$"),
        ({"mask_npy_gz": LABELS[:15]}, r"expected masks of 16x16 as the image, got shape \(15, 16\)$"),
        ({"mask_npy_gz": LABELS - 1}, r"\[k0\.mask\.npy\.gz\]: expected mask labels of 0 or more, got -1$"),
        (
            {"color_npy_gz": gzip.compress(OBJECTS)},
            r"\[k0\.color\.npy\.gz\]: expected numbers, got pickled Python objects",
        ),
        ({"color_npy_gz": np.array(["red"])}, r"\[k0\.color\.npy\.gz\]: expected numbers, got dtype <U3$"),
        (
            {"color_npy_gz": gzip.compress(npy(np.zeros(2)).replace(b"(2,)", b"(9,)"))},
            r"expected 72 bytes for an array of shape \(9,\), got 16$",
        ),
        (
            {"jpg": b"no picture", "image_npy_gz": None},
            r"\[k0\.jpg\]: expected a readable PNG or JPEG image, got \w+: ",
        ),
    ],
)
def test_members_of_another_content_are_refused_by_their_name(tmp_path, changes, message):
    refused(write(tmp_path / "a.tar", changed(**changes)), message)


def test_a_member_that_unpacks_to_more_than_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("psa.data.tar_samples.MAX_MEMBER_BYTES", 1000)
    path = write(tmp_path / "a.tar", changed(image_npy_gz=gzip.compress(bytes(100_000))))
    refused(path, r"\[k0\.image\.npy\.gz\]: expected at most 1000 bytes when unpacked, got more$")


def test_masks_of_some_scenes_alone_and_members_of_one_name_are_refused(tmp_path):
    path = write(tmp_path / "a.tar", changed(0), changed(1, mask_npy_gz=None))
    refused(path, r"\[k1\]: expected a mask, since other scenes have one, found none \(1 of 2 scenes lack one\)$")
    path.write_bytes(tarred({**changed(0), "k0.MASK.npy.gz": b""}))
    refused(path, r"\[k0\.MASK\.npy\.gz\]: expected one member of that name, found two$")
    path.write_bytes(tarred({}))
    refused(path, r": expected members such as KEY\.image\.npy\.gz, found none$")


def test_a_folder_of_pictures_is_no_folder_of_shards(tmp_path):
    assert isinstance(open_dataset(tiny.write_folder(tmp_path / "pictures", 3)), FolderScenes)


@pytest.mark.parametrize("single", [False, True])
def test_damage_is_refused_or_leaves_scenes_of_the_description(tmp_path, single):
    def write_one(folder: Path) -> Path:
        return write(folder / "a.tar", changed(0), changed(1))

    found = fuzz(
        tmp_path,
        write_one if single else write_shards,
        lambda folder: WebdatasetScenes(folder / "a.tar" if single else folder, "all"),
        range(20),
    )
    assert found.total() == 20
    assert found["refused"] >= 5


def test_training_takes_a_step_on_shards_and_damage_is_one_line(tmp_path, monkeypatch):
    # The page is most of the time of so short a run.
    monkeypatch.setattr("psa.inference.sessions.write_run_report", lambda *_, **__: None)
    (tmp_path / "shards").mkdir()
    folder = write_shards(tmp_path / "shards")
    settings = tiny.options([*tiny.SETTINGS, "training.steps=1"])
    result = run("train", "--data", folder, "--out", tmp_path / "run", "--json", *settings)
    assert result.code == 0, result.err
    assert np.isfinite(result.json["mse"])
    shard = folder / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    result = run("train", "--data", folder, "--out", tmp_path / "other", *settings)
    assert_says_one_line(result, 2, shard, "got a file that ends before")
    assert not (tmp_path / "other").exists()
