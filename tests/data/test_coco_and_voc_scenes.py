import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from command_line import run
from layouts import PALETTE, SIZE, mask, put, put_jpeg, run_lengths, smooth_picture, square, write_coco, write_voc
from png_bytes import png

from psa.data import CocoScenes, Preparation, VocScenes, collate
from psa.data.coco_masks import draw
from psa.errors import DataError
from psa.metrics import foreground_ari


def annotations(root: Path) -> Path:
    return root / "annotations/instances_val2017.json"


def change(root: Path, **parts: Any) -> Path:
    path = annotations(root)
    return put(path, json.dumps(json.loads(path.read_text()) | parts))


def outlined(*segmentations: object, category: int = 18, **changes: object) -> list[dict[str, Any]]:
    """As objects of the first picture."""
    common = {"image_id": 3, "category_id": category, "iscrowd": 0}
    return [common | {"segmentation": segmentation} | changes for segmentation in segmentations]


def painted(*boxes: tuple[int, int, int, int, int]) -> np.ndarray:
    """Labels from (label, left, top, width, height), the later over the earlier."""
    labels = np.zeros((SIZE, SIZE), np.int64)
    for label, left, top, width, height in boxes:
        labels[top : top + height, left : left + width] = label
    return labels


# COCO.


@pytest.mark.parametrize(
    ("masks", "crowd", "labels", "num_slots"), [("instance", 255, (1, 2, 3), None), ("class", 1, (1, 2, 3), 4)]
)
def test_pictures_masks_and_categories_are_those_written(tmp_path, masks, crowd, labels, num_slots):
    dataset = CocoScenes(write_coco(tmp_path), "test", masks=masks)
    assert dataset.info.label_kind == masks
    assert (dataset.info.background_labels, dataset.info.num_slots) == ((0, 255), num_slots)
    assert dataset.info.factors["category"] == "1 person, 2 dog, 3 toothbrush; 0 no object"
    for i, scene in enumerate(dataset):
        count = i % 4
        assert np.abs(scene.image.astype(int) - smooth_picture(i)).max() <= 4
        boxes = [(label, 5 * e, 2, 4, 4) for e, label in enumerate(labels[:count])]
        np.testing.assert_array_equal(scene.mask, painted(*boxes, *[(crowd, 2, 13, 14, 3)] * (count == 3)))
        assert scene.factors["num_objects"] == count
        np.testing.assert_array_equal(scene.factors["category"], [1, 2, 3][:count] + [0] * (3 - count))


def test_of_objects_that_overlap_the_smaller_is_seen_and_over_a_crowd_any(tmp_path):
    root = write_coco(tmp_path)
    crowd = run_lengths(painted((1, 3, 3, 4, 4)))
    objects = outlined([square(4, 4, 2)], [square(2, 2, 8)])
    change(root, annotations=objects + outlined(crowd, iscrowd=1))
    np.testing.assert_array_equal(CocoScenes(root, "test")[0].mask, painted((2, 2, 2, 8, 8), (1, 4, 4, 2, 2)))
    change(root, annotations=outlined(crowd, iscrowd=1) + objects[:1])
    np.testing.assert_array_equal(CocoScenes(root, "test")[0].mask, painted((255, 3, 3, 4, 4), (1, 4, 4, 2, 2)))


def test_an_object_may_have_several_polygons_or_none_with_an_area(tmp_path):
    root = write_coco(tmp_path)
    change(root, annotations=outlined([square(0, 0, 2), square(8, 8, 4), [1, 1, 2, 2]], [[5, 5, 6, 6]], []))
    scene = CocoScenes(root, "test")[0]
    np.testing.assert_array_equal(scene.mask, painted((1, 0, 0, 2, 2), (1, 8, 8, 4, 4)))
    assert scene.factors["num_objects"] == 3


def test_no_object_has_the_label_of_void_pixels(tmp_path):
    root = write_coco(tmp_path)
    change(root, annotations=outlined(*[[]] * 253, *[[square(5 * e, 0, 4)] for e in range(3)]))
    scene = CocoScenes(root, "test")[0]
    np.testing.assert_array_equal(
        scene.mask, painted(*[(label, 5 * e, 0, 4, 4) for e, label in enumerate((254, 256, 257))])
    )
    assert scene.factors["category"].shape == (256,)
    change(
        root,
        categories=[{"id": i, "name": "thing"} for i in range(300)],
        annotations=outlined([square(0, 0, 4)], category=299),
    )
    dataset = CocoScenes(root, "test", masks="class")
    assert dataset[0].mask[0, 0] == 301
    assert dataset.info.num_slots == 302


def test_run_lengths_as_numbers_and_compressed_are_alike():
    import pycocotools.mask as tools

    for seed in range(5):
        pixels = mask(seed, 2, 12) > 0
        compressed = tools.encode(np.asfortranarray(pixels.astype(np.uint8)))
        text = {"size": [12, 12], "counts": compressed["counts"].decode()}
        np.testing.assert_array_equal(draw(run_lengths(pixels), (12, 12), "a"), pixels)
        np.testing.assert_array_equal(draw(text, (12, 12), "a"), pixels)


BAD = {
    "no outlines": (None, r"'size': expected a list, got nothing"),
    "a number": ([3], r"expected a polygon \[x1, y1, x2, y2, \.\.\.\], got another list"),
    "an odd list": ([[1, 2, 3, 4, 5, 6, 7]], r"expected a polygon .*, got another list"),
    "a word in a list": ([[1, 2, 3, 4, 5, "6"]], r"expected a polygon .*, got another list"),
    "far away": ([[0, 0, 4, 4, 1e9, 4]], r"expected a point near the picture, got 1000000000\.0"),
    "no number": ([[0, 0, 4, 4, float("nan"), 4]], r"expected a point near the picture, got nan"),
    "another size": (
        {"size": [16, 17], "counts": [272]},
        r"'size': expected \[16, 16\] as the picture's, got \[16, 17\]",
    ),
    "too few": ({"size": [16, 16], "counts": [10, 10]}, r"'counts': expected run lengths of 256 pixels, got others"),
    "too many": ({"size": [16, 16], "counts": [2**32, 10]}, r"'counts': expected run lengths of 256 pixels"),
    "negative": ({"size": [16, 16], "counts": [-10, 266]}, r"'counts': expected run lengths of 256 pixels"),
    "not whole": ({"size": [16, 16], "counts": [0.5, 255.5]}, r"'counts': expected run lengths of 256 pixels"),
    "no counts": ({"size": [16, 16]}, r"'counts': expected run lengths of 256 pixels"),
    "damaged": ({"size": [16, 16], "counts": "oooooooo"}, r"expected sound run lengths, got Invalid RLE"),
    "no ASCII": ({"size": [16, 16], "counts": "\xff"}, r"'counts': expected run lengths of 256 pixels"),
}


@pytest.mark.parametrize("name", BAD)
def test_outlines_that_are_none_name_the_annotation(tmp_path, name):
    segmentation, message = BAD[name]
    path = change(write_coco(tmp_path), annotations=outlined([square(0, 0, 4)], segmentation))
    with pytest.raises(DataError, match=rf"^{path}: annotation 1: .*{message}") as caught:
        CocoScenes(tmp_path, "test")[0]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"images": []}, r"expected images, found none"),
        ({"images": [3]}, r"image 0: 'file_name': expected a string, got nothing"),
        (
            {"images": [{"id": 1, "file_name": "../x", "height": 4, "width": 4}]},
            r"image 0: expected the name of a file",
        ),
        (
            {"images": [{"id": 1, "file_name": "x", "height": 10**5, "width": 10**4}]},
            r"image 0: expected a picture of 1 to",
        ),
        ({"images": [{"id": 1, "file_name": "x", "height": -1, "width": -1}]}, r"image 0: expected a picture of 1 to"),
        ({"annotations": None}, r"'annotations': expected a list, got nothing"),
        ({"annotations": [{"image_id": 99}]}, r"annotation 0: expected the id of an image, got 99"),
        ({"annotations": outlined([], category=2)}, r"annotation 0: expected the id of a category, got 2"),
        (
            {"annotations": outlined([], category="dog")},
            r"annotation 0: 'category_id': expected an integer, got a string",
        ),
        ({"categories": [{"id": 1}]}, r"category 0: 'name': expected a string, got nothing"),
    ],
)
def test_annotations_of_another_layout_are_named(tmp_path, parts, message):
    path = change(write_coco(tmp_path), **parts)
    with pytest.raises(DataError, match=rf"^{path}: {message}"):
        CocoScenes(tmp_path, "test")[0]


def test_two_files_must_agree_on_the_categories(tmp_path):
    path = change(write_coco(tmp_path), categories=[{"id": 1, "name": "person"}], annotations=[])
    with pytest.raises(DataError, match=rf"^{path}: expected the same categories as in the other file, got others$"):
        CocoScenes(tmp_path, "all")


def test_a_picture_of_another_size_than_its_annotations_say_is_named(tmp_path):
    path = change(
        write_coco(tmp_path), images=[{"id": 3, "file_name": f"{0:012}.jpg", "height": 8, "width": 8}], annotations=[]
    )
    with pytest.raises(
        DataError, match=rf"^{path}: image 0: expected 16x16 .* as its image 000000000000\.jpg, got 8x8"
    ):
        CocoScenes(tmp_path, "test")[0]


def test_without_pycocotools_one_line_says_what_to_install(tmp_path, monkeypatch):
    root = write_coco(tmp_path)
    original = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("pycocotools"):
            raise ImportError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        DataError, match=rf"^{root}: expected pycocotools .* found none; pip install 'psa-slots\[coco\]'$"
    ):
        CocoScenes(root)


# VOC.


@pytest.mark.parametrize(
    ("masks", "labels", "num_slots"), [("instance", [0, 1, 2, 255], None), ("class", [0, 15, 20, 255], 21)]
)
def test_masks_are_objects_or_classes_and_void_is_255(tmp_path, masks, labels, num_slots):
    dataset = VocScenes(write_voc(tmp_path), "test", masks=masks)
    assert dataset.info.label_kind == masks
    assert (dataset.info.background_labels, dataset.info.num_slots) == ((0, 255), num_slots)
    for i, scene in enumerate(dataset):
        np.testing.assert_array_equal(scene.mask, np.array(labels)[mask(6 + i, 4)])
        assert np.abs(scene.image.astype(int) - smooth_picture(6 + i)).max() <= 4


def test_void_pixels_do_not_count_in_the_foreground_score(tmp_path):
    dataset = VocScenes(write_voc(tmp_path), "test")
    batch = collate(list(dataset))
    predicted = batch.masks.clone()
    void = batch.masks == 255
    predicted[void] = torch.arange(int(void.sum())) % 7
    scores = foreground_ari(predicted, batch.masks, dataset.info.background_labels)
    torch.testing.assert_close(scores, torch.ones_like(scores))
    assert (foreground_ari(predicted, batch.masks, (0,)) < 0.9).all()


def test_a_class_beyond_twenty_is_named(tmp_path):
    root = write_voc(tmp_path)
    path = put(root / "SegmentationClass/2007_000006.png", png(np.full((SIZE, SIZE), 21, np.uint8), PALETTE))
    with pytest.raises(DataError, match=rf"^{path}: expected mask labels of 0 to 20, got 21$"):
        VocScenes(root, "test", masks="class")[0]


def test_pictures_of_several_sizes_need_one(tmp_path):
    root = write_voc(tmp_path)
    for folder in ("SegmentationObject", "SegmentationClass"):
        put(root / folder / "2007_000007.png", png(np.zeros((8, 20), np.uint8), PALETTE))
    path = put_jpeg(root / "JPEGImages/2007_000007.jpg", np.zeros((8, 20, 3), np.uint8))
    with pytest.raises(DataError, match=rf"^{path}: expected 16x16 .* like 2007_000006\.jpg, got 8x20 .*; data\.size="):
        VocScenes(root, "test")[1]
    assert {scene.mask.shape for scene in VocScenes(root, "test", Preparation((8, 8)))} == {(8, 8)}


def test_a_picture_in_both_lists_is_named(tmp_path):
    root = write_voc(tmp_path)
    put(root / "ImageSets/Segmentation/val.txt", "2007_000002\n2007_000006\n")
    with pytest.raises(DataError, match=r"val\.txt: expected no picture of train\.txt, found 2007_000002$"):
        VocScenes(root, "all")


def test_the_masks_option_reaches_the_reader_through_the_configuration(tmp_path):
    root = write_voc(tmp_path)
    put(root / "SegmentationClass/2007_000000.png", b"")
    settings = tiny.options([*tiny.SETTINGS, "training.steps=1", "data.masks=class"])
    result = run("train", "--data", root, "--out", tmp_path / "run", *settings)
    assert result.code == 2
    assert "SegmentationClass/2007_000000.png: expected a readable PNG" in result.err
