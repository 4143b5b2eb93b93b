import json
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from command_line import assert_says_one_line, contents
from command_line import run as psa_command
from PIL import Image

import psa.arviz  # first: it knows which of ArviZ's warnings are meant for nobody
from psa.inference import annealed_scenes
from psa.inference.autoencoder import build_autoencoder
from psa.inference.run_comparison import Settings
from psa.inference.run_differences import compare_runs
from psa.runs import RunDirectory, save_tensors

BRIEF = ["--images", 4, "--samples", 4]
FILES = {"compare.json", "compare.png", "compare.nc"}
compare = partial(psa_command, "compare")


def write_run(path: Path, values: dict = tiny.WITH_KL, *settings: str) -> Path:
    """A run directory without training."""
    config = tiny.tiny_config(values, *settings)
    run = RunDirectory(path)
    run.create()
    run.write_config(config.to_toml())
    torch.manual_seed(config.training.seed)
    size = config.data.size
    assert isinstance(size, int)
    save_tensors(run.checkpoint, build_autoencoder(config, (size, size)).state_dict(), {"size": [size] * 2, "step": 0})
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """Two seeds and another sigma. Nothing may change them."""
    folder = tmp_path_factory.mktemp("runs")
    settings = (["training.seed=0"], ["training.seed=1"], ["objective.sigma=0.2"])
    return [write_run(folder / str(place), tiny.WITH_KL, *some) for place, some in enumerate(settings)]


def test_the_result_is_the_librarys_and_is_in_the_folder(runs, tmp_path):
    out = tmp_path / "deep" / "out"
    result = compare(*runs, *BRIEF, "--seed", 3, "--out", out, "--json")
    assert result.code == 0, result.err
    assert {path.name for path in out.iterdir()} == FILES
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert json.loads((out / "compare.json").read_text()) == result.json
    expected = compare_runs(runs, Settings(num_samples=4, num_images=4, seed=3))
    assert result.json == {"out": str(out), **json.loads(json.dumps(expected.record()))}
    stored = psa.arviz.read_netcdf(out / "compare.nc")["observed_data"]["log_evidence"]
    np.testing.assert_array_equal(stored.values, expected.log_evidence)
    with Image.open(out / "compare.png") as picture:
        assert picture.size[0] > 1500


def test_the_table_says_what_was_found(runs, tmp_path):
    result = compare(*runs, *BRIEF, "--out", tmp_path, "--json")
    table = "".join(result.out.split())
    for row in result.json["runs"]:
        for value in (f"{row['log_evidence']:.2f}", f"{row['bits_per_dimension']:.4f}", f"{row['weight']:.2f}"):
            assert value in table
    model = result.json["models"][0]
    assert f"model 1: 2 seeds, log p(x) {model['log_evidence']:.2f}, standard deviation between seeds" in result.out
    assert "iwae of 4 images (sprites, test), 4 samples, nats an image" in result.out
    assert "q averaged over the K! orders of the slots" in result.out
    assert f"compare.json, compare.png, compare.nc are in {tmp_path}" in result.out
    assert "4/4" in result.err
    assert "warning: sigma differs (0.2, 0.7)" in result.err


@pytest.mark.parametrize("method", ["elbo", "iwae", "annealed"])
def test_a_run_beside_itself_differs_by_nothing_and_is_no_replicate(runs, tmp_path, method, monkeypatch):
    brief = partial(annealed_scenes.Schedule, num_temperatures=3, num_leapfrog=1)
    monkeypatch.setattr(annealed_scenes, "Schedule", brief)
    found = compare(
        runs[0], runs[0], "--method", method, "--images", 2, "--samples", 2, "--sigma", 1, "--out", tmp_path, "--json"
    )
    assert found.code == 0, found.err
    (pair,) = found.json["pairs"]
    assert (pair["difference"], pair["difference_se"]) == (0.0, 0.0)
    assert [row["run"] for row in found.json["runs"]] == [str(runs[0]), f"{runs[0]} (2)"]
    assert len(found.json["models"]) == 2
    assert all(("acceptance" in row) == (method == "annealed") for row in found.json["runs"])
    assert ("accepted" in found.out) == (method == "annealed")
    assert "warning" not in found.err


def test_other_data_can_be_named(runs, tmp_path):
    folder = tiny.write_folder(tmp_path / "scenes", 6, size=24)
    found = compare(runs[0], runs[1], *BRIEF, "--data", folder, "--split", "all", "--out", tmp_path / "out", "--json")
    assert found.code == 0, found.err
    assert (found.json["data"], found.json["images"]) == (str(folder), 4)


def test_an_earlier_result_is_replaced_and_other_files_stay(runs, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "compare.json").write_text("{}")
    (out / "notes").write_text("mine")
    assert compare(runs[0], runs[1], *BRIEF, "--out", out).code == 0
    assert {path.name for path in out.iterdir()} == FILES | {"notes"}
    assert json.loads((out / "compare.json").read_text())["images"] == 4


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (OSError(28, "No space left on device"), 2)])
def test_what_stops_halfway_leaves_the_earlier_result(runs, tmp_path, monkeypatch, error, code):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(sys.modules["psa.cli.compare"], "comparison_figure", fail)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "compare.json").write_text("{}")
    before = contents(tmp_path)
    for out in (tmp_path / "out", tmp_path / "a" / "new"):
        words = "interrupted" if code == 130 else f"--out {out}: cannot be written (No space"
        assert_says_one_line(compare(runs[0], runs[1], *BRIEF, "--out", out, "--json"), code, words)
        assert contents(tmp_path) == before
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


def truncated(tmp: Path, run: Path) -> Path:
    copy = Path(shutil.copytree(run, tmp / "short"))
    payload = (copy / "checkpoint.safetensors").read_bytes()
    (copy / "checkpoint.safetensors").write_bytes(payload[: len(payload) // 2])
    return copy


def foreign(tmp: Path) -> Path:
    (tmp / "foreign").mkdir()
    (tmp / "foreign" / "config.toml").write_text("model = 'something else'\n")
    return tmp / "foreign"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda tmp, run: [], "RUN"),
        (lambda tmp, run: [run], "expected at least two runs to compare, got 1"),
        (lambda tmp, run: [run, tmp / "nowhere"], "nowhere: expected a run directory with config.toml, found none"),
        (lambda tmp, run: [run, truncated(tmp, run)], "short/checkpoint.safetensors: expected a safetensors file"),
        (lambda tmp, run: [run, foreign(tmp)], "foreign/config.toml: expected schema"),
        (lambda tmp, run: [run, tmp], "expected a run directory"),
        (lambda tmp, run: [run, write_run(tmp / "points", tiny.WITHOUT_KL)], "points: its slots are points"),
        (lambda tmp, run: [run, write_run(tmp / "b", tiny.WITH_KL, "data.size=24")], "expected images of 16 x 16 as"),
        (lambda tmp, run: [run, write_run(tmp / "b", tiny.WITH_KL, "data.seed=9")], "its images are not those of"),
        (lambda tmp, run: [run, run, "--images", 0], "--images"),
        (lambda tmp, run: [run, run, "--samples", 0], "--samples"),
        (lambda tmp, run: [run, run, "--method", "x"], "--method x: expected one of elbo, iwae, annealed"),
        (lambda tmp, run: [run, run, "--sigma", "-1"], "--sigma -1: expected run, fit or a number above 0"),
        (lambda tmp, run: [run, run, "--ends", "x"], "--ends x: expected one of closed, open"),
        (lambda tmp, run: [run, run, "--split", "x"], "data.split: expected one of"),
        (lambda tmp, run: [run, run, "--data", tmp / "none"], "none: expected a data set"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(runs, tmp_path, monkeypatch, make, words):
    arguments = make(tmp_path, runs[0])
    before = contents(tmp_path)
    monkeypatch.chdir(tmp_path)
    result = compare(*arguments, "--json")
    assert_says_one_line(result, 2, words)
    assert list(result.json) == ["error"]
    assert contents(tmp_path) == before
