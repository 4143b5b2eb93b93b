import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from psa.report.comparison import (
    RunComparison,
    comparison_figure,
    comparison_png,
    draw_images,
    draw_means,
    draw_weights,
)


def found(**changes: Any) -> RunComparison:
    """Three runs, the second the best."""
    values = np.random.default_rng(0).normal(size=(3, 20)) + np.array([[-3.0], [0.0], [-8.0]]) - 2000.0
    parts = {"names": ["one", "other", "third"], "log_evidence": values, "weights": np.array([0.25, 0.75, 0.0])}
    return RunComparison(**parts | changes)


def axes() -> Axes:
    return Figure().add_subplot()


def test_differences_are_to_the_run_of_highest_mean():
    comparison = found()
    np.testing.assert_array_equal(comparison.differences[1], 0.0)
    np.testing.assert_allclose(comparison.differences[0], comparison.log_evidence[0] - comparison.log_evidence[1])


def test_means_have_bars_of_two_standard_errors():
    comparison, panel = found(), axes()
    draw_means(panel, comparison)
    for place, container in enumerate(panel.containers):
        dot, _, (bars,) = container.lines
        mean = comparison.differences[place].mean()
        np.testing.assert_allclose(dot.get_xydata(), [[mean, place]])
        ((left, right),) = bars.get_segments()
        error = comparison.differences[place].std(ddof=1) / np.sqrt(20)
        np.testing.assert_allclose([left[0], right[0]], [mean - 2 * error, mean + 2 * error])
    assert [label.get_text() for label in panel.get_yticklabels()] == ["one", "other", "third"]
    bottom, top = panel.get_ylim()
    assert bottom > top  # the first run stands on top


def test_every_image_is_a_dot_on_its_runs_line():
    comparison, panel = found(), axes()
    draw_images(panel, comparison)
    for place, dots in enumerate(panel.collections):
        x, y = np.asarray(dots.get_offsets()).T
        np.testing.assert_allclose(x, comparison.differences[place])
        assert np.abs(y - place).max() <= 0.25


@pytest.mark.parametrize(("factor", "scale"), [(1.0, "linear"), (100.0, "symlog")])
def test_only_differences_far_apart_are_on_a_logarithmic_axis(factor, scale):
    panel = axes()
    draw_images(panel, found(log_evidence=factor * found().log_evidence))
    assert panel.get_xscale() == scale
    assert ("logarithmic" in panel.get_xlabel()) == (scale == "symlog")


def test_weights_are_the_bars_and_stand_beside_them():
    panel = axes()
    draw_weights(panel, found())
    (bars,) = panel.containers
    np.testing.assert_allclose([bar.get_width() for bar in bars], [0.25, 0.75, 0.0])
    assert [text.get_text() for text in panel.texts] == ["0.25", "0.75", "0.00"]


def test_of_a_long_name_the_end_is_shown():
    panel = axes()
    draw_means(panel, found(names=["runs/" + "x" * 60 + "/first", "b", "c"]))
    label = panel.get_yticklabels()[0].get_text()
    assert len(label) == 28
    assert label.endswith("/first")


def test_a_run_beside_itself_can_be_drawn():
    same = np.tile(np.linspace(-2000.0, -1900.0, 5), (2, 1))
    comparison = found(names=["a", "a (2)"], log_evidence=same, weights=np.array([0.5, 0.5]))
    assert np.asarray(Image.open(io.BytesIO(comparison_png(comparison))).convert("L")).min() < 100


def test_the_picture_grows_with_the_runs():
    sizes = []
    for count in (2, 12):
        values = np.random.default_rng(0).normal(size=(count, 6))
        names = [f"run {place}" for place in range(count)]
        png = comparison_png(RunComparison(names, values, np.full(count, 1 / count)))
        sizes.append(Image.open(io.BytesIO(png)).size)
    assert sizes[0][0] == sizes[1][0]
    assert sizes[1][1] - sizes[0][1] == pytest.approx(160 * 0.42 * 10, abs=2)


@pytest.mark.usefixtures("unchecked")
def test_sizes_that_do_not_fit_are_refused():
    for changes in ({"names": ["one"]}, {"weights": np.ones(2)}, {"log_evidence": np.zeros((3, 1))}):
        with pytest.raises(ValueError, match="log_evidence: expected a row for each of"):
            found(**changes)


def test_the_picture_is_saved_and_equal_ones_have_equal_bytes(tmp_path: Path):
    comparison_figure(found(), tmp_path / "out" / "compare.png")
    assert (tmp_path / "out" / "compare.png").read_bytes() == comparison_png(found())
