import colorsys

import numpy as np
import pytest
import tiny
from archives import dsprites, write_dsprites, write_npz
from command_line import assert_says_one_line, run
from fuzzing import fuzz
from scipy.stats import chisquare, kstest

from psa.data import DspritesScenes, MultiDsprites, MultiDspritesOptions, open_dataset
from psa.data.colours import from_hsv
from psa.data.dsprites_shapes import COUNTS, HEART, HEART_MIDDLE, ProceduralShapes
from psa.data.multi_dsprites import FACTORS, VARIANTS
from psa.errors import ConfigError, DataError


def contents(scenes: MultiDsprites, stop: int | None = None) -> list[bytes]:
    return [values[:stop].tobytes() for values in (scenes.images, scenes.masks, *scenes.factors.values())]


def inside(shape: int, x: float, y: float) -> bool:
    """Whether a point, y down, is in the unturned shape at scale 1: the definitions, not the generator's arrays."""
    if shape == 1:
        return abs(x) <= 11 and abs(y) <= 11
    if shape == 2:
        return (x / 15) ** 2 + (y / 9) ** 2 <= 1
    x, y = x / HEART, HEART_MIDDLE - y / HEART
    return (x * x + y * y - 1) ** 3 <= x * x * y**3


def own_pixels(factors: dict[str, np.ndarray], e: int) -> np.ndarray:
    angle, scale, shape = float(factors["orientation"][e]), float(factors["scale"][e]), int(factors["shape"][e])
    x, y = (16.5 + 31 * round(31 * float(factors[name][e])) / 31 for name in ("x", "y"))
    pixels = np.zeros((64, 64), bool)
    for row, column in np.ndindex(64, 64):
        dx, dy = (column + 0.5 - x) / round(scale, 2), (row + 0.5 - y) / round(scale, 2)
        turned = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
        pixels[row, column] = inside(shape, *turned)
    return pixels


def test_rendering_equals_a_loop_over_pixels():
    """Up to pixels whose middle is on an outline, which the rounding of angles decides."""
    for scene in MultiDsprites(num_scenes=4, seed=5):
        mask = np.zeros((64, 64), int)
        for e in range(int(scene.factors["num_objects"])):
            mask[own_pixels(scene.factors, e)] = e + 1
        assert (scene.mask != mask).sum() <= 4


def test_every_row_of_the_shapes_fits_into_the_frame_and_is_where_its_latents_say():
    shapes = ProceduralShapes()
    assert len(shapes) == 737_280
    rows = np.random.default_rng(0).integers(0, len(shapes), 300)
    cover, latents = shapes.cover(rows), shapes.latents(rows)
    areas = cover.sum(axis=(1, 2))
    assert (areas > 0.18 * 400).all()
    across = (cover.sum(axis=1) * (np.arange(64) + 0.5)).sum(axis=1) / areas
    down = (cover.sum(axis=2) * (np.arange(64) + 0.5)).sum(axis=1) / areas
    assert np.abs(across - 16.5 - 31 * latents[:, 3]).max() < 0.5
    assert np.abs(down - 16.5 - 31 * latents[:, 4]).max() < 0.5
    corners = np.ravel_multi_index(np.meshgrid(*(range(n) for n in COUNTS[:3]), (0, 31), (0, 31)), COUNTS).ravel()
    whole = np.ravel_multi_index((*np.unravel_index(corners, COUNTS)[:3], 15, 15), COUNTS)
    assert np.array_equal(shapes.cover(corners).sum(axis=(1, 2)), shapes.cover(whole).sum(axis=(1, 2)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_has_its_numbers_of_objects_and_its_colours(variant):
    scenes = MultiDsprites(MultiDspritesOptions(variant), num_scenes=256)
    fewest, most = VARIANTS[variant]
    counts = np.bincount(scenes.factors["num_objects"], minlength=most + 1)
    assert counts[:fewest].sum() == 0
    assert len(counts) == most + 1
    assert chisquare(counts[fewest:]).pvalue > 1e-6
    assert (scenes.info.num_slots, scenes.info.background_labels) == (most + 1, (0,))
    grounds = np.array([scene.image[scene.mask == 0][0] for scene in scenes])
    for scene, ground in zip(scenes, grounds, strict=True):
        assert (scene.image[scene.mask == 0] == ground).all()
        for e in range(int(scene.factors["num_objects"])):
            pixels = scene.image[scene.mask == e + 1]
            assert len(pixels) > 0
            assert (pixels == np.round(255 * scene.factors["color"][e])).all()
    if variant == "binarized":
        assert not grounds.any()
        assert set(np.unique(scenes.images)) == {0, 255}
    else:
        assert (grounds == grounds[:, :1]).all() == (variant == "colored_on_grayscale")
        assert kstest(grounds[:, 0] / 255, "uniform").pvalue > 1e-6


def test_hues_are_uniform_or_parted_into_seen_and_unseen():
    found = {}
    for hues in ("all", "seen", "unseen"):
        factors = MultiDsprites(MultiDspritesOptions(hues=hues), num_scenes=256).factors
        present = factors["visibility"] > 0
        found[hues] = np.array([colorsys.rgb_to_hsv(*color) for color in factors["color"][present].tolist()])
    for hsv in found.values():
        assert hsv[:, 1:].min() >= 0.49
    assert kstest(found["all"][:, 0], "uniform").pvalue > 1e-6
    assert kstest(found["seen"][:, 0] * 3 / 2, "uniform").pvalue > 1e-6
    assert kstest(found["unseen"][:, 0] * 3 - 2, "uniform").pvalue > 1e-6
    rgb = MultiDsprites(MultiDspritesOptions("colored_on_colored", hues="unseen"), num_scenes=64).factors
    colors = rgb["color"][rgb["visibility"] > 0]
    assert (colors[:, 1] < colors[:, [0, 2]].min(axis=1)).all()


def test_hsv_becomes_rgb_as_colorsys_has_it():
    hsv = np.random.default_rng(0).random((200, 3))
    expected = np.array([colorsys.hsv_to_rgb(*row) for row in hsv.tolist()])
    assert np.abs(from_hsv(hsv) / 255 - expected).max() <= 0.5 / 255 + 1e-12


def test_occluded_objects_show_the_share_asked_for():
    options = MultiDspritesOptions(min_objects=1, max_objects=8, min_visible=0.3, max_visible=0.6)
    factors = MultiDsprites(options, num_scenes=128).factors
    present = factors["visibility"] > 0
    shown = np.where(present, factors["shown"], 2.0).min(axis=1)
    assert (shown >= 0.3).all()
    assert (shown[factors["num_objects"] > 1] <= 0.6).all()
    assert (shown[factors["num_objects"] == 1] == 1).all()


def test_camouflage_moves_every_colour_a_share_of_the_way_to_the_ground():
    plain, hidden = (
        MultiDsprites(MultiDspritesOptions("colored_on_colored", camouflage=share), num_scenes=30)
        for share in (0.0, 0.75)
    )
    assert np.array_equal(plain.masks, hidden.masks)
    for one, other in zip(plain, hidden, strict=True):
        ground = one.image[one.mask == 0][0].astype(float)
        assert (other.image[other.mask == 0] == ground).all()
        assert np.abs(other.image - ground - 0.25 * (one.image - ground)).max() <= 0.5


def test_a_scene_is_a_function_of_seed_split_and_number_alone():
    few, many = MultiDsprites(num_scenes=7), MultiDsprites(num_scenes=300)
    assert contents(few) == contents(many, 7)
    assert contents(few) != contents(MultiDsprites(num_scenes=7, seed=1))
    assert contents(few) != contents(MultiDsprites(None, "val", num_scenes=7))


def test_absent_objects_are_zero_in_every_factor():
    factors = MultiDsprites(num_scenes=50).factors
    absent = factors["visibility"] == 0
    assert absent.any()
    assert factors.keys() == FACTORS.keys()
    for name, values in factors.items():
        if name != "num_objects":
            assert not values[absent].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "colored"}, r"^data\.variant: expected one of binarized, .*, got 'colored'$"),
        ({"max_objects": 17}, r"^data\.max_objects: expected an integer from 1 to 16, got 17$"),
        ({"max_objects": 1}, r"^data\.min_objects: expected an integer from 1 to 1, got 2$"),
        ({"hues": "palette"}, r"^data\.hues: expected one of all, seen, unseen, got 'palette'$"),
        ({"variant": "binarized", "hues": "seen"}, r"^data\.hues: expected all for binarized scenes, .*, got 'seen'$"),
        ({"camouflage": "much"}, r"^data\.camouflage: expected a number from 0 to 1, got 'much'$"),
        ({"min_visible": 0.5, "max_visible": 0.4}, r"^data\.max_visible: expected at least data\.min_visible, 0\.5"),
        ({"shapes": 3}, r"^data\.shapes: expected the path of the dSprites file, got 3$"),
    ],
)
def test_options_outside_their_support_are_refused(options, message, unchecked):
    with pytest.raises(ConfigError, match=message):
        open_dataset("multi-dsprites", **options)


# Scenes of a file's shapes.


@pytest.fixture
def file(tmp_path):
    return write_dsprites(tmp_path)


@pytest.mark.parametrize("deflated", [False, True])
def test_objects_of_a_file_are_its_rows(tmp_path, deflated):
    arrays = dsprites()
    scenes = open_dataset(write_dsprites(tmp_path, deflated=deflated), "val", num_scenes=20, min_objects=1)
    assert isinstance(scenes, DspritesScenes)
    assert (scenes.info.name, scenes.info.size, scenes.info.num_slots) == ("dsprites", (16, 16), 6)
    for scene in scenes:
        mask = np.zeros((16, 16), int)
        names = ("shape", "scale", "orientation", "x", "y")
        for e in range(int(scene.factors["num_objects"])):
            latents = np.array([scene.factors[name][e] for name in names])
            (row,) = np.flatnonzero(np.abs(arrays["latents_values"][:, 1:] - latents).max(axis=1) < 1e-6)
            mask[arrays["imgs"][row] > 0] = e + 1
        assert np.array_equal(scene.mask, mask)


def test_the_generator_takes_a_files_shapes_by_option_and_all_is_the_three_splits(file):
    parts = [
        open_dataset("multi-dsprites", s, shapes=str(file), num_scenes=5, seed=3) for s in ("train", "val", "test")
    ]
    whole = open_dataset(file, "all", num_scenes=5, seed=3)
    assert len(whole) == 15
    for i, scene in enumerate(whole):
        assert np.array_equal(scene.image, parts[i // 5].images[i % 5])
    assert whole.source(6) == f"{file}: multi-dsprites(seed=3, split=val)[1]"
    assert np.array_equal(whole[-1].image, whole[14].image)
    with pytest.raises(IndexError):
        whole[15]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"imgs": np.zeros((108, 16, 15), np.uint8)},
            r"\['imgs'\]: expected uint8 of shape \(N, side, side\), got uint8",
        ),
        ({"imgs": np.zeros((108, 16, 16))}, r"\['imgs'\]: expected uint8 .*, got float64 of shape \(108, 16, 16\)$"),
        ({"imgs": np.zeros((108, 16, 16), np.uint8)}, r"\['imgs'\]: expected shapes, got black images$"),
        ({"imgs": np.full((108, 16, 16), 255, np.uint8)}, r"\['imgs'\]\[\d+\]: expected pixels of 0 or 1, got 255$"),
        ({"latents_values": np.ones((107, 6))}, r"\['latents_values'\]: expected floats of shape \(108, 6\), got"),
        ({"latents_values": np.full((108, 6), np.nan)}, r"\['latents_values'\]: expected finite numbers and shapes"),
        ({"latents_values": np.full((108, 6), 4.0)}, r"\['latents_values'\]: expected finite numbers and shapes"),
    ],
)
def test_a_file_of_another_content_is_refused_with_the_array_named(tmp_path, changes, message):
    path = write_npz(tmp_path / "dsprites.npz", {**dsprites(), **changes})
    with pytest.raises(DataError, match=rf"dsprites\.npz{message}"):
        open_dataset(path, num_scenes=3)


def test_damage_is_refused(tmp_path):
    found = fuzz(
        tmp_path, write_dsprites, lambda folder: DspritesScenes(folder / "dsprites.npz", num_scenes=3), range(20)
    )
    assert found.total() == 20
    assert found["refused"] >= 10


def test_training_takes_a_step_on_a_file_and_damage_is_one_line(tmp_path, monkeypatch, file):
    # The page is most of the time of so short a run.
    monkeypatch.setattr("psa.inference.sessions.write_run_report", lambda *_, **__: None)
    settings = tiny.options([*tiny.SETTINGS, "data.num_scenes=20", "data.variant=binarized", "training.steps=1"])
    result = run("train", "--data", file, "--out", tmp_path / "run", "--json", *settings)
    assert result.code == 0, result.err
    assert np.isfinite(result.json["mse"])
    file.write_bytes(file.read_bytes()[:-300])
    result = run("train", "--data", file, "--out", tmp_path / "other", *settings)
    assert_says_one_line(result, 2, file)
