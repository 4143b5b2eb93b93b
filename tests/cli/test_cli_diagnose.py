import json
import shutil
from functools import partial
from pathlib import Path

import pytest
from command_line import assert_says_one_line, contents
from command_line import run as psa_command
from PIL import Image
from tiny import WITH_KL, tiny_trainer, write_folder

from psa.inference.sessions import build_prior
from psa.runs import RunDirectory

NAMES = [
    "piecewise affine",
    "full rank",
    "weakly injective",
    "additive",
    "aggregate not degenerate",
    "components separate",
]
FILES = {"diagnose.json", "diagnose.png"}
diagnose = partial(psa_command, "diagnose")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A tiny trained run with its prior."""
    path = tmp_path_factory.mktemp("runs") / "tiny"
    trainer = tiny_trainer(WITH_KL, path=path)
    trainer.fit()
    build_prior(trainer.autoencoder, RunDirectory(path))
    return path


def test_every_assumption_has_a_verdict_on_the_screen_in_json_and_in_the_run(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    before = contents(copy)
    result = diagnose(copy, "-n", 1, "--json")
    assert result.code == 0, result.err
    record = result.json
    assert list(record["verdicts"]) == [row["assumption"] for row in record["assumptions"]] == NAMES
    assert set(record["verdicts"].values()) <= {"holds", "fails", "not decided"}
    assert [row["verdict"] for row in record["assumptions"]] == list(record["verdicts"].values())
    for name in NAMES:
        assert name in result.out
    assert (record["images"], record["split"], record["seed"]) == (1, "test", 0)
    assert json.loads((copy / "figures" / "diagnose.json").read_text()) == record
    with Image.open(copy / "figures" / "diagnose.png") as picture:
        assert picture.size == (2016, 1152)
    after = contents(copy)
    assert set(after) - set(before) == {f"figures/{name}" for name in FILES}
    assert {name: after[name] for name in before} == before


def test_the_same_seed_repeats_it_and_another_does_not(run, tmp_path):
    folder = write_folder(tmp_path / "scenes", 1)
    asked = (run, "--data", folder, "--split", "all", "--out", tmp_path / "out", "--json")
    one, other = diagnose(*asked), diagnose(*asked)
    assert one.code == 0, one.err
    assert one.json == other.json
    assert (one.json["data"], one.json["images"]) == (str(folder), 1)
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    assert diagnose(*asked, "--seed", 1).json["assumptions"] != one.json["assumptions"]


def test_what_is_no_run_is_one_line_and_nothing_is_written(run, tmp_path):
    assert_says_one_line(diagnose(tmp_path / "missing"), 2, "expected a run directory")
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "config.toml").write_bytes((run / "config.toml").read_bytes())
    (cut / "checkpoint.safetensors").write_bytes((run / "checkpoint.safetensors").read_bytes()[:500])
    assert_says_one_line(diagnose(cut, "--out", tmp_path / "out"), 2, "checkpoint.safetensors")
    assert_says_one_line(diagnose(run, "-n", 0), 2, "--images")
    assert_says_one_line(diagnose(run, "--data", tmp_path / "none", "--out", tmp_path / "out"), 2, "none")
    assert_says_one_line(diagnose(run, "--split", "mine", "--out", tmp_path / "out"), 2, "mine")
    assert not (tmp_path / "out").exists()
    assert len(list(cut.iterdir())) == 2


def test_a_folder_that_cannot_be_written_is_one_line(run, tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = diagnose(run, "-n", 1, "--out", tmp_path / "file")
    assert_says_one_line(result, 2, "--out", "cannot be written")
