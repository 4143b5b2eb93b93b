import json
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from command_line import assert_says_one_line
from command_line import run as psa_command
from PIL import Image
from tiny import WITH_KL, tiny_trainer, write_folder

import psa.arviz  # noqa: F401 - first: it knows which of ArviZ's warnings are meant for nobody
from psa.inference.check_statistics import FIT_STATISTICS, IMAGE_STATISTICS, SLOT_STATISTICS, TOKEN_STATISTICS
from psa.inference.config import override
from psa.runs import RunDirectory

FILES = {"checks.json", "checks.png"}
check = partial(psa_command, "check")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A tiny trained run."""
    path = tmp_path_factory.mktemp("runs") / "tiny"
    tiny_trainer(WITH_KL, path=path).fit()
    return path


@pytest.fixture
def tokens(tmp_path) -> Path:
    """Five unit Gaussians on a circle of radius 6."""
    rng, angle = np.random.default_rng(0), np.arange(100) % 5 * 2 * np.pi / 5
    np.save(tmp_path / "five.npy", 6.0 * np.stack([np.cos(angle), np.sin(angle)], -1) + rng.normal(size=(100, 2)))
    return tmp_path / "five.npy"


def test_a_run_is_checked_in_two_ways_by_every_statistic(run, tmp_path):
    result = check(run, "-n", 2, "--replicates", 19, "--out", tmp_path / "out", "--json")
    assert result.code == 0, result.err
    rows = result.json["checks"]
    names = [*IMAGE_STATISTICS, *SLOT_STATISTICS]
    assert [(row["kind"], row["statistic"]) for row in rows] == [
        (kind, name) for kind in ("prior", "posterior") for name in names
    ]
    assert all(0.0 <= row["p_value"] <= 1.0 and row["replicates"] == 19 for row in rows)
    assert {row["uniform"] for row in rows if row["kind"] == "posterior"} == {"no"}
    assert "raw p-values are not uniform" in result.out
    assert result.json["images"] == 2
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES | {"prior.nc", "posterior.nc"}
    assert json.loads((tmp_path / "out" / "checks.json").read_text()) == result.json
    with Image.open(tmp_path / "out" / "checks.png") as picture:
        assert picture.size == (2048, 1600)


def test_results_go_into_the_run_unless_told_and_the_same_seed_repeats_them(run):
    asked = (run, "-n", 2, "--replicates", 3, "--statistic", "pixel_mean", "--statistic", "object_size", "--json")
    one, other = check(*asked), check(*asked)
    assert one.json == other.json
    assert [row["statistic"] for row in one.json["checks"]] == ["pixel_mean", "object_size"] * 2
    assert Path(one.json["out"]) == run / "checks"
    assert {path.name for path in (run / "checks").iterdir()} > FILES
    assert check(*asked, "--seed", 1).json["checks"] != one.json["checks"]


def test_a_calibrated_check_ranks_among_simulations(run, tmp_path):
    result = check(
        run, "--kind", "calibrated", "-n", 2, "--replicates", 5, "--simulations", 7, "--statistic", "pixel_mean",
        "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    (row,) = result.json["checks"]
    assert (row["replicates"], row["uniform"], row["reference"]) == (7, "exactly", "calibrated on the prior predictive")


def test_tokens_are_checked_in_two_ways_by_every_statistic(tokens):
    result = check(tokens, "--slots", 2, "--replicates", 3, "--json")
    assert result.code == 0, result.err
    names = [*TOKEN_STATISTICS, *FIT_STATISTICS]
    assert [(row["kind"], row["statistic"]) for row in result.json["checks"]] == [
        (kind, name) for kind in ("posterior", "held-out") for name in names
    ]
    assert Path(result.json["out"]) == tokens.parent / "checks"


def test_tokens_show_that_five_clusters_are_not_two(tokens):
    named = ("--statistic", "token_nearest_distance", "--statistic", "token_mean")
    result = check(tokens, "--slots", 2, "--replicates", 199, "--kind", "posterior", *named, "--json")
    distance, mean = result.json["checks"]
    assert distance["p_value"] <= 0.01, "outside all replicates"
    assert mean["p_value"] > 0.1


def test_a_function_of_the_users_is_a_statistic_and_a_feature(run, tokens, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "def largest(batch):\n    return batch.flatten(1).amax(1)\n\n\n"
        "def colours(images):\n    return images.mean((2, 3))\n\n\n"
        "def wrong(batch):\n    return batch\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    own = check(tokens, "--slots", 1, "--replicates", 9, "--statistic", "mine:largest", "--json")
    assert {row["statistic"] for row in own.json["checks"]} == {"mine:largest"}
    assert own.json["checks"][0]["observed"] == float(np.load(tokens).max())
    assert_says_one_line(check(tokens, "--slots", 1, "--statistic", "mine:wrong"), 2, "must be a number for each of")
    out = ("--out", tmp_path / "out", "--statistic", "pixel_mean", "--replicates", 3, "-n", 2, "--json")
    distances = [check(run, "--features", name, *out).json["frechet_distance"] for name in ("mine.colours", "run")]
    assert min(distances) > 0.0


def test_other_images_can_be_checked(run, tmp_path):
    folder = write_folder(tmp_path / "scenes")
    found = check(
        run, "--data", folder, "--split", "all", "-n", 3, "--replicates", 3, "--statistic", "pixel_mean", "--json"
    )
    assert found.json["images"] == 3
    assert_says_one_line(check(run, "--data", tmp_path / "none"), 2, "none")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--replicates", 0), ("--replicates",)),
        (("--simulations", 0), ("--simulations",)),
        (("-n", 0), ("--images",)),
        (("--kind", "held-out"), ("--kind held-out", "prior, posterior, calibrated")),
        (("--tail", "both"), ("--tail both", "two-sided, upper, lower")),
        (("--statistic", "beauty"), ("--statistic beauty", "pixel_mean")),
        (("--statistic", "no.such:thing"), ("no.such:thing", "expected a callable")),
        (("--slots", 2), ("--slots",)),
        (("--features", "timm:none:nothing.safetensors"), ("timm",)),
        (("--features", "nonsense"), ("nonsense", "expected a callable")),
    ],
)
def test_bad_options_are_one_line_and_nothing_is_written(run, tmp_path, options, words):
    assert_says_one_line(check(run, "--out", tmp_path / "out", *options), 2, *words)
    assert not (tmp_path / "out").exists()


def test_a_run_that_leaves_slots_undecoded_is_one_line(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    directory = RunDirectory(tmp_path / "run")
    directory.write_config(override(directory.read_config(), ["decoder.relevance=information"]))
    assert_says_one_line(check(tmp_path / "run"), 2, "decoder.relevance = information", "set it to none")


def test_what_is_no_run_is_one_line(run, tmp_path):
    assert_says_one_line(check(tmp_path / "missing"), 2, "expected a run directory")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    assert_says_one_line(check(foreign), 2, "expected a run directory with config.toml")
    assert [path.name for path in foreign.iterdir()] == ["notes.txt"]
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "config.toml").write_bytes((run / "config.toml").read_bytes())
    (cut / "checkpoint.safetensors").write_bytes((run / "checkpoint.safetensors").read_bytes()[:500])
    assert_says_one_line(check(cut), 2, "checkpoint.safetensors")


def test_bad_tokens_are_one_line(tokens, tmp_path):
    assert_says_one_line(check(tokens), 2, "--slots")
    assert_says_one_line(check(tokens, "--slots", 2, "--kind", "prior"), 2, "--kind prior", "posterior, held-out")
    assert_says_one_line(check(tokens, "--slots", 2, "--features", "run"), 2, "neither --data nor --features")
    assert_says_one_line(check(tmp_path / "none.npy", "--slots", 2), 2, "nothing of that name")
    np.save(tmp_path / "one.npy", np.zeros((1, 2)))
    assert_says_one_line(check(tmp_path / "one.npy", "--slots", 1), 2, "at least 2 tokens, got 1")
    file = tmp_path / "file"
    file.write_text("in the way")
    assert_says_one_line(check(tokens, "--slots", 1, "--replicates", 3, "--out", file), 2, "--out", "cannot be written")
