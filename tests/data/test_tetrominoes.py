import colorsys
import itertools

import numpy as np
import pytest
import tiny
from command_line import run
from scipy.stats import chisquare

from psa.data import Preparation, Tetrominoes, TetrominoOptions, open_dataset
from psa.data.tetrominoes import BLACK, CELL, FACTORS, orientations
from psa.errors import ConfigError


def contents(scenes: Tetrominoes, stop: int | None = None) -> list[bytes]:
    return [values[:stop].tobytes() for values in (scenes.images, scenes.masks, *scenes.factors.values())]


def fixed_tetrominoes() -> set[frozenset[tuple[int, int]]]:
    """Every connected set of four squares up to shifts, found by growing from one square."""
    grown = {frozenset({(0, 0)})}
    for _ in range(3):
        steps = [(0, 1), (1, 0), (0, -1), (-1, 0)]
        grown = {s | {(y + dy, x + dx)} for s in grown for (y, x) in s for dy, dx in steps if (y + dy, x + dx) not in s}
    corners = {s: (min(y for y, _ in s), min(x for _, x in s)) for s in grown}
    return {frozenset((y - corners[s][0], x - corners[s][1]) for y, x in s) for s in grown}


def cells(pixels: np.ndarray) -> frozenset[tuple[int, int]]:
    """The squares of a piece from its pixels, which must fill them."""
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    box = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    coarse = box[::CELL, ::CELL]
    assert np.array_equal(box, coarse.repeat(CELL, 0).repeat(CELL, 1))
    return frozenset(map(tuple, np.argwhere(coarse).tolist()))


def test_the_orientations_are_all_fixed_tetrominoes():
    found = [frozenset(map(tuple, np.argwhere(piece).tolist())) for piece in orientations()]
    assert len(found) == 19
    assert set(found) == fixed_tetrominoes()


def test_every_scene_has_three_whole_pieces_of_the_shape_place_and_colour_that_its_factors_say():
    scenes = Tetrominoes(num_scenes=60)
    pieces = orientations()
    for scene in scenes:
        assert set(np.unique(scene.mask)) == {0, 1, 2, 3}
        for e in range(3):
            pixels = scene.mask == e + 1
            assert pixels.sum() == 4 * CELL**2
            assert cells(pixels) == frozenset(map(tuple, np.argwhere(pieces[scene.factors["shape"][e] - 1]).tolist()))
            for axis, name in ((0, "x"), (1, "y")):
                along = np.flatnonzero(pixels.any(axis=axis))
                assert abs(scene.factors[name][e] - (along[0] + along[-1] + 1) / 70) < 1e-6
            assert (scene.image[pixels] == np.round(255 * scene.factors["color"][e])).all()
        assert not scene.image[scene.mask == 0].any()
        assert (scene.factors["shown"] == 1).all()
        assert scene.factors.keys() == FACTORS.keys()


def test_colours_are_the_six_of_the_data_set_and_unseen_ones_lie_between_them():
    corners = set(itertools.product((0.0, 1.0), repeat=3)) - {(0.0,) * 3, (1.0,) * 3}
    colours = {}
    for hues in ("palette", "unseen"):
        scenes = Tetrominoes(TetrominoOptions(hues=hues), num_scenes=200)
        colours[hues] = set(map(tuple, scenes.factors["color"].reshape(-1, 3).astype(float).round(2).tolist()))
    assert colours["palette"] == corners
    assert colours["unseen"] == {
        tuple(round(round(255 * v) / 255, 2) for v in colorsys.hsv_to_rgb((2 * i + 1) / 12, 1, 1)) for i in range(6)
    }


def test_shapes_and_colours_are_uniform_and_places_reach_every_edge():
    scenes = Tetrominoes(num_scenes=1024)
    factors = scenes.factors
    for edge in (scenes.masks[:, 0], scenes.masks[:, -1], scenes.masks[:, :, 0], scenes.masks[:, :, -1]):
        assert edge.any()
    assert chisquare(np.bincount(factors["shape"].ravel(), minlength=20)[1:]).pvalue > 1e-6
    codes = (factors["color"] @ [4, 2, 1]).astype(int)
    assert chisquare(np.bincount(codes.ravel(), minlength=7)[1:7]).pvalue > 1e-6


@pytest.mark.parametrize(("least", "most"), [(0.0, 1.0), (0.25, 0.6), (0.5, 0.75)])
def test_overlapping_pieces_show_the_shares_asked_for(least, most):
    options = TetrominoOptions(2, 5, min_visible=least, max_visible=most)
    factors = Tetrominoes(options, num_scenes=256).factors
    present = factors["visibility"] > 0
    shown = np.where(present, factors["shown"], np.nan)
    assert (shown[present] >= max(least, 1e-9)).all()
    assert (np.nanmin(shown, axis=1) <= most).all()
    assert not factors["shown"][~present].any()


def test_shares_are_those_of_pixels():
    for scene in Tetrominoes(TetrominoOptions(min_visible=0.2, max_visible=0.8), num_scenes=40):
        for e in range(3):
            assert abs((scene.mask == e + 1).sum() / 100 - scene.factors["shown"][e]) < 1e-6


def test_camouflage_brings_colours_nearer_to_black_and_changes_nothing_else():
    plain, hidden = (Tetrominoes(TetrominoOptions(camouflage=share), num_scenes=20) for share in (0.0, 0.8))
    assert np.array_equal(plain.masks, hidden.masks)
    assert set(np.unique(plain.images)) == {0, 255}
    assert set(np.unique(hidden.images)) == {0, 51}
    assert not BLACK.any()


def test_a_scene_is_a_function_of_seed_split_and_number_alone():
    few, many, other = Tetrominoes(num_scenes=7), Tetrominoes(num_scenes=300), Tetrominoes(num_scenes=7, seed=1)
    assert contents(few) == contents(many, 7)
    assert contents(few) != contents(other)
    pictures = [
        image.tobytes()
        for split in ("train", "val", "test")
        for image in Tetrominoes(None, split, num_scenes=50).images
    ]
    assert len(set(pictures)) == 150


def test_images_and_masks_are_prepared_alike():
    preparation = Preparation((32, 32), "center")
    plain, prepared = Tetrominoes(num_scenes=2), Tetrominoes(num_scenes=2, preparation=preparation)
    assert prepared.info.size == (32, 32)
    assert np.array_equal(prepared[1].image, preparation.image(plain[1].image))
    assert np.array_equal(prepared[1].mask, preparation.mask(plain[1].mask))


def test_info_counts_the_background_and_source_names_the_scene():
    scenes = open_dataset("tetrominoes", "val", num_scenes=3, seed=2, max_objects=4)
    assert (scenes.info.name, scenes.info.size) == ("tetrominoes", (35, 35))
    assert (scenes.info.background_labels, scenes.info.num_slots) == ((0,), 5)
    assert scenes.source(1) == "tetrominoes(seed=2, split=val)[1]"
    assert len(list(scenes)) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_objects": 7}, r"^data\.max_objects: expected an integer from 1 to 6, got 7$"),
        ({"min_objects": 4}, r"^data\.min_objects: expected an integer from 1 to 3, got 4$"),
        ({"hues": "all"}, r"^data\.hues: expected one of palette, unseen, got 'all'$"),
        ({"camouflage": 2}, r"^data\.camouflage: expected a number from 0 to 1, got 2$"),
        ({"max_visible": -1}, r"^data\.max_visible: expected a number from 0 to 1, got -1$"),
        ({"split": "all"}, r"^data\.split: expected one of train, val, test for tetrominoes, got 'all'$"),
        ({"num_scenes": 0}, r"^data\.num_scenes: expected an integer of at least 1, got 0$"),
        ({"seed": -1}, r"^data\.seed: expected an integer of at least 0, got -1$"),
        (
            {"shape": 1},
            r"^data\.shape: no such option for tetrominoes, expected min_objects, .*, seed, num_scenes, size",
        ),
        ({"max_visible": 0.5}, r"^data\.max_visible: expected at least data\.min_visible, 1\.0, got 0\.5$"),
    ],
)
def test_options_outside_their_support_are_refused(options, message, unchecked):
    with pytest.raises(ConfigError, match=message):
        open_dataset("tetrominoes", **options)


def test_training_takes_a_step(tmp_path, monkeypatch):
    # The page is most of the time of so short a run.
    monkeypatch.setattr("psa.inference.sessions.write_run_report", lambda *_, **__: None)
    settings = ["data.size=16", "data.num_scenes=20", "data.hues=unseen", "data.camouflage=0.5", "training.steps=1"]
    out = tmp_path / "run"
    settings = tiny.options([*tiny.SETTINGS, *settings])
    result = run("train", "--data", "tetrominoes", "--out", out, "--json", *settings)
    assert result.code == 0, result.err
    assert np.isfinite(result.json["mse"])
