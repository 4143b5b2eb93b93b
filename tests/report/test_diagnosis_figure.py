import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from psa.report.diagnosis import (
    DiagnosisView,
    diagnosis_figure,
    diagnosis_png,
    draw_bends,
    draw_components,
    draw_movers,
    draw_probes,
    draw_singular_values,
    draw_variances,
)

RNG = np.random.default_rng(0)
VIEW = DiagnosisView(
    verdicts=dict(zip("abcdef", ["holds", "fails", "not decided"] * 2, strict=True)),
    lengths=np.array([1e-2, 1e-3, 1e-4]),
    bent={"the picture": np.array([1.0, 0.9, 0.8]), "a slot's painting": np.array([0.5, 0.05, 0.005])},
    singular_values={"slot of an image": np.sort(RNG.random((6, 4)))[:, ::-1], "slot of the prior": np.ones((6, 4))},
    probes={"slot of an image": np.array([[0.5, 1e-3], [2.0, 0.0]]), "whole scene": np.array([[0.0, 0.5]])},
    limits=(1.0, 1 / 510),
    movers=np.array([0.25, 0.5, 0.25]),
    interaction=0.25,
    variances={"slots of images": np.array([0.0, 0.5, 0.5]), "components": np.array([0.2, 1e-3])},
    collapsed=1e-5,
    components=np.array([[0.3, 0.5], [0.9, 0.25], [np.inf, 0.25]]),
    separated=0.5,
)


def axes() -> Axes:
    return Figure().add_subplot()


def offsets(panel: Axes, place: int = 0) -> np.ndarray:
    return np.asarray(panel.collections[place].get_offsets())


def test_bends_are_lines_over_the_length():
    panel = axes()
    draw_bends(panel, VIEW)
    for line, (name, bent) in zip(panel.lines, VIEW.bent.items(), strict=True):
        np.testing.assert_allclose(line.get_xydata(), np.stack([VIEW.lengths, bent], axis=1))
        assert line.get_label() == name


def test_singular_values_are_medians_within_their_range():
    panel = axes()
    draw_singular_values(panel, VIEW)
    values = VIEW.singular_values["slot of an image"]
    np.testing.assert_allclose(panel.lines[0].get_ydata(), np.median(values, 0))
    outline = panel.collections[0].get_paths()[0].vertices
    assert outline[:, 1].min() == pytest.approx(values.min())
    assert outline[:, 1].max() == pytest.approx(values.max())


def test_a_singular_value_of_0_can_be_drawn():
    panel = axes()
    draw_singular_values(panel, replace(VIEW, singular_values={"one": np.array([[1.0, 0.0]])}))
    assert (np.asarray(panel.lines[0].get_ydata()) > 0).all()


def test_every_start_is_a_dot_and_what_is_0_lies_at_the_edge():
    panel = axes()
    draw_probes(panel, VIEW)
    np.testing.assert_allclose(offsets(panel), [[0.5, 1e-3], [2.0, 1e-6]])
    np.testing.assert_allclose(offsets(panel, 1), [[1e-3, 0.5]])
    corner = panel.collections[2].get_paths()[0].vertices
    assert (corner[:, 0].min(), corner[:, 1].max()) == (1.0, pytest.approx(1 / 510))
    left, right = panel.get_xlim()
    assert left < 1e-3 < 2.0 < right


def test_pixels_are_bars_by_the_slots_that_move_them():
    panel = axes()
    draw_movers(panel, VIEW)
    np.testing.assert_allclose([bar.get_height() for bar in panel.containers[0]], VIEW.movers)
    said = [text.get_text() for text in panel.texts]
    assert said[:3] == ["25%", "50%", "25%"]
    assert "0.25 of their effects" in said[3]


def test_histograms_hold_every_variance_and_0_too():
    panel = axes()
    draw_variances(panel, VIEW)
    bars = [patch.get_height() for patch in panel.patches]
    assert sum(bars) == pytest.approx(2.0)
    assert panel.lines[0].get_xdata()[0] == VIEW.collapsed


def test_a_component_that_stands_alone_is_drawn_beyond_the_others():
    panel = axes()
    draw_components(panel, VIEW)
    np.testing.assert_allclose(offsets(panel), [[0.3, 0.5], [0.9, 0.25], [1.8, 0.25]])
    draw_components(axes(), replace(VIEW, components=np.array([[np.inf, 1.0]])))


def test_titles_are_assumptions_with_their_verdicts_in_colour(monkeypatch):
    drawn: list[Figure] = []
    monkeypatch.setattr("psa.report.pictures.figure_png", lambda figure: drawn.append(figure) or b"")
    diagnosis_png(VIEW)
    panels = drawn[0].axes
    assert [panel.get_title(loc="left") for panel in panels] == list(VIEW.verdicts)
    assert [panel.get_title(loc="right") for panel in panels] == list(VIEW.verdicts.values())
    colours = [to_hex(panel._right_title.get_color()) for panel in panels]
    assert colours[:3] == colours[3:]
    assert len(set(colours)) == 3


def test_the_picture_is_saved_and_equal_ones_have_equal_bytes(tmp_path: Path):
    diagnosis_figure(VIEW, tmp_path / "out" / "diagnose.png")
    content = (tmp_path / "out" / "diagnose.png").read_bytes()
    assert content == diagnosis_png(VIEW)
    assert Image.open(io.BytesIO(content)).size == (2016, 1152)
