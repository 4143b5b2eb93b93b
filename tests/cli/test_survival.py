"""Runs that are killed, refused or out of room, as the command line's user meets it."""

import random
import resource

import pytest
import tiny
from command_line import assert_says_one_line, contents
from command_line import run as psa_command
from kills import Server, assert_as_if_nothing_happened, draw_moment, finish, go_on_and_kill, uninterrupted

from psa.runs import RunDirectory

SETTINGS = tiny.options([*tiny.SETTINGS, *tiny.SPRITES])
STEPS = 30
KILLS = 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> RunDirectory:
    out = tmp_path_factory.mktemp("runs") / "trained"
    result = psa_command("train", "--out", out, *SETTINGS)
    assert result.code == 0, result.err
    return RunDirectory(out)


def test_runs_that_are_killed_at_random_moments_end_as_if_nothing_had_happened(tmp_path):
    """All 20 are in tests/acceptance/test_kill_and_resume.py."""
    start, rng, run = Server(), random.Random(), RunDirectory(tmp_path / "killed")
    whole = uninterrupted(start, tmp_path / "whole", STEPS)
    kills = []
    while len(kills) < KILLS:
        kills.append(go_on_and_kill(start, run.path, STEPS, draw_moment(rng, run, whole, STEPS, KILLS)))
    finish(start, run.path, STEPS)
    assert_as_if_nothing_happened(run, whole.run)


@pytest.mark.parametrize("command", ["train", "resume", "evaluate", "sample", "demo"])
def test_a_second_process_in_a_run_directory_is_refused_and_changes_nothing(trained, command):
    arguments = {
        "train": ("train", "--out", trained.path, *SETTINGS),
        "resume": ("train", "--resume", "--out", trained.path),
        "evaluate": ("evaluate", trained.path),
        "sample": ("sample", trained.path),
        "demo": ("demo", "--out", trained.path, *SETTINGS),
    }[command]
    prior = trained.prior.read_bytes()
    trained.prior.unlink()  # which sample would build
    with trained.held():
        before = contents(trained.path)
        result = psa_command(*arguments)
        after = contents(trained.path)
    trained.prior.write_bytes(prior)
    assert_says_one_line(result, 2, f"{trained.path}: is in use by")
    assert after == before


def test_a_full_disk_ends_training_in_one_line_and_the_run_goes_on_when_there_is_room(tmp_path, trained):
    run, limits = RunDirectory(tmp_path / "run"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        result = psa_command("train", "--out", run.path, *SETTINGS, "--json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    words = "state.safetensors: cannot be written", "File too large", f"psa train --resume --out {run.path}"
    assert_says_one_line(result, 1, *words)
    assert list(result.json) == ["error"]
    assert set(contents(run.path)) == {"config.toml"}
    assert psa_command("train", "--resume", "--out", run.path).code == 0
    assert_as_if_nothing_happened(run, trained)


@pytest.mark.parametrize("missing", ["report.html", "prior.safetensors"])
def test_what_is_missing_after_training_is_made_by_resuming(tmp_path, trained, missing):
    run = RunDirectory(tmp_path / "run")
    for name, content in contents(trained.path).items():
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        if name != missing:
            (run.path / name).write_bytes(content)
    assert psa_command("train", "--resume", "--out", run.path).code == 0
    assert_as_if_nothing_happened(run, trained)
