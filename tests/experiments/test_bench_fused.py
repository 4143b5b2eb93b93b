"""``psa bench --suite fused``: refused without a device; its arithmetic; all of it, small, in Triton's interpreter."""

import os

import pytest
import torch
from command_line import run
from tolerances import FLOAT32

from psa.experiments.bench import fused as bench
from psa.experiments.bench.fused import FusedProblem, bench_fused, fused_is

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
SMALL = FusedProblem(batch=1, num_tokens=33, num_slots=3, num_features=4, copied=1 << 20, repeats=1)


@pytest.mark.skipif(INTERPRETED, reason="is not refused in the interpreter")
def test_without_a_device_it_is_refused_in_one_line():
    result = run("bench", "--suite", "fused")
    assert result.code == 2
    assert "--suite fused: " in result.err
    assert "not on a CUDA device" in result.err or "Triton is not installed" in result.err


def test_bandwidth_and_speed_are_relative_to_the_copy_and_the_plain_path():
    problem = FusedProblem(copied=500_000_000)
    times = {
        "copy": [1.0, 2.0, 0.5],
        "fused, forward": [2.0],
        "fused, forward and backward": [6.0],
        "plain, forward": [8.0],
        "plain, forward and backward": [12.0],
    }
    copy, forward, both, plain, _ = bench._costs(times, problem, 1_000_000_000)
    assert (copy.milliseconds, copy.low, copy.high, copy.of_copy) == (1.0, 0.5, 2.0, 1.0)
    assert (forward.gigabytes, forward.of_copy, forward.speedup) == (1.0, 0.5, 4.0)
    assert (both.gigabytes, both.of_copy, both.speedup) == (3.0, 0.5, 2.0)
    assert plain.speedup == 1.0


def test_the_setting_is_as_it_was_afterwards(monkeypatch):
    monkeypatch.setenv("PSA_FUSED", "auto")
    with fused_is("never"):
        assert os.environ["PSA_FUSED"] == "never"
    assert os.environ["PSA_FUSED"] == "auto"
    monkeypatch.delenv("PSA_FUSED")
    with fused_is("never"):
        pass
    assert "PSA_FUSED" not in os.environ


@pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="needs a CUDA device or the interpreter")
def test_all_are_timed_and_the_kernels_are_right():
    costs, errors = bench_fused(SMALL, "cpu" if INTERPRETED else "cuda", blocks=1)
    assert [cost.work for cost in costs] == [
        "copy",
        *(f"{name}, {part}" for name in ("fused", "plain") for part in ("forward", "forward and backward")),
    ]
    assert all(cost.milliseconds > 0.0 for cost in costs)
    assert errors.moments <= FLOAT32
    assert errors.natural <= 2.0**-15
    assert errors.tokens <= 1.0
