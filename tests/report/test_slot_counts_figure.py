import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from psa.report import pictures
from psa.report.slot_counts import (
    SlotCounts,
    draw_evidence,
    draw_pixels,
    draw_probabilities,
    draw_tokens,
    slot_counts_figure,
    slot_counts_png,
)


def found(most: int = 4, num_features: int = 2, picture: bool = False, **changes: Any) -> SlotCounts:
    """A comparison whose likeliest K is min(2, most); without a picture 36 tokens, with one 6 x 6 pixels."""
    rng = np.random.default_rng(0)
    evidence = -500.0 - 10.0 * (np.arange(1.0, most + 1) - min(2, most)) ** 2
    weights = np.exp(evidence - evidence.max())
    best = min(2, most)
    parts: dict[str, Any] = {
        "log_evidence": evidence,
        "standard_error": np.full(most, 0.1),
        "failed": np.zeros(most, bool),
        "bound": evidence - 0.5,
        "probability": weights / weights.sum(),
        "occupied": np.eye(most + 1)[best],
        "tokens": rng.normal(size=(36, num_features)),
        "labels": rng.integers(0, best, 36),
        "loc": rng.normal(size=(best, num_features)),
        "scale": rng.uniform(0.5, 2.0, (best, num_features)),
        "picture": rng.integers(0, 256, (6, 6, 3), dtype=np.uint8) if picture else None,
    }
    return SlotCounts(**parts | changes)


def axes() -> Axes:
    return Figure().add_subplot()


def opened(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


@pytest.mark.parametrize(
    ("num_features", "picture", "squares"), [(1, False, 0), (2, False, 1), (5, False, 1), (5, True, 2)]
)
def test_there_is_a_panel_for_what_can_be_shown(num_features, picture, squares):
    height, width, _ = opened(slot_counts_png(found(num_features=num_features, picture=picture))).shape
    assert height == 560
    assert width == pytest.approx(160 * (2 * 4.4 + 3.5 * squares), abs=1)


def test_evidence_is_drawn_relative_to_the_best_with_its_error_and_bound():
    comparison, panel = found(), axes()
    draw_evidence(panel, comparison)
    curve, bound = panel.containers[0].lines[0], panel.lines[-1]
    best = comparison.log_evidence.max()
    np.testing.assert_allclose(curve.get_xydata(), np.c_[comparison.counts, comparison.log_evidence - best])
    np.testing.assert_allclose(bound.get_ydata(), comparison.bound - best)
    (bars,) = panel.containers[0].lines[2]
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    np.testing.assert_allclose(ends[:, 1] - ends[:, 0], 0.2)
    assert "nats" in panel.get_ylabel()
    named = [text.get_text() for text in panel.get_legend().get_texts()]
    assert named == ["log evidence ± standard error", "bound"]


def test_a_method_without_errors_has_no_error_bars():
    panel = axes()
    draw_evidence(panel, found(standard_error=np.zeros(4)))
    assert not panel.containers[0].lines[2]
    assert panel.get_legend().get_texts()[0].get_text() == "log evidence"


def test_failed_estimates_are_crossed_out():
    panel = axes()
    draw_evidence(panel, found(failed=np.array([False, False, True, False])))
    crosses = panel.lines[-1]
    assert crosses.get_marker() == "x"
    assert crosses.get_xydata().tolist() == [[3.0, -10.0]]
    assert panel.get_legend().get_texts()[-1].get_text() == "failed"


@pytest.mark.parametrize(("lowest", "scale"), [(-40.0, "linear"), (-1000.0, "symlog"), (-1e9, "symlog")])
def test_only_far_below_the_best_the_axis_is_logarithmic(lowest, scale):
    evidence = np.array([lowest, 0.0, -3.0, -6.0])
    panel = axes()
    draw_evidence(panel, found(log_evidence=evidence, bound=evidence - 0.1))
    assert panel.get_yscale() == scale
    low, high = panel.get_ylim()
    assert low < lowest - 0.1 < 0.1 < high


def test_a_bound_above_a_bad_estimate_is_in_view():
    comparison, panel = found(log_evidence=np.array([-900.0, -50.0, -60.0, -70.0]), bound=np.full(4, -2.0)), axes()
    draw_evidence(panel, comparison)
    assert panel.get_ylim()[1] > 48.0


def test_probabilities_are_the_bars():
    comparison, panel = found(), axes()
    draw_probabilities(panel, comparison)
    one, other = panel.containers
    np.testing.assert_allclose([bar.get_height() for bar in one], comparison.probability)
    np.testing.assert_allclose([bar.get_height() for bar in other], comparison.occupied[1:])
    middles = [(left.get_x() + right.get_x() + right.get_width()) / 2 for left, right in zip(one, other, strict=True)]
    np.testing.assert_allclose(middles, comparison.counts)


def test_every_token_has_the_colour_of_its_slot_and_every_slot_an_ellipse_of_two_deviations():
    comparison, panel = found(num_features=3), axes()
    draw_tokens(panel, comparison)
    (points,) = panel.collections
    np.testing.assert_allclose(points.get_offsets(), comparison.tokens[:, :2])
    drawn = (255 * points.get_facecolors()[:, :3]).round().astype(int)
    assert drawn.tolist() == [pictures.rgb(pictures.colour(int(slot))).tolist() for slot in comparison.labels]
    for slot in range(2):
        rims = [rim for rim in panel.patches if np.allclose(rim.get_center(), comparison.loc[slot, :2])]
        assert rims
        for rim in rims:
            np.testing.assert_allclose([rim.get_width(), rim.get_height()], 4 * comparison.scale[slot, :2])


def test_a_slot_without_tokens_has_no_ellipse():
    panel = axes()
    draw_tokens(panel, found(labels=np.zeros(36, np.int64)))
    assert {tuple(rim.get_center()) for rim in panel.patches} == {tuple(found().loc[0])}


def test_pixels_are_painted_where_the_picture_has_them():
    comparison = found(num_features=5, picture=True)
    left, right = axes(), axes()
    assert comparison.picture is not None
    draw_pixels(left, right, comparison, comparison.picture)
    (shown,), (painted,) = left.images, right.images
    factor = shown.get_array().shape[0] // 6
    np.testing.assert_array_equal(shown.get_array()[::factor, ::factor], comparison.picture)
    labels = comparison.labels.reshape(6, 6)
    colours = pictures.scene_colours(labels, 2)
    np.testing.assert_array_equal(painted.get_array()[::factor, ::factor], pictures.label_picture(labels, colours))


@pytest.mark.parametrize("most", [1, 2, 14, 40])
def test_any_number_of_counts_can_be_drawn(most):
    comparison, panel = found(most), axes()
    draw_probabilities(panel, comparison)
    assert 1 <= len(panel.get_xticks()) <= 14
    assert opened(slot_counts_png(comparison)).min() < 100


def test_an_estimate_that_is_not_finite_leaves_a_gap():
    evidence = np.array([np.nan, -5.0, -7.0, -np.inf])
    failed = ~np.isfinite(evidence)
    comparison = found(log_evidence=evidence, failed=failed, bound=np.full(4, -9.0), standard_error=np.full(4, np.nan))
    assert opened(slot_counts_png(comparison)).min() < 100
    nothing = found(log_evidence=np.full(4, np.nan), failed=np.ones(4, bool), probability=np.full(4, np.nan))
    assert opened(slot_counts_png(nothing)).min() < 100


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="log_evidence: expected one entry a count"):
        found(occupied=np.ones(4))
    with pytest.raises(ValueError, match="picture: expected 36 pixels, came shape"):
        replace(found(), picture=np.zeros((5, 5, 3), np.uint8))


def test_the_picture_is_saved_and_equal_ones_have_equal_bytes(tmp_path: Path):
    slot_counts_figure(found(), tmp_path / "out" / "slots.png")
    assert (tmp_path / "out" / "slots.png").read_bytes() == slot_counts_png(found())
