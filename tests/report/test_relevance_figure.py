import io
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from psa.report.relevance import SavingCurve, draw_curves, relevance_figure, relevance_png


def curve(name: str = "weights") -> SavingCurve:
    """Its points out of order."""
    return SavingCurve(name, np.array([0.4, 0.1, 0.2]), np.array([0.3, 0.0, 0.1]), np.array([0.02, 0.01, 0.03]))


def test_a_rule_is_a_line_in_the_order_of_what_it_saves_with_two_standard_errors_as_a_band():
    axes = Figure().add_subplot()
    draw_curves(axes, [curve()], 0.5, 0.01)
    (line,) = [line for line in axes.lines if line.get_label() == "weights"]
    np.testing.assert_allclose(line.get_xydata(), [[0.1, 0.0], [0.2, 0.1], [0.4, 0.3]])
    (band,) = axes.collections
    corners = {tuple(np.round(corner, 6)) for corner in band.get_paths()[0].vertices}
    assert {(0.1, -0.02), (0.1, 0.02), (0.2, 0.04), (0.2, 0.16), (0.4, 0.26), (0.4, 0.34)} <= corners


def test_the_limits_are_lines():
    axes = Figure().add_subplot()
    draw_curves(axes, [curve()], 0.5, 0.01)
    drawn = {line.get_label(): line for line in axes.lines}
    assert list(drawn["a loss of 0.01"].get_ydata()) == [0.01, 0.01]
    assert list(drawn["slots the scenes can spare"].get_xdata()) == [0.5, 0.5]


@pytest.mark.usefixtures("unchecked")
def test_sizes_that_do_not_fit_are_refused():
    for sizes in ((3, 2, 3), (3, 3, 2)):
        with pytest.raises(ValueError, match=r"loss and error must be of the shape of saved \(3,\)"):
            SavingCurve("weights", *(np.zeros(size) for size in sizes))


def test_the_picture_is_saved_and_equal_ones_have_equal_bytes(tmp_path: Path):
    curves = [curve(), curve("occupancy"), curve("information")]
    relevance_figure(curves, 0.5, 0.01, tmp_path / "out" / "relevance.png")
    png = relevance_png(curves, 0.5, 0.01)
    assert (tmp_path / "out" / "relevance.png").read_bytes() == png
    assert np.asarray(Image.open(io.BytesIO(png)).convert("L")).min() < 100
