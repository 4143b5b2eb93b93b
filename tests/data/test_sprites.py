import colorsys
import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest
from sklearn.metrics import adjusted_rand_score
from tolerances import FLOAT32, assert_close

from psa.data import SpriteOptions, Sprites
from psa.data.sprites import HUES
from psa.errors import ConfigError

BACKGROUNDS = ("black", "gray", "colour")


def contents(sprites: Sprites, stop: int | None = None) -> dict[str, np.ndarray]:
    arrays = {"images": sprites.images, "masks": sprites.masks, **sprites.factors}
    return {name: values[:stop] for name, values in arrays.items()}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)


def covers(shape: int, dx: float, dy: float, radius: float) -> bool:
    """Whether a point at (dx, dy) from the centre, y down, is in the shape: the definitions, not the generator's."""
    inside_square = abs(dx) <= radius and abs(dy) <= radius
    return {
        1: inside_square,
        2: dx * dx + dy * dy <= radius * radius,
        3: inside_square and 2 * abs(dx) <= dy + radius,
    }[shape]


def own_pixels(factors: dict[str, np.ndarray], e: int, size: int) -> np.ndarray:
    x, y, radius = (float(factors[name][e]) * size for name in ("x", "y", "size"))
    pixels = [
        [covers(int(factors["shape"][e]), column + 0.5 - x, row + 0.5 - y, radius) for column in range(size)]
        for row in range(size)
    ]
    return np.array(pixels)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_same_seed_gives_same_bytes_and_another_seed_does_not(background):
    options = SpriteOptions(background=background)
    first, again, other = (contents(Sprites(options, num_scenes=20, seed=seed)) for seed in (7, 7, 8))
    assert same(first, again)
    assert not same(first, other)


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(BACKGROUNDS))
def test_fewer_scenes_are_a_prefix_of_more(a, b, background):
    options = SpriteOptions(size=16, background=background)
    few, many = (Sprites(options, num_scenes=n, seed=3) for n in sorted((a, b)))
    assert same(contents(few), contents(many, len(few)))


def test_blocks_are_not_repeated():
    sprites = Sprites(SpriteOptions(size=16), num_scenes=512)
    assert not np.array_equal(sprites.images[:256], sprites.images[256:])


def test_splits_are_different_streams():
    train, val, test = (Sprites(SpriteOptions(), split, num_scenes=50).images for split in ("train", "val", "test"))
    pictures = {image.tobytes() for image in train}, {image.tobytes() for image in val}, {i.tobytes() for i in test}
    assert len(set.union(*pictures)) == sum(len(p) for p in pictures)


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("size", [8, 21, 32])
def test_rendering_equals_a_loop_over_pixels(size, background):
    sprites = Sprites(SpriteOptions(size=size, background=background, max_objects=5), num_scenes=6, seed=size)
    for scene in sprites:
        mask = np.zeros((size, size), np.int64)
        for e in np.argsort(scene.factors["depth"]):
            if scene.factors["visibility"][e]:
                mask[own_pixels(scene.factors, e, size)] = e + 1
        assert np.array_equal(scene.mask, mask)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_pixels_of_an_object_have_its_color_and_the_background_has_one(background):
    for scene in Sprites(SpriteOptions(background=background), num_scenes=40):
        for e in range(int(scene.factors["num_objects"])):
            pixels = scene.image[scene.mask == e + 1]
            assert len(pixels) > 0
            assert (pixels == scene.factors["color"][e] * 255).all()
        assert len(np.unique(scene.image[scene.mask == 0], axis=0)) == 1


@pytest.mark.parametrize(("max_objects", "min_visible"), [(4, 0.5), (5, 0.5), (4, 0.95), (4, 1.0)])
def test_every_object_shows_the_share_asked_for_of_its_pixels(max_objects, min_visible):
    options = SpriteOptions(min_objects=3, max_objects=max_objects, min_visible=min_visible)
    for scene in Sprites(options, num_scenes=40, seed=1):
        for e in range(int(scene.factors["num_objects"])):
            own = own_pixels(scene.factors, e, 32)
            assert (scene.mask == e + 1).sum() >= min_visible * own.sum() > 0


def test_less_asked_for_hides_more():
    shares = []
    for min_visible in (0.0, 0.95):
        scenes = Sprites(SpriteOptions(min_objects=4, min_visible=min_visible), num_scenes=200, seed=1)
        shares.append(np.mean([(scene.mask > 0).mean() for scene in scenes]))
    assert shares[0] < shares[1]


@pytest.mark.parametrize("share", [-0.1, 1.1, "much"])
def test_a_share_outside_its_support_is_refused(share, unchecked):
    with pytest.raises(ConfigError, match=r"data.min_visible: expected a number from 0 to 1"):
        SpriteOptions(min_visible=share)


def test_redraws_are_bounded_when_objects_cannot_all_be_seen():
    crowded = Sprites(SpriteOptions(size=16, min_objects=16, max_objects=16), num_scenes=5)
    assert (crowded.factors["num_objects"] == 16).all()


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 3), st.integers(0, 4), st.integers(0, 2**40))
def test_factors_are_in_their_support_and_padded_with_zeros(fewest, extra, seed):
    options = SpriteOptions(size=16, min_objects=fewest, max_objects=fewest + extra)
    factors = Sprites(options, num_scenes=100, seed=seed).factors
    number = factors["num_objects"]
    assert ((number >= fewest) & (number <= fewest + extra)).all()
    present = np.arange(fewest + extra) < number[:, None]
    assert np.array_equal(factors["visibility"], present.astype(np.int64))
    for name in ("shape", "color", "hue", "x", "y", "size", "depth"):
        assert not factors[name][~present].any()
    assert set(factors["shape"][present]) == {1, 2, 3}
    assert (
        np.sort(factors["depth"], axis=1)[:, ::-1] == np.where(present, number[:, None] - np.arange(len(present[0])), 0)
    ).all()
    radius = factors["size"][present]
    assert ((radius >= np.float32(0.11)) & (radius <= np.float32(0.19))).all()
    for centre in (factors["x"][present], factors["y"][present]):
        assert (centre - radius >= -1e-6).all()
        assert (centre + radius <= 1 + 1e-6).all()


def test_every_number_of_objects_is_as_likely():
    number = Sprites(SpriteOptions(size=8, min_objects=2, max_objects=4), num_scenes=2048).factors["num_objects"]
    shares = np.array([(number == n).mean() for n in (2, 3, 4)])
    assert (np.abs(shares - 1 / 3) < 6 * np.sqrt(2 / 9 / len(number))).all()


def test_colours_of_two_objects_collide_one_time_in_six():
    color = Sprites(SpriteOptions(size=8, min_objects=2, max_objects=2), num_scenes=2048).factors["color"]
    collisions = (color[:, 0] == color[:, 1]).all(axis=1).mean()
    assert abs(collisions - 1 / 6) < 6 * np.sqrt(5 / 36 / len(color))
    assert len(np.unique(color.reshape(-1, 3), axis=0)) == 6


def test_every_colour_is_the_saturated_one_of_its_hue():
    for hues in HUES:
        factors = Sprites(SpriteOptions(size=8, hues=hues), num_scenes=40).factors
        present = factors["visibility"] > 0
        hue = factors["hue"][present]
        assert ((hue >= 0) & (hue < 1)).all()
        expected = np.array([colorsys.hsv_to_rgb(h, 1.0, 1.0) for h in hue.tolist()])
        assert np.abs(factors["color"][present] - expected).max() <= 0.5 / 255 + 1e-6


def test_palette_hues_are_the_six_corners_of_the_colour_cube():
    color = Sprites(SpriteOptions(size=8), num_scenes=100).factors["color"]
    assert set(np.unique(color)) == {0.0, 1.0}


def test_continuous_hues_are_uniform_and_independent_of_each_other():
    options = SpriteOptions(size=8, min_objects=2, max_objects=2, hues="continuous")
    hue = Sprites(options, num_scenes=1024).factors["hue"].astype(np.float64)
    assert kstest(hue.ravel(), "uniform").pvalue > 1e-6
    assert kstest((hue[:, 0] - hue[:, 1]) % 1.0, "uniform").pvalue > 1e-6


def test_hues_change_nothing_that_is_drawn_before_them():
    palette, *others = (Sprites(SpriteOptions(size=16, hues=hues), num_scenes=64).factors for hues in HUES)
    for other in others:
        assert np.array_equal(palette["num_objects"], other["num_objects"])
        assert np.array_equal(palette["size"], other["size"])


def test_unseen_hues_lie_half_way_between_those_of_the_palette():
    hues = []
    for name in ("palette", "unseen"):
        factors = Sprites(SpriteOptions(size=8, hues=name), num_scenes=200).factors
        hues.append(np.unique(factors["hue"][factors["visibility"] > 0].astype(np.float64)))
    assert_close(hues[0] + 1 / 12, hues[1], FLOAT32)
    assert len(hues[1]) == 6


@pytest.mark.parametrize("max_objects", [2, 4])
def test_one_object_at_least_is_hidden_as_much_as_asked_for_and_none_more(max_objects):
    options = SpriteOptions(max_objects=max_objects, min_visible=0.25, max_visible=0.6)
    for scene in Sprites(options, "test", num_scenes=60, seed=1):
        count = int(scene.factors["num_objects"])
        shown = [(scene.mask == e + 1).sum() / own_pixels(scene.factors, e, 32).sum() for e in range(count)]
        assert min(shown) >= 0.25
        assert count == 1 or min(shown) <= 0.6
        assert sorted(scene.factors["depth"][:count]) == list(range(1, count + 1))


def test_scenes_that_cannot_hide_as_much_are_refused_and_bounds_have_an_order():
    with pytest.raises(ConfigError, match=r"^data\.max_objects: expected scenes whose objects show at least 0\.999 "):
        Sprites(SpriteOptions(size=8, min_objects=2, max_objects=2, min_visible=0.999, max_visible=0.999), num_scenes=1)
    with pytest.raises(ConfigError, match=r"^data\.max_visible: expected at least data\.min_visible, 0\.95, got 0\.5$"):
        SpriteOptions(max_visible=0.5)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_camouflage_leaves_that_share_less_of_the_contrast_and_nothing_else_changes(background):
    plain, hidden = (Sprites(SpriteOptions(background=background, camouflage=c), num_scenes=40) for c in (0.0, 0.8))
    assert np.array_equal(plain.masks, hidden.masks)
    ground = plain.masks == 0
    assert np.array_equal(plain.images[ground], hidden.images[ground])
    for one, other in zip(plain, hidden, strict=True):
        back = one.image[one.mask == 0][0].astype(np.float64)
        for e in range(int(one.factors["num_objects"])):
            full, left = (scene.image[scene.mask == e + 1][0] - back for scene in (one, other))
            assert np.abs(left - 0.2 * full).max() <= 0.5  # bytes are rounded
            assert (other.factors["color"][e] * 255).round().astype(np.uint8).tolist() == (back + left).tolist()
    assert np.array_equal(plain.factors["hue"], hidden.factors["hue"])


@pytest.mark.parametrize(
    ("background", "digest"),
    [("black", "070306e58f498aee"), ("gray", "d5f29f14cc62371c"), ("colour", "523a619156024d50")],
)
def test_scenes_are_those_that_earlier_versions_made(background, digest):
    """Runs name their data by options and a seed, so the bytes must not change."""
    sprites = Sprites(SpriteOptions(size=16, background=background), num_scenes=300, seed=3)
    found = hashlib.sha256(sprites.images.tobytes() + sprites.masks.tobytes())
    for name in ("shape", "color", "x", "y", "size", "depth", "visibility", "num_objects"):
        found.update(sprites.factors[name].tobytes())
    assert found.hexdigest()[:16] == digest


def test_depth_does_not_follow_the_label():
    depth = Sprites(SpriteOptions(size=8, min_objects=2, max_objects=2), num_scenes=2048).factors["depth"]
    assert abs((depth[:, 0] > depth[:, 1]).mean() - 1 / 2) < 6 * np.sqrt(1 / 4 / len(depth))


def test_grouping_pixels_by_colour_does_not_recover_the_objects():
    scores = []
    for scene in Sprites(SpriteOptions(), num_scenes=100):
        _, colour = np.unique(scene.image.reshape(-1, 3), axis=0, return_inverse=True)
        foreground = scene.mask.ravel() > 0
        scores.append(adjusted_rand_score(scene.mask.ravel()[foreground], colour[foreground]))
    assert np.mean(scores) < 0.9


def test_gray_backgrounds_are_gray_between_a_fifth_and_three_fifths():
    sprites = Sprites(SpriteOptions(background="gray"), num_scenes=300)
    levels = np.array([scene.image[scene.mask == 0][0] for scene in sprites])
    assert (levels == levels[:, :1]).all()
    assert levels.min() >= 0.2 * 255
    assert levels.max() <= 0.6 * 255
    assert len(np.unique(levels)) > 50


def test_coloured_backgrounds_stand_out_from_every_object():
    for scene in Sprites(SpriteOptions(background="colour"), num_scenes=256):
        ground = scene.image[scene.mask == 0][0] / 255
        colours = scene.factors["color"][: int(scene.factors["num_objects"])]
        assert np.linalg.norm(colours - ground, axis=1).min() >= 0.35 - 1e-6


def test_info_counts_the_background_as_a_slot_and_source_names_the_scene():
    sprites = Sprites(SpriteOptions(size=16, max_objects=6), "val", num_scenes=3, seed=2)
    info = sprites.info
    assert (info.kind, info.name, info.size) == ("scenes", "sprites", (16, 16))
    assert (info.background_labels, info.num_slots) == ((0,), 7)
    assert len(sprites) == len(list(sprites)) == 3
    assert sprites.source(1) == "sprites(seed=2, split=val)[1]"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 7}, r"^data\.size: expected an integer from 8 to 256, got 7$"),
        ({"min_objects": 0}, r"^data\.min_objects: expected an integer from 1 to 4, got 0$"),
        ({"min_objects": 3, "max_objects": 2}, r"^data\.min_objects: expected an integer from 1 to 2, got 3$"),
        ({"max_objects": 17}, r"^data\.max_objects: expected an integer from 1 to 16, got 17$"),
        ({"max_objects": True}, r"^data\.max_objects: expected an integer from 1 to 16, got True$"),
        ({"hues": "all"}, r"^data\.hues: expected one of palette, continuous, unseen, got 'all'$"),
        ({"background": "pink"}, r"^data\.background: expected one of black, gray, colour, got 'pink'$"),
    ],
)
def test_options_outside_their_support_are_rejected(options, message):
    with pytest.raises(ConfigError, match=message):
        SpriteOptions(**options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_scenes": 0}, r"^data\.num_scenes: expected an integer of at least 1, got 0$"),
        ({"seed": -1}, r"^data\.seed: expected an integer of at least 0, got -1$"),
        ({"split": "all"}, r"^data\.split: expected one of train, val, test for sprites, got 'all'$"),
    ],
)
def test_streams_that_do_not_exist_are_rejected(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Sprites(SpriteOptions(), **arguments)
