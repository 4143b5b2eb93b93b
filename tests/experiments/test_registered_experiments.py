"""Every experiment is listed, and runs at smoke scale through the command."""

import importlib
import json
from pathlib import Path

import pytest
from command_line import assert_says_one_line
from command_line import run as psa_command
from PIL import Image

from psa import experiments
from psa.experiments.experiment import SCALES, VERDICTS, Experiment
from psa.experiments.registry import EXPERIMENTS

FOLDER = Path(str(experiments.__file__)).parent
CONTRACT = ("experiment", "running", "registry")
EXACT = ("special_cases", "concatenated_slots", "aggregate_lemma")  # float64 equalities, on the CPU at every scale


def defined() -> dict[str, str]:
    """The experiments that the files beside the registry define, and their modules."""
    found = {}
    for path in FOLDER.glob("*.py"):
        module = importlib.import_module(f"psa.experiments.{path.stem}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Experiment) and value.__module__ == module.__name__:
                found[getattr(value, "name", "")] = path.stem
    return {name: module for name, module in found.items() if module not in CONTRACT}


def test_every_experiment_is_listed_under_the_name_of_its_file():
    assert {name: name for name in EXPERIMENTS} == defined()
    for name, scales in EXPERIMENTS.items():
        assert tuple(scales) == SCALES, name
        assert scales["gpu"].device == ("cpu" if name in EXACT else "cuda")
        assert scales["cpu"].device == scales["smoke"].device == "cpu"
        assert scales["cpu"] != scales["smoke"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_smoke_scale_runs_through_the_command(name: str, tmp_path: Path):
    result = psa_command("experiment", "run", name, "--scale", "smoke", "--out", tmp_path, "--json")
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "result.json").read_text())
    assert result.json["verdict"] == record["verdict"]
    assert record["verdict"] in VERDICTS
    assert record["reason"]
    assert result.json["tables"].keys() == record["tables"].keys()
    assert all(rows and all(row.keys() == rows[0].keys() for row in rows) for rows in record["tables"].values())
    assert record["figures"].keys() <= result.json.keys()
    for picture in record["pictures"]:
        with Image.open(tmp_path / picture) as opened:
            assert min(opened.size) > 200
    units = {path.stem for path in (tmp_path / "units").iterdir()}
    assert units == set(EXPERIMENTS[name]["smoke"].units())


def test_unknown_names_scales_and_devices_are_one_line_each(tmp_path: Path):
    out = ("--out", tmp_path / "out")
    assert_says_one_line(psa_command("experiment", "run", "nothing", *out), 2, "nothing", "aggregate_lemma")
    assert_says_one_line(
        psa_command("experiment", "run", "complexity", "--scale", "big", *out), 2, "big", "smoke, cpu, gpu"
    )
    assert_says_one_line(psa_command("experiment", "list", "complexity"), 2)
    assert not (tmp_path / "out").exists()


def test_list_names_every_experiment():
    table, listed = psa_command("experiment", "list"), psa_command("experiment", "list", "--json")
    assert (table.code, listed.code) == (0, 0)
    assert [row["name"] for row in listed.json["experiments"]] == list(EXPERIMENTS)
    assert all(name in table.out for name in EXPERIMENTS)


def test_the_table_is_shown_without_json(tmp_path: Path):
    result = psa_command("experiment", "run", "special_cases", "--scale", "smoke", "--out", tmp_path)
    assert result.code == 0, result.err
    assert "verdict: holds." in result.out
    assert "scikit-learn KMeans" in result.out
    assert str(tmp_path) in result.out
