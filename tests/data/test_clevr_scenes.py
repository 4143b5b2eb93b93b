import json
from pathlib import Path

import numpy as np
import pytest
from layouts import PALETTE, clevr_object, picture, put, write_clevr, write_clevrtex
from png_bytes import png

from psa.data import ClevrScenes, ClevrTexScenes, open_dataset
from psa.errors import DataError


def scenes_file(root: Path, split: str = "train") -> Path:
    return root / "scenes" / f"CLEVR_{split}_scenes.json"


def put_objects(root: Path, objects: object) -> Path:
    """Of the first picture."""
    path = scenes_file(root)
    data = json.loads(path.read_text())
    data["scenes"][0]["objects"] = objects
    return put(path, json.dumps(data))


def test_pictures_and_factors_are_those_written(tmp_path):
    dataset = ClevrScenes(write_clevr(tmp_path / "CLEVR_v1.0", 12))
    assert (dataset.info.name, dataset.info.num_slots, dataset.info.background_labels) == ("CLEVR_v1.0", 11, ())
    for i, scene in enumerate(dataset):
        assert scene.mask is None
        np.testing.assert_array_equal(scene.image, picture(i))
        count = i % 11
        assert scene.factors["num_objects"] == count
        for e in range(10):
            expected = clevr_object(e) if e < count else {"3d_coords": [0] * 3, "pixel_coords": [0] * 3, "rotation": 0}
            place = [scene.factors[name][e] for name in "xyz"]
            np.testing.assert_array_equal(place, np.float32(expected["3d_coords"]))
            np.testing.assert_array_equal(scene.factors["pixel_coords"][e], np.float32(expected["pixel_coords"]))
            assert scene.factors["rotation"][e] == np.float32(expected["rotation"])
            for name in ("shape", "size", "material", "color"):
                code = int(scene.factors[name][e])
                legend = dataset.info.factors[name].removesuffix("; 0 no object").split(", ")
                assert (e >= count) == (code == 0)
                assert code == 0 or legend[code - 1] == f"{code} {expected[name]}"


def test_the_test_split_has_pictures_without_factors_and_the_others_need_theirs(tmp_path):
    root = write_clevr(tmp_path)
    assert all(scene.factors is None for scene in ClevrScenes(root, "test"))
    kinds = [scene.factors is None for scene in ClevrScenes(root, "all")]
    assert kinds == [False] * 8 + [True] * 4
    scenes_file(root, "val").unlink()
    with pytest.raises(
        DataError, match=r"CLEVR_val_scenes\.json: expected a readable JSON file, got FileNotFoundError"
    ):
        ClevrScenes(root, "val")
    assert len(ClevrScenes(root, "train")) == 4


def test_a_picture_without_a_scene_is_named(tmp_path):
    root = write_clevr(tmp_path)
    (root / "images/train/CLEVR_train_000001.png").rename(root / "images/train/CLEVR_train_000077.png")
    with pytest.raises(DataError, match=r"CLEVR_train_000077\.png: expected a scene of this name"):
        list(ClevrScenes(root))


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        (None, r"'objects': expected a list, got nothing"),
        ({}, r"'objects': expected a list, got an object of length 0"),
        ([clevr_object(0)] * 11, r"expected at most 10 objects, got 11"),
        ([3], r"object 0: '3d_coords': expected 3 finite numbers, got nothing"),
        (
            [clevr_object(0), clevr_object(0, **{"3d_coords": [0, 1]})],
            r"object 1: '3d_coords': .* got a list of length 2",
        ),
        (
            [clevr_object(0, rotation="left")],
            r"object 0: 'rotation': expected a finite number, got a string of length 4",
        ),
        ([clevr_object(0, rotation=float("nan"))], r"object 0: 'rotation': expected a finite number, got nan"),
        ([clevr_object(0, rotation=10**400)], r"object 0: 'rotation': expected a finite number, got a long int"),
        ([clevr_object(0, rotation=True)], r"object 0: 'rotation': expected a finite number, got True"),
        ([clevr_object(0, shape=1)], r"object 0: 'shape': expected a string, got 1"),
        ([clevr_object(0, color="pink\n")], r"object 0: 'color': expected one of gray, .*, got 'pink\\n'"),
    ],
)
def test_objects_that_are_not_clevrs_are_named(tmp_path, objects, message):
    path = put_objects(write_clevr(tmp_path), objects)
    with pytest.raises(DataError, match=rf"^{path}: scene 0: {message}$"):
        ClevrScenes(tmp_path)[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "readable JSON file, got JSONDecodeError: Expecting value"),
        ('{"scenes": [', "readable JSON file, got JSONDecodeError"),
        ("[" * 100_000, "readable JSON file, got RecursionError"),
        (b"\x80\x81\x82\x83", "readable JSON file, got UnicodeDecodeError"),
        ("1" * 5000, "readable JSON file, got ValueError"),
        ("[]", "a JSON object, got a list of length 0"),
        ("{}", r"'scenes': expected a list, got nothing"),
        ('{"scenes": [1]}', r"scene 0: 'image_filename': expected a string, got nothing"),
    ],
)
def test_files_of_scenes_that_are_none_are_named(tmp_path, text, message):
    path = put(scenes_file(write_clevr(tmp_path)), text)
    with pytest.raises(DataError, match=rf"^{path}: .*{message}") as caught:
        ClevrScenes(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_split_that_is_not_there_is_named(tmp_path):
    put(scenes_file(tmp_path, "val"), '{"scenes": []}')
    with pytest.raises(DataError, match=rf"^{tmp_path}/images/val: expected a folder that can be listed"):
        ClevrScenes(tmp_path, "val")
    with pytest.raises(DataError, match=rf"^{tmp_path}/images: expected folders train, val and test, found none"):
        ClevrScenes(tmp_path, "all")


# ClevrTex.


def test_masks_are_the_objects_in_their_order_and_colour_is_told_where_it_is_seen(tmp_path):
    for variant in ("full", "vbg"):
        dataset = ClevrTexScenes(write_clevrtex(tmp_path / variant, 20, variant), "all")
        assert (dataset.info.name, dataset.info.num_slots) == (f"clevrtex_{variant}", 11)
        for i, scene in enumerate(dataset):
            np.testing.assert_array_equal(scene.image, picture(i))
            assert scene.mask.max() == scene.factors["num_objects"] == i % 10
            assert ("color" in scene.factors) == (variant == "vbg")


def test_a_material_has_one_code_in_all_scenes_and_variants(tmp_path):
    codes = {}
    for variant in ("full", "outd"):
        for scene in ClevrTexScenes(write_clevrtex(tmp_path / variant, 20, variant), "all"):
            for e in range(int(scene.factors["num_objects"])):
                assert codes.setdefault(e, scene.factors["material"][e]) == scene.factors["material"][e]
            assert codes.setdefault("ground", scene.factors["ground_material"]) == scene.factors["ground_material"]
    assert len(set(map(int, codes.values()))) == len(codes) == 10
    assert 0 not in codes.values()


def test_the_first_tenth_is_for_test_and_the_second_for_validation(tmp_path):
    root = write_clevrtex(tmp_path, 29)
    numbers = {}
    for split in ("test", "val", "train"):
        dataset = ClevrTexScenes(root, split)
        numbers[split] = [int(dataset.source(i)[-10:-4]) for i in range(len(dataset))]
    assert numbers == {"test": [0, 1], "val": [2, 3, 4], "train": list(range(5, 29))}


def test_what_nothing_is_trained_on_is_all_for_test(tmp_path):
    root = write_clevrtex(tmp_path, 5, "outd")
    assert len(ClevrTexScenes(root, "test")) == len(ClevrTexScenes(root, "all")) == 5
    with pytest.raises(
        DataError, match=rf"^{root}: expected split test or all, since outd is not for training, got val$"
    ):
        ClevrTexScenes(root, "val")


def test_few_scenes_can_only_be_taken_whole(tmp_path):
    root = write_clevrtex(tmp_path, 9)
    with pytest.raises(DataError, match=r": expected at least 10 scenes to divide into test, val and train, got 9$"):
        ClevrTexScenes(root, "test")
    assert len(ClevrTexScenes(root, "all")) == 9


def test_the_pictures_may_lie_in_one_folder(tmp_path):
    root = write_clevrtex(tmp_path, 12)
    for folder in (root / "0", root / "1"):
        for file in folder.iterdir():
            file.rename(root / file.name)
        folder.rmdir()
    assert len(open_dataset(root, "all")) == 12


def test_a_number_twice_two_variants_a_missing_mask_and_missing_factors_are_named(tmp_path):
    root = write_clevrtex(tmp_path, 12)
    first = root / "0/CLEVRTEX_full_000000.png"
    twin = put(root / "1" / first.name, first.read_bytes())
    with pytest.raises(DataError, match=rf"^{twin}: expected each number once, found {first} too$"):
        ClevrTexScenes(root)
    twin.rename(root / "1/CLEVRTEX_camo_000000.png")
    with pytest.raises(DataError, match=r": expected pictures .* of one variant, found camo, full$"):
        ClevrTexScenes(root)
    (root / "1/CLEVRTEX_camo_000000.png").unlink()
    for suffix in (".json", "_flat.png"):
        missing = root / f"0/CLEVRTEX_full_000003{suffix}"
        missing.unlink()
        with pytest.raises(DataError, match=rf"^{missing}: expected .*, got FileNotFoundError"):
            ClevrTexScenes(root, "all")[3]


def test_a_label_beyond_ten_objects_is_named(tmp_path):
    root = write_clevrtex(tmp_path, 3)
    path = root / "0/CLEVRTEX_full_000001_flat.png"
    put(path, png(np.full((16, 16), 11, np.uint8), PALETTE))
    with pytest.raises(DataError, match=rf"^{path}: expected mask labels of 0 to 10, got 11$"):
        ClevrTexScenes(root, "all")[1]
