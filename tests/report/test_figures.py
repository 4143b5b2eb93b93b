import base64
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from psa.report import SceneView, curves_figure, decomposition_figure, pictures
from psa.report.curves import curves_png, draw_curve
from psa.report.figures import decomposition_png


def stripes(num_slots: int = 3, *, truth: bool = True, size: int = 12) -> SceneView:
    """A scene of vertical stripes, a slot each, with hard masks; slot k's picture is all of one grey."""
    labels = np.broadcast_to(np.arange(size) * num_slots // size, (size, size))
    masks = (labels == np.arange(num_slots)[:, None, None]).astype(np.float32)
    greys = (40 * np.arange(num_slots) + 20).astype(np.uint8)
    slot_rgb = np.broadcast_to(greys[:, None, None, None], (num_slots, size, size, 3))
    image = np.repeat(greys[labels][..., None], 3, axis=-1)
    weights = masks.mean((1, 2))
    return SceneView(image, image, labels.astype(np.int64) if truth else None, masks, slot_rgb, weights, 1.0)


def opened(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


@pytest.mark.parametrize("num_slots", [1, 3, 7])
@pytest.mark.parametrize("truth", [True, False])
def test_headline_picture_holds_every_part_pixel_for_pixel(num_slots: int, truth: bool) -> None:
    scene = stripes(num_slots, truth=truth)
    picture = opened(decomposition_png([scene]))
    tile, left, top = 192, 24, 12 + 50
    found = []
    for column in range((4 if truth else 3) + num_slots):
        offset = left + column * (tile + 10) + (24 if column >= (4 if truth else 3) else 0)
        found.append(picture[top : top + tile, offset : offset + tile])
    enlarged = scene.image.repeat(tile // 12, 0).repeat(tile // 12, 1)
    assert np.array_equal(found[0], enlarged)
    assert np.array_equal(found[1], enlarged)
    assert len(np.unique(found[2].reshape(-1, 3), axis=0)) == num_slots
    assert not truth or np.array_equal(found[2], found[3])
    for slot, part in enumerate(found[-num_slots:]):
        owned = scene.masks[slot].repeat(tile // 12, 0).repeat(tile // 12, 1) == 1
        assert np.array_equal(part[owned], enlarged[owned])
        assert part[~owned].min(initial=255) > 220
    assert picture.shape[1] == offset + tile + 24


def test_headline_picture_takes_scenes_of_different_kinds() -> None:
    few, many = stripes(1, truth=False), stripes(5, size=20)
    alone = opened(decomposition_png([many]))
    together = opened(decomposition_png([many, few]))
    assert opened(decomposition_png([stripes(2, truth=False, size=20), many])).shape == together.shape
    assert together.shape[1] == alone.shape[1]
    assert together.shape[0] > 1.5 * alone.shape[0]
    tiles = slice(12 + 50, 12 + 50 + 200)
    assert np.array_equal(together[tiles], alone[tiles])


def test_large_images_are_made_smaller() -> None:
    assert opened(decomposition_png([stripes(2, size=800)])).shape[1] < 2000


def test_figures_are_saved_as_png(tmp_path: Path) -> None:
    decomposition_figure([stripes()], tmp_path / "figures" / "scenes.png")
    curves_figure({"loss": [(0, 1.0), (1, 0.5)]}, tmp_path / "figures" / "curves.png")
    for name in ("scenes", "curves"):
        assert (tmp_path / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="scenes: expected at least one, came none"):
        decomposition_figure([], tmp_path / "none.png")


@pytest.mark.parametrize(
    "curves",
    [
        {},
        {"loss": []},
        {"loss": [(5, 1.0)]},
        {"loss": [(0, float("nan")), (1, float("inf"))], "ari": [(0, 0.0), (1, 0.5)]},
        {"loss": [(0, 100.0), (1, 0.1)], "elbo": [(0, -1e6), (1, -10.0)], "ari": [(0, 0.5)]},
    ],
)
def test_any_curves_can_be_drawn(curves: dict[str, list[tuple[int, float]]]) -> None:
    panels = max(1, sum(bool(points) for points in curves.values()))
    height, width, _ = opened(curves_png(curves)).shape
    assert (width, height) == (920 * min(panels, 2), 500 * ((panels + 1) // 2))


def test_no_curve_is_said_in_words() -> None:
    assert opened(curves_png({})).min() < 200


@pytest.mark.parametrize(
    ("values", "scale"),
    [([5.0, 0.9, 0.1], "log"), ([0.01, 0.9], "linear"), ([5.0, 1.0], "linear"), ([5.0, -0.1], "linear")],
)
def test_only_positive_values_that_fall_far_have_a_logarithmic_axis(values: list[float], scale: str) -> None:
    axes = Figure().add_subplot()
    draw_curve(axes, "loss", list(enumerate(values)), "#000000")
    assert axes.get_yscale() == scale


@given(st.integers(5, 40), st.integers(5, 40))
def test_enlarged_pictures_have_no_new_colours(height: int, width: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 5, 4), dtype=np.uint8)
    enlarged = pictures.scaled(picture, height, width)
    assert enlarged.shape == (height, width, 4)
    assert {*map(bytes, enlarged.reshape(-1, 4))} <= {*map(bytes, picture.reshape(-1, 4))}


def test_figures_leave_no_global_state() -> None:
    code = "import sys, psa.report; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_equal_scenes_give_equal_bytes() -> None:
    assert decomposition_png([stripes()]) == decomposition_png([stripes()])


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 9))
def test_true_segments_stay_the_same_partition_when_numbered_like_slots(
    seed: int, num_slots: int, num_segments: int
) -> None:
    generator = np.random.default_rng(seed)
    true = generator.integers(-3, num_segments - 3, (6, 5))
    slots = generator.integers(0, num_slots, (6, 5))
    numbered = pictures.labels_like(true, slots, num_slots)
    pairs = set(zip(true.ravel().tolist(), numbered.ravel().tolist(), strict=True))
    assert len(pairs) == len(np.unique(true)) == len(np.unique(numbered))
    assert numbered.min() >= 0
    assert np.array_equal(pictures.labels_like(7 - 2 * slots, slots, num_slots), slots)


def test_a_missed_object_has_a_colour_that_no_slot_has() -> None:
    slots = np.zeros((4, 4), dtype=np.int64)
    true = np.zeros((4, 4), dtype=np.int64)
    true[1:3, 1:3] = 5
    numbered = pictures.labels_like(true, slots, 2)
    assert sorted(np.unique(numbered)) == [0, 2]
    colours = pictures.scene_colours(slots, 2)
    shown = pictures.label_picture(numbered, colours)
    assert pictures.rgb(pictures.colour(2)).tolist() == shown[1, 1].tolist()
    assert pictures.colour(2) not in colours


def test_slots_keep_their_colours_but_for_the_one_around_the_image() -> None:
    labels = np.full((4, 4), 2)
    labels[1:3, 1:3] = 0
    colours = pictures.scene_colours(labels, 4)
    assert colours[:2] + colours[3:] == [pictures.colour(slot) for slot in (0, 1, 3)]
    assert colours[2] not in [pictures.colour(slot) for slot in range(30)]


def test_colours_do_not_repeat() -> None:
    colours = [pictures.colour(index) for index in range(30)]
    assert len({*colours}) == 30
    assert all(len(hexadecimal) == 7 for hexadecimal in colours)


def test_png_data_uri_holds_the_picture() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    head, _, body = pictures.png_data_uri(picture).partition(",")
    assert head == "data:image/png;base64"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(body)))), picture)
