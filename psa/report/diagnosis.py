"""The picture of ``psa diagnose``: the figure behind each verdict, a panel an assumption."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from psa.report import pictures
from psa.report.files import save

_DPI = 160
_SIZE = (12.6, 7.2)  # inches
_VERDICTS = {"holds": "#15803d", "fails": "#c2410c", "not decided": "#6b7280"}
_COLOURS = ("#2563eb", "#d97706", "#0f766e")
_LEAST_DISTANCE, _LEAST_ERROR, _LEAST_VARIANCE = 1e-3, 1e-6, 1e-12  # what is smaller, or 0, is drawn here


@dataclass(frozen=True)
class DiagnosisView:
    """What is drawn.

    Attributes:
        verdicts: By assumption, six of them, in the order of the panels.
        lengths: (L,), half lengths of the segments.
        bent: Share of pixels that bend at each length, by what was decoded; (L,) each.
        singular_values: (S, D) of slots, by where they are from.
        probes: (distance, error) of every start of the searches, by what was searched for; (S, 2) each.
        limits: Distance and error of what counts as another slot of the same picture.
        movers: (K + 1,), share of pixels that 0, 1, ... slots move.
        interaction: Of two slots, as a share of their effects.
        variances: Smallest variances, by what they are of.
        collapsed: Variance below which one has collapsed.
        components: (G, 2), distance to the nearest component that is not the same, and weight.
        separated: Distance from which components are separate.
    """

    verdicts: Mapping[str, str]
    lengths: Float64[np.ndarray, " lengths"]
    bent: Mapping[str, Float64[np.ndarray, " lengths"]]
    singular_values: Mapping[str, Float64[np.ndarray, "_ features"]]
    probes: Mapping[str, Float64[np.ndarray, "_ 2"]]
    limits: tuple[float, float]
    movers: Float64[np.ndarray, " counts"]
    interaction: float
    variances: Mapping[str, Float64[np.ndarray, " _"]]
    collapsed: float
    components: Float64[np.ndarray, "components 2"]
    separated: float


def diagnosis_figure(view: DiagnosisView, path: str | Path) -> None:
    """Save the picture: six panels, each titled with its assumption and verdict.

    Args:
        view: What was found.
        path: A PNG, written in one step; its folder is made.
    """
    save(path, diagnosis_png(view))


def diagnosis_png(view: DiagnosisView) -> bytes:
    """Draw it: the bytes that ``diagnosis_figure`` saves."""
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.14)
    figure = Figure(figsize=_SIZE, dpi=_DPI, facecolor="white", layout=layout)
    panels: Sequence[Axes] = figure.subplots(2, 3).flatten()
    draws = (draw_bends, draw_singular_values, draw_probes, draw_movers, draw_variances, draw_components)
    for axes, draw, (name, verdict) in zip(panels, draws, view.verdicts.items(), strict=True):
        draw(axes, view)
        axes.set_title(name, loc="left", fontsize=10, color=pictures.INK, fontweight="bold")
        axes.set_title(verdict, loc="right", fontsize=10, color=_VERDICTS[verdict], fontweight="bold")
        _dress(axes)
    return pictures.figure_png(figure)


def draw_bends(axes: Axes, view: DiagnosisView) -> None:
    """Share of pixels that bend, against the segment's length."""
    for colour, (name, bent) in zip(_COLOURS, view.bent.items(), strict=False):
        axes.plot(view.lengths, bent, "o-", color=colour, label=name, markersize=4)
    axes.set_xscale("log")
    axes.set_ylim(-0.03, 1.05)
    _label(axes, "half length of a segment, in deviations", "share of pixels that bend")


def draw_singular_values(axes: Axes, view: DiagnosisView) -> None:
    """Median and range over slots of each singular value."""
    for colour, (name, values) in zip(_COLOURS, view.singular_values.items(), strict=False):
        shown = np.maximum(values, np.finfo(float).tiny)
        place = np.arange(1, shown.shape[1] + 1)
        axes.fill_between(place, shown.min(0), shown.max(0), color=colour, alpha=0.15, linewidth=0)
        axes.plot(place, np.median(shown, 0), "o-", color=colour, label=name, markersize=3)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    _label(axes, "place", "singular value a slot, median and range")


def draw_probes(axes: Axes, view: DiagnosisView) -> None:
    """Where every start of a search led; the shaded corner holds other slots of the same picture."""
    distance, error = view.limits
    for colour, (name, found) in zip(_COLOURS, view.probes.items(), strict=False):
        shown = found.clip((_LEAST_DISTANCE, _LEAST_ERROR))
        axes.scatter(shown[:, 0], shown[:, 1], 18, colour, label=name, alpha=0.75, linewidths=0)
    largest = 3 * max(10 * distance, *(float(found[:, 0].max()) for found in view.probes.values()))
    axes.set(xscale="log", yscale="log", xlim=(_LEAST_DISTANCE / 2, largest), ylim=(_LEAST_ERROR / 2, 4.0))
    axes.fill_between([distance, largest], _LEAST_ERROR / 2, error, color=_VERDICTS["fails"], alpha=0.12, linewidth=0)
    _label(axes, "distance from the true slots, in deviations", "largest difference of a pixel")


def draw_movers(axes: Axes, view: DiagnosisView) -> None:
    """Share of pixels by the number of slots that move them."""
    bars = axes.bar(range(len(view.movers)), view.movers, color=_COLOURS[0])
    axes.bar_label(bars, fmt="{:.0%}", fontsize=8, color=pictures.INK)
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.set_ylim(0, 1.12)
    axes.set_xlabel("slots that move a pixel", fontsize=9, color=pictures.FAINT)
    axes.set_ylabel("share of pixels", fontsize=9, color=pictures.FAINT)
    said = f"two slots together: {view.interaction:.2g} of their effects off the sum"
    axes.text(0.03, 0.95, said, transform=axes.transAxes, va="top", fontsize=8, color=pictures.INK)


def draw_variances(axes: Axes, view: DiagnosisView) -> None:
    """Histograms of smallest variances; below the line they have collapsed."""
    shown = [np.maximum(values, _LEAST_VARIANCE) for values in view.variances.values()]
    lowest = min(view.collapsed, *(float(values.min()) for values in shown)) / 3
    highest = 3 * max(1.0, *(float(values.max()) for values in shown))
    edges = np.geomspace(lowest, highest, 41)
    for colour, name, values in zip(_COLOURS, view.variances, shown, strict=False):
        weights = np.full(len(values), 1.0 / len(values))
        axes.hist(values, bins=edges.tolist(), weights=weights, color=colour, alpha=0.6, label=name)
    axes.axvline(view.collapsed, color=_VERDICTS["fails"], linewidth=1.2)
    axes.set_xscale("log")
    _label(axes, "smallest variance, of the mixture's mean", "share")


def draw_components(axes: Axes, view: DiagnosisView) -> None:
    """Weight of each component against its distance to the nearest other one; one that stands alone is at the edge."""
    distance, weight = view.components.T
    alone = np.isinf(distance)
    edge = 2 * max(view.separated, float(distance[~alone].max(initial=0.0)))
    axes.scatter(np.where(alone, edge, distance), weight, 14, _COLOURS[0], alpha=0.7, linewidths=0)
    axes.axvline(view.separated, color=_VERDICTS["holds"], linewidth=1.2)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("Bhattacharyya distance to the nearest other component", fontsize=9, color=pictures.FAINT)
    axes.set_ylabel("weight of a component", fontsize=9, color=pictures.FAINT)


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=9, color=pictures.FAINT)
    axes.set_ylabel(y, fontsize=9, color=pictures.FAINT)
    axes.legend(fontsize=8, frameon=False, labelcolor=pictures.INK)


def _dress(axes: Axes) -> None:
    axes.set_axisbelow(True)
    axes.grid(True, color="#eceef1", linewidth=0.8)
    axes.tick_params(which="both", labelsize=8, colors=pictures.FAINT, length=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(pictures.LINE)
