"""Experiments are kept unit by unit, go on where they stopped, and refuse what is not theirs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from psa.errors import ConfigError, RunError
from psa.experiments.experiment import Conclusion, Experiment, Outcome, Progress
from psa.experiments.running import run_experiment
from psa.experiments.tables import cell, markdown
from psa.report.scaling import CostCurve, scaling_figure

STOPS: list[str] = []  # units that are interrupted
MEASURED: list[str] = []


@dataclass(frozen=True)
class Toy(Experiment):
    """A mean of random numbers."""

    name: ClassVar[str] = "toy"
    claim: ClassVar[str] = "Random numbers have mean 0."
    source: ClassVar[str] = "nowhere"
    seeds: tuple[int, ...] = (0, 1, 2)
    sizes: Mapping[str, int] = field(default_factory=lambda: {"n": 4})

    def units(self) -> Sequence[str]:
        return [f"seed-{seed}" for seed in self.seeds]

    def measure(self, unit: str, progress: Progress) -> Outcome:
        if unit in STOPS:
            raise KeyboardInterrupt
        MEASURED.append(unit)
        progress(1, 1)
        drawn = torch.randn(4, generator=torch.Generator().manual_seed(int(unit[-1])), dtype=torch.float64)
        return Outcome({"mean": float(drawn.mean())}, {"drawn": drawn})

    def conclude(self, outcomes: Mapping[str, Outcome]) -> Conclusion:
        mean = sum(float(outcome.tensors["drawn"].mean()) for outcome in outcomes.values()) / len(outcomes)
        rows = [{"seed": unit, "mean": outcome.figures["mean"]} for unit, outcome in outcomes.items()]
        figure = Figure()
        figure.subplots().plot([0.0, mean])
        verdict = "holds" if abs(mean) < 1 else "fails"
        return Conclusion(verdict, "It is.", {"mean": mean}, {"Means": rows}, {"line": figure})


@pytest.fixture(autouse=True)
def clean():
    STOPS.clear()
    MEASURED.clear()


def run(out: Path, experiment: Experiment | None = None):
    return run_experiment(experiment or Toy(), "smoke", out, lambda unit: lambda done, of: None)


def without_time(record: Mapping) -> dict:
    return {name: value for name, value in record.items() if name not in ("seconds", "cpu_seconds")}


def test_an_interrupted_experiment_goes_on_with_the_missing_units(tmp_path: Path):
    STOPS.append("seed-1")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped")
    assert MEASURED == ["seed-0"]
    assert not (tmp_path / "stopped" / "result.json").exists()
    STOPS.clear()
    stopped = run(tmp_path / "stopped")
    assert MEASURED == ["seed-0", "seed-1", "seed-2"]
    whole = run(tmp_path / "whole")
    assert without_time(stopped.record) == without_time(whole.record)
    MEASURED.clear()
    again = run(tmp_path / "stopped")
    assert MEASURED == []
    assert again.record == stopped.record


def test_the_folder_holds_record_page_and_picture(tmp_path: Path):
    result = run(tmp_path / "out")
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert record == result.record
    assert record["verdict"] == result.conclusion.verdict
    assert record["configuration"] == {"device": "cpu", "seeds": [0, 1, 2], "sizes": {"n": 4}}
    page = (tmp_path / "out" / "result.md").read_text()
    assert markdown(record["tables"]["Means"]) in page
    assert "psa experiment run toy --scale smoke" in page
    with Image.open(tmp_path / "out" / record["pictures"][0]) as picture:
        assert min(picture.size) > 100


@pytest.mark.parametrize("other", [Toy(seeds=(0, 1)), Toy(sizes={"n": 5})])
def test_another_configuration_is_refused_and_nothing_is_lost(tmp_path: Path, other: Toy):
    run(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match="holds another experiment, scale or configuration; give another --out"):
        run(tmp_path, other)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_foreign_folders_and_damaged_files_are_refused(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(RunError, match=r"mine: holds files that are not an experiment's; give another --out"):
        run(tmp_path / "mine")
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="holds files that are not an experiment's"):
        run(tmp_path / "file")
    run(tmp_path / "out")
    unit = tmp_path / "out" / "units" / "seed-1.safetensors"
    unit.write_bytes(unit.read_bytes()[:20])
    with pytest.raises(RunError, match=r"seed-1\.safetensors: expected a safetensors file written by psa"):
        run(tmp_path / "out")
    (tmp_path / "out" / "experiment.json").write_text("{")
    with pytest.raises(RunError, match=r"experiment\.json: expected what psa experiment wrote, got no JSON"):
        run(tmp_path / "out")


def test_a_device_that_is_not_there_is_refused_before_anything_is_written(tmp_path: Path):
    with pytest.raises(ConfigError, match="device nowhere: not to be had here"):
        run(tmp_path / "out", Toy(device="nowhere"))
    assert not (tmp_path / "out").exists()


@dataclass(frozen=True)
class Misnamed(Toy):
    def units(self) -> Sequence[str]:
        return ["../outside"]


def test_units_are_fit_for_names_of_files(tmp_path: Path):
    with pytest.raises(AssertionError):
        run(tmp_path / "out", Misnamed())


def test_cells_show_small_numbers_and_what_is_missing():
    values = [0.0, 0.12345, 1e-3, 2.5e-7, -3e-5, float("nan"), None, 7, "psa"]
    assert [cell(value) for value in values] == [
        "0.000", "0.123", "0.001", "2.5e-07", "-3.0e-05", "\N{EN DASH}", "\N{EN DASH}", "7", "psa",
    ]  # fmt: skip


def test_the_scaling_figure_has_a_panel_an_axis_and_a_line_a_method():
    sizes = np.array([1.0, 2.0, 4.0])
    curves = [CostCurve(name, sizes, factor * sizes, 1.0) for name, factor in (("a", 1.0), ("b", 3.0))]
    figure = scaling_figure({"N": curves, "K": curves})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["N", "K"]
    for axes in figure.axes:
        first, second, proportional = axes.get_lines()
        assert list(first.get_ydata()) == [1.0, 2.0, 4.0]
        assert list(second.get_ydata()) == [3.0, 6.0, 12.0]
        assert list(proportional.get_ydata()) == [1.0, 2.0, 4.0]
