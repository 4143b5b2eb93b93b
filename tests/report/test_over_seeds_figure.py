"""Pictures of seeds: every score is drawn where it is, and means and ranges are those of the seeds."""

import numpy as np
import pytest

from psa.report.over_seeds import Band, Strip, band_of_curves, bands_figure, strips_figure
from psa.report.pictures import figure_png


def test_a_strip_has_a_dot_a_seed_a_bar_at_the_mean_and_the_published_figure():
    rows = [Strip("sa", [0.1, 0.4], 0.8), Strip("bo-qsa", [0.6]), Strip("failed", [])]
    figure = strips_figure(rows, "foreground ARI", "the paper")
    (axes,) = figure.axes
    first, second, third, published = axes.collections
    assert first.get_offsets().tolist() == [[0.1, 0.0], [0.4, 0.0]]
    assert second.get_offsets().tolist() == [[0.6, 1.0]]
    assert len(third.get_offsets()) == 0
    assert published.get_offsets().tolist() == [[0.8, 0.0]]
    assert [list(line.get_xdata()) for line in axes.lines] == [[0.25, 0.25], [0.6, 0.6]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["sa", "bo-qsa", "failed"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first row on top
    assert figure_png(figure)[:4] == b"\x89PNG"


def test_without_published_figures_there_is_no_legend():
    assert strips_figure([Strip("sa", [0.1])], "foreground ARI", "").axes[0].get_legend() is None


@pytest.mark.parametrize("logarithmic", [True, False])
def test_a_band_runs_from_the_lowest_to_the_highest_seed_and_leaves_out_what_no_seed_has(logarithmic: bool):
    values = np.array([[1.0, 2.0, np.nan], [3.0, np.nan, np.nan]])
    bands = [Band("psa", (1, 10, 100), values), Band("level", (1, 10, 100), np.full((1, 3), 0.5), dashed=True)]
    figure = bands_figure({"one": bands, "two": bands[:1]}, "rate", "score", logarithmic=logarithmic)
    left, right = figure.axes
    line, level = left.lines
    assert line.get_xydata().tolist() == [[1, 2], [10, 2]]
    assert level.get_ydata().tolist() == [0.5] * 3
    (area,) = left.collections
    assert area.get_datalim(left.transData).extents.tolist() == [1, 1, 10, 3]
    assert line.get_color() == right.lines[0].get_color() != level.get_color()
    assert left.get_xscale() == ("log" if logarithmic else "linear")
    assert (left.get_ylabel(), right.get_ylabel()) == ("score", "")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["psa", "level"]
    assert figure_png(figure)[:4] == b"\x89PNG"


def test_a_curve_that_ends_early_leaves_the_others_their_steps():
    band = band_of_curves("sa", [[(0, 0.1)], [(0, 0.2), (5, 0.3)]])
    assert (band.name, list(band.x)) == ("sa", [0, 5])
    assert np.array_equal(band.values, [[0.1, np.nan], [0.2, 0.3]], equal_nan=True)
