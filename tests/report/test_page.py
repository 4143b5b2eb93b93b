import dataclasses
import errno
import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from psa.report import Curves, MetricRow, ReportContent, RunsTable, SceneView, Verdict, render_report, write_report
from psa.report.page import format_value, is_number


def scene(num_slots: int = 3, *, truth: bool = True, size: int = 8, seed: int = 0) -> SceneView:
    generator = np.random.default_rng(seed)
    masks = generator.dirichlet(np.ones(num_slots), (size, size)).transpose(2, 0, 1).astype(np.float32)
    return SceneView(
        image=generator.integers(0, 256, (size, size, 3), dtype=np.uint8),
        reconstruction=generator.integers(0, 256, (size, size, 3), dtype=np.uint8),
        true_mask=generator.integers(0, 4, (size, size)) if truth else None,
        masks=masks,
        slot_rgb=generator.integers(0, 256, (num_slots, size, size, 3), dtype=np.uint8),
        weights=masks.mean((1, 2)),
        foreground_ari=0.625 if truth else None,
    )


CURVES = {"loss": [(0, 1.0), (10, 0.01)], "foreground_ari": [(0, 0.1), (10, 0.9)]}


def content(*scenes: SceneView, curves: Curves = MappingProxyType({})) -> ReportContent:
    return ReportContent(
        title="A run",
        summary="What happened.",
        verdicts=[Verdict("ok", "It learned."), Verdict("warning", "One seed did not.")],
        metrics=[MetricRow("foreground ARI", 0.93127, "1 is perfect"), MetricRow("mSC", math.nan, "unknown")],
        scenes=scenes,
        curves=curves,
        runs=RunsTable(["seed", "score"], [[0, 0.5], [1, None], [2, 0.75]], chosen=2),
        config_toml="seed = 0\n",
        provenance={"torch": "2.13.0"},
    )


class Page(HTMLParser):
    """The tags of a page, each with its attributes, and its visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def alternatives(self) -> list[str]:
        return [attributes["alt"] or "" for tag, attributes in self.tags if tag == "img"]


def test_page_fetches_nothing() -> None:
    html = render_report(content(scene(), curves=CURVES))
    page = Page(html)
    assert page.open == []
    assert "://" not in html
    assert "url(" not in html
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "base", "object"})
    sources = [attributes["src"] or "" for tag, attributes in page.tags if "src" in attributes]
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)


@pytest.mark.parametrize("place", ["title", "summary", "verdicts", "metrics", "runs", "config_toml", "provenance"])
def test_text_is_escaped(place: str) -> None:
    bad = "<script>alert(1)</script>"
    put: Any = {
        "verdicts": [Verdict("ok", bad)],
        "metrics": [MetricRow(bad, bad, bad)],
        "runs": RunsTable([bad], [[bad]]),
        "provenance": {bad: bad},
    }.get(place, bad)
    html = render_report(dataclasses.replace(content(), **{place: put}))
    assert "<script" not in html
    assert bad in Page(html).text


def test_every_scene_and_slot_appears() -> None:
    alternatives = Page(render_report(content(scene(3), scene(5, seed=1), curves=CURVES))).alternatives()
    expected = [
        f"Scene {number}, {part}"
        for number, num_slots in ((1, 3), (2, 5))
        for part in [
            *("input", "reconstruction", "segmentation", "true mask"),
            *(f"slot {slot + 1}, {kind}" for slot in range(num_slots) for kind in ("picture", "mask")),
        ]
    ]
    assert alternatives == [*expected, "Learning curves: loss, foreground_ari"]


def test_weights_are_numbers_and_bars() -> None:
    weighted = dataclasses.replace(scene(3), weights=np.array([0.25, 0.75, math.nan], dtype=np.float32))
    html = render_report(content(weighted))
    assert re.findall(r"<b>(.*?)</b>", html) == ["0.25", "0.75", "\N{EN DASH}"]
    assert re.findall(r"width: ([\d.]+%); background", html) == ["25.0%", "75.0%", "0.0%"]


def test_verdicts_come_before_everything_but_the_heading() -> None:
    text = Page(render_report(content(scene()))).text
    places = [text.index(words) for words in ("What happened.", "It learned.", "One seed did not.", "foreground ARI")]
    assert places == sorted(places)
    levels = [attributes["class"] for tag, attributes in Page(render_report(content())).tags if tag == "li"]
    assert levels == ["ok", "warning"]


def test_values_that_are_missing_are_a_dash() -> None:
    html = render_report(content())
    assert html.count('<td class="number">\N{EN DASH}</td>') == 2
    assert "nan" not in Page(html).text.lower()


def test_chosen_run_is_marked() -> None:
    rows = re.findall(r"<tr( class=\"chosen\")?><td class=\"number\">(\d)", render_report(content()))
    assert rows == [("", "0"), ("", "1"), (' class="chosen"', "2")]


def test_page_without_truth_shows_none() -> None:
    html = render_report(content(scene(truth=False)))
    assert not any("true mask" in words for words in Page(html).alternatives())
    assert "<span>foreground ARI" not in html
    assert "<span>foreground ARI 0.625</span>" in render_report(content(scene()))


@pytest.mark.parametrize(
    "sparse",
    [
        ReportContent("Nothing", "at all"),
        ReportContent("No points", "in the curve", curves={"loss": []}),
        ReportContent("One slot", "one scene", scenes=[scene(1)]),
        ReportContent("No rows", "in the table", runs=RunsTable(["seed"], [])),
    ],
    ids=lambda sparse: sparse.title,
)
def test_page_is_whole_when_parts_are_missing(sparse: ReportContent) -> None:
    page = Page(render_report(sparse))
    assert page.open == []
    assert "No learning curve was recorded." in page.text
    assert len(page.alternatives()) == (6 if sparse.scenes else 0)


def test_page_is_written_whole_and_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "run" / "report.html"
    write_report(path, content())
    assert path.read_text(encoding="utf-8") == render_report(content())
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.usefixtures("unchecked")
def test_failed_render_leaves_the_old_page(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, content())
    old = path.read_bytes()
    broken = dataclasses.replace(content(), scenes=["no scene"])  # type: ignore[list-item]
    with pytest.raises(AttributeError, match="'str' object has no attribute"):
        write_report(path, broken)
    assert path.read_bytes() == old


def test_failed_replacement_leaves_the_old_page_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def refuse(source: str, target: Path) -> None:
        assert Path(source).parent == path.parent
        assert Path(source).read_text(encoding="utf-8") == render_report(content())
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_report(path, content())
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("report.html", "old")]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.93127, "0.931"),
        (0.00442, "0.0044"),
        (0.0, "0.000"),
        (-12.3456, "\N{MINUS SIGN}12.346"),
        (-12345.6, "\N{MINUS SIGN}12,346"),
        (123.456, "123.5"),
        (2.134e-4, "2.13e\N{MINUS SIGN}04"),
        (1.5e7, "1.500e+07"),
        (320, "320"),
        (3000000, "3,000,000"),
        (True, "yes"),
        ("words-with-hyphens", "words-with-hyphens"),
        (None, "\N{EN DASH}"),
        (math.nan, "\N{EN DASH}"),
        (math.inf, "∞"),
        (-math.inf, "\N{MINUS SIGN}∞"),
    ],
)
def test_values_are_shown_as_a_reader_wants_them(value: float | int | str | None, shown: str) -> None:
    assert format_value(value) == shown
    assert is_number(value) == (not isinstance(value, str | bool))


@pytest.mark.usefixtures("unchecked")
def test_records_reject_what_does_not_fit_together() -> None:
    good = scene(3)
    for name, value, message in (
        ("true_mask", np.zeros((4, 4), dtype=np.int64), r"true_mask: expected shape \(8, 8\), came \(4, 4\)"),
        ("weights", np.ones(2, dtype=np.float32), r"weights: expected shape \(3,\), came \(2,\)"),
        ("slot_rgb", good.slot_rgb[:2], r"slot_rgb: expected shape \(3, 8, 8, 3\), came \(2, 8, 8, 3\)"),
        ("masks", good.masks * 2, "masks: expected to sum to 1 over slots, came 2 to 2"),
        ("masks", good.masks * np.float32("nan"), "masks: expected to sum to 1 over slots, came nan"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(good, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rows: expected 2 cells in each, came 1"):
        RunsTable(["seed", "score"], [[1]])
    with pytest.raises(ValueError, match=r"chosen: expected a row in \[0, 1\), came 1"):
        RunsTable(["seed"], [[1]], chosen=1)
    with pytest.raises(ValueError, match="level: expected 'ok' or 'warning', came 'bad'"):
        Verdict("bad", "text")  # type: ignore[arg-type]
