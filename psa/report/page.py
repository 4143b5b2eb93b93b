"""The report of a run as one HTML page that needs nothing but itself."""

import math
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from psa.report import pictures
from psa.report.content import Curves, ReportContent, SceneView, Value
from psa.report.curves import curves_png
from psa.report.files import save

_DASH, _MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


@dataclass(frozen=True)
class _Slot:
    name: str
    colour: str
    picture: str
    mask: str
    weight: str
    percent: float


@dataclass(frozen=True)
class _Scene:
    name: str
    foreground_ari: str | None
    wholes: list[tuple[str, str]]
    slots: list[_Slot]


def write_report(path: str | Path, content: ReportContent) -> None:
    """Write the page in one step; a failure leaves the page that was there.

    Args:
        path: An HTML file; its folder is made if need be.
        content: What the page says. All text is escaped.
    """
    save(path, render_report(content).encode("utf-8"))


def render_report(content: ReportContent) -> str:
    """The page as text: styles and pictures inside, no script, and nothing that a browser would fetch."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["value"] = format_value
    environment.tests["number"] = is_number
    template = environment.from_string(files("psa.report").joinpath("report.html").read_text(encoding="utf-8"))
    return template.render(
        content=content,
        scenes=[_scene(index, scene) for index, scene in enumerate(content.scenes)],
        curves=_curves(content.curves),
    )


def format_value(value: Value) -> str:
    """A number as a reader wants it: three decimals, fewer where large, an exponent at the ends; NaN is a dash."""
    if value is None or isinstance(value, str):
        return _DASH if value is None else value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if not math.isfinite(value):
        return _DASH if math.isnan(value) else "∞" if value > 0 else f"{_MINUS}∞"
    return _format_finite(value).replace("-", _MINUS)


def is_number(value: Value) -> bool:
    """Whether a cell is aligned as a number; a missing one is."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _format_finite(value: float) -> str:
    size = abs(value)
    if 0 < size < 1e-3:
        return f"{value:.2e}"
    if size >= 1e6:
        return f"{value:.3e}"
    # About three significant digits, but as many decimals as a column of scores shares.
    decimals = 0 if size >= 1e3 else 1 if size >= 100 else 4 if 0 < size < 0.1 else 3
    return f"{value:,.{decimals}f}"


def _scene(index: int, scene: SceneView) -> _Scene:
    colours = pictures.scene_colours(scene.labels, scene.num_slots)
    wholes = [
        ("input", pictures.png_data_uri(scene.image)),
        ("reconstruction", pictures.png_data_uri(scene.reconstruction)),
        ("segmentation", pictures.png_data_uri(pictures.label_picture(scene.labels, colours))),
    ]
    if scene.true_mask is not None:
        true = pictures.labels_like(scene.true_mask, scene.labels, scene.num_slots)
        wholes.append(("true mask", pictures.png_data_uri(pictures.label_picture(true, colours))))
    foreground_ari = None if scene.foreground_ari is None else format_value(float(scene.foreground_ari))
    slots = [_slot(slot, scene, colour) for slot, colour in enumerate(colours)]
    return _Scene(f"Scene {index + 1}", foreground_ari, wholes, slots)


def _slot(slot: int, scene: SceneView, colour: str) -> _Slot:
    mask, weight = scene.masks[slot], float(scene.weights[slot])
    return _Slot(
        name=f"slot {slot + 1}",
        colour=colour,
        picture=pictures.png_data_uri(pictures.cut_out(scene.slot_rgb[slot], mask)),
        mask=pictures.png_data_uri(pictures.mask_picture(mask)),
        weight=f"{weight:.2f}" if math.isfinite(weight) else _DASH,
        percent=round(100 * min(max(weight, 0.0), 1.0), 1) if math.isfinite(weight) else 0.0,
    )


def _curves(curves: Curves) -> str | None:
    return pictures.data_uri(curves_png(curves)) if any(curves.values()) else None
