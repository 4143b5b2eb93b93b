"""Issue 7: 20 random kill -9 and resume cycles of ``psa train``, and a disk that is full."""

import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from kills import (
    EVERY,
    Kill,
    Server,
    assert_as_if_nothing_happened,
    draw_moment,
    finish,
    go_on_and_kill,
    start_command,
    uninterrupted,
)

from psa.runs import RunDirectory, load_tensors

STEPS = 200
KILLS = 20


@pytest.mark.slow
def test_twenty_kills_at_random_moments_cost_at_most_the_interval_and_change_nothing(tmp_path):
    """The killed processes are forks of one that has imported psa; ``python -m psa`` ends it."""
    seed = random.SystemRandom().randrange(2**32)
    start, rng, run = Server(), random.Random(seed), RunDirectory(tmp_path / "killed")
    whole = uninterrupted(start, tmp_path / "whole", STEPS)
    times = f"{whole.opening:.2f} s to open, {whole.training:.2f} s of training, {whole.ending:.2f} s of the rest"
    print(f"\n{STEPS} steps, a checkpoint every {EVERY}; kills from seed {seed}. Without a kill: {times}")
    print("kill  phase     seconds  reached  state  weights  half written")
    kills: list[Kill] = []
    while len(kills) < KILLS:
        kill = go_on_and_kill(start, run.path, STEPS, draw_moment(rng, run, whole, STEPS, KILLS))
        if kill is None:
            continue  # it ended before
        kills.append(kill)
        when, steps = kill.moment, f"{kill.reached:8} {kill.kept!s:>6} {kill.shown!s:>8}"
        print(f"{len(kills):4}  {when.phase:8} {when.delay:8.3f} {steps}  {', '.join(kill.cut)}", flush=True)
        assert kill.reached - (kill.kept or 0) <= EVERY
        assert (kill.kept or 0) - (kill.shown or 0) <= EVERY
    kept = [kill.kept or 0 for kill in kills]
    assert kept == sorted(kept)
    finish(start_command, run.path, STEPS)
    assert_as_if_nothing_happened(run, whole.run)
    print(
        "finished by python -m psa; weights, state, prior, rows but for seconds, page but for its date: the same bytes"
    )


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 300 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here; tests/cli/test_survival.py has a limit on files")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
def test_a_disk_that_is_full_keeps_the_last_checkpoint_and_the_run_goes_on_when_there_is_room(small_disk, tmp_path):
    settings = tiny.options([*tiny.SETTINGS, *tiny.SPRITES, "training.steps=200", "training.evaluate_every=1"])
    elsewhere = tmp_path / "whole"
    whole, run = RunDirectory(elsewhere), RunDirectory(small_disk / "run")
    assert subprocess_of("train", "--out", elsewhere, *settings)[0] == 0
    ballast = small_disk / "ballast"
    # room for a state, the next one on its way, the weights and half of the rows: a checkpoint is what fills the disk
    wanted = 2 * whole.state.stat().st_size + whole.checkpoint.stat().st_size + whole.metrics.stat().st_size // 2
    ballast.write_bytes(bytes(300_000 - wanted - 8_000))
    code, said = subprocess_of("train", "--out", run.path, *settings)
    print(f"exit code {code}: {said}")
    assert code == 1
    assert "cannot be written" in said
    assert "No space left on device" in said
    assert f"psa train --resume --out {run.path}" in said
    step = load_tensors(run.state)[1]["step"]
    assert step > 0
    assert load_tensors(run.checkpoint)[1]["step"] in (step, step - 10)
    print(f"the checkpoint of step {step} is whole; free: {shutil.disk_usage(small_disk).free} bytes")
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    assert subprocess_of("train", "--resume", "--out", run.path)[0] == 0
    assert_as_if_nothing_happened(run, whole)
    print("with room again it ends in the same bytes")


def subprocess_of(*arguments: object) -> tuple[int, str]:
    """Exit code and last line of standard error."""
    process = start_command(*arguments, told=True)
    _, told = process.communicate()
    return process.returncode, told.decode().rstrip().splitlines()[-1]
