import numpy as np
import pytest
from layouts import mask, picture, put, write_shapestacks
from png_bytes import png

from psa.data import ShapeStacksScenes
from psa.errors import DataError


@pytest.fixture
def root(tmp_path):
    return write_shapestacks(tmp_path / "shapestacks")


def test_pictures_masks_and_factors_are_those_written(root):
    dataset = ShapeStacksScenes(root, "val")
    assert (dataset.info.num_slots, dataset.info.background_labels) == (7, (0,))
    assert len(dataset) == 9
    for i, scene in enumerate(dataset):
        recording, camera, light = 3 + i // 3, [1, 12, 12][i % 3], [1, 12, 50][i % 3]
        np.testing.assert_array_equal(scene.image, picture(100 * recording + light))
        np.testing.assert_array_equal(scene.mask, mask(100 * recording + camera, 7))
        expected = {"num_objects": 2 + recording % 5, "vcom": recording % 3, "vpsf": 0, "camera": camera}
        assert {name: int(value) for name, value in scene.factors.items()} == expected


def test_grays_that_a_colour_map_rounded_down_are_labels_all_the_same(root):
    labels = mask(0, 7)
    grays = np.maximum(32 * labels.astype(int) - (labels % 2), 0).astype(np.uint8)
    for path in (root / "recordings").glob("*/*.map"):
        put(path, png(grays))
    np.testing.assert_array_equal(ShapeStacksScenes(root)[0].mask, labels)


@pytest.mark.parametrize(
    ("gray", "message"),
    [(33, "expected gray levels that are multiples of 32, got 33"), (224, "expected mask labels of 0 to 6, got 7")],
)
def test_grays_that_are_no_labels_are_named(root, gray, message):
    path = next((root / "recordings").glob("env*v=0/*cam_1-*.map"))
    put(path, png(np.full((16, 16), gray, np.uint8)))
    with pytest.raises(DataError, match=rf"^{path}: {message}$"):
        ShapeStacksScenes(root)[0]


def test_a_picture_has_its_own_map_or_that_of_its_camera_or_there_is_an_error(root):
    folder = next((root / "recordings").glob("env*v=0"))
    own = put(folder / "iseg-w=5-f=2-l=1-c=unique-cam_12-mono-0.map", png(np.full((16, 16), 96, np.uint8)))
    assert (ShapeStacksScenes(root)[2].mask == 3).all()
    own.unlink()
    shared = folder / "iseg-w=0-f=0-l=0-c=original-cam_12-mono-0.map"
    shared.unlink()
    for index in (1, 2):
        with pytest.raises(DataError, match=rf"^{shared}: expected a readable PNG .* got FileNotFoundError"):
            ShapeStacksScenes(root)[index]


def test_names_that_tell_nothing_leave_factors_out(root):
    folder = next((root / "recordings").glob("env*v=0"))
    folder.rename(folder.with_name("tower-vpsf=4"))
    put(root / "splits/default/train.txt", "tower-vpsf=4")
    assert ShapeStacksScenes(root)[0].factors.keys() == {"vpsf", "camera"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("../../secret", r"train\.txt: expected the name of a file or folder, got '\.\./\.\./secret'"),
        ("/etc", r"train\.txt: expected the name of a file or folder, got '/etc'"),
        ("..", r"train\.txt: expected the name of a file or folder, got '\.\.'"),
        ("a\0b", r"train\.txt: expected the name of a file or folder, got 'a\\x00b'"),
        (" \n\n", r"train\.txt: expected names, one a line, got none"),
        (b"\xff\xfe\xff", r"train\.txt: expected a list of names, one a line, got UnicodeDecodeError: .*"),
        ("env_none", r"recordings/env_none: expected a folder that can be listed, got No such file or directory"),
        ("x" * 300, r"recordings/x*: expected a folder that can be listed, got File name too long"),
    ],
)
def test_lists_that_lead_nowhere_or_elsewhere_are_named(root, names, message):
    put(root / "splits/default/train.txt", names)
    with pytest.raises(DataError, match=rf"^{root}/[^\n]*{message}$"):
        ShapeStacksScenes(root)


def test_a_recording_without_pictures_and_a_missing_list_are_named(root):
    folder = next((root / "recordings").glob("env*v=0"))
    for path in folder.glob("rgb-*"):
        path.unlink()
    with pytest.raises(DataError, match=rf"^{folder}: expected pictures rgb-\*\.png, found none$"):
        ShapeStacksScenes(root)
    (root / "splits/default/eval.txt").unlink()
    with pytest.raises(DataError, match=r"eval\.txt: expected a list of names, one a line, got FileNotFoundError"):
        ShapeStacksScenes(root, "val")
