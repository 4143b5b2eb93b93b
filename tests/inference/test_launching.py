"""Several processes on one run: the same numbers as one, and nobody left waiting when one dies."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import tiny
import torch
from tolerances import FLOAT32, assert_close
from torch.multiprocessing import ProcessExitedException

import psa
from psa.errors import ConfigError, TrainingFailed
from psa.inference import launching
from psa.inference.config import TrainingConfig, override
from psa.inference.launching import Request, train
from psa.inference.processes import build_fabric, this_process
from psa.inference.sessions import build_prior
from psa.runs import RunDirectory, load_tensors

pytestmark = pytest.mark.usefixtures("unchecked")
SETTINGS = ("training.evaluate_every=1", "objective.prior=aggregate", "objective.prior_refresh=12",
            "objective.prior_components=3")  # fmt: skip
LOOSE = 1e-3  # of a mixture found by iterations that are stopped by a tolerance, on weights that differ by 1e-6


def request(path: Path, *settings: str) -> Request:
    """Random starts, draws of q and the aggregate in the loop: all that has noise."""
    return Request(path, override(tiny.DRAWN_MEANS, [*tiny.SETTINGS, *tiny.SPRITES, *SETTINGS, *settings]))


def losses(path: Path) -> list[float]:
    return [row["loss"] for row in RunDirectory(path).read_metrics()]


def test_two_processes_give_the_losses_and_the_priors_of_one_with_the_doubled_batch(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    seen: list[int] = []
    train(request(one, "training.batch_size=6"), lambda step, row: None)
    train(request(two, "training.batch_size=3", "training.devices=2"), lambda step, row: seen.append(step))
    assert seen == list(range(1, 21))
    assert len(losses(two)) == 20
    for found, expected in zip(losses(two), losses(one), strict=True):
        assert abs(found - expected) <= FLOAT32 * abs(expected)
    weights = [load_tensors(RunDirectory(path).checkpoint)[0] for path in (one, two)]
    for name in ("model.component_weights", "model.component_loc", "model.component_var"):
        assert bool(weights[0][name].any())
        assert_close(weights[1][name], weights[0][name], LOOSE)
    for path in (one, two):
        build_prior(psa.load(path), RunDirectory(path))
    priors = [psa.load(path).scene_prior for path in (one, two)]
    assert_close(priors[1].aggregate.mean, priors[0].aggregate.mean, LOOSE)
    assert_close(priors[1].aggregate.variance, priors[0].aggregate.variance, LOOSE)
    # what two processes trained goes on in one
    Request(two, None, ("training.devices=1", "training.batch_size=6", "training.steps=23")).open(None).fit()
    Request(one, None, ("training.steps=23",)).open(None).fit()
    assert len(losses(two)) == 23
    assert_close(torch.tensor(losses(two)), torch.tensor(losses(one)), 10 * FLOAT32)


def test_a_process_that_is_killed_ends_the_run_with_one_line_and_keeps_the_checkpoint(tmp_path):
    def kill(step: int, row: dict[str, float]) -> None:
        if step == 3:
            sorted(multiprocessing.active_children(), key=lambda p: p.pid)[-1].kill()

    start = time.monotonic()
    with pytest.raises(
        TrainingFailed, match=r"process 2 of 2 died \(SIGKILL\); the last checkpoint is kept"
    ) as failure:
        train(request(tmp_path / "run", "training.devices=2", "training.steps=100000"), kill)
    assert "\n" not in str(failure.value)
    assert time.monotonic() - start < 300
    assert multiprocessing.active_children() == []
    assert load_tensors(RunDirectory(tmp_path / "run").state)[1]["step"] >= 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_ends_processes_while_they_start_is_an_interrupt_and_no_failure(tmp_path, monkeypatch, number):
    """As when a whole group is signalled: the new processes know of no handler yet."""

    class Starting:
        def launch(self, work: object) -> None:
            os.kill(os.getpid(), number)
            raise ProcessExitedException("ended", error_index=0, error_pid=1, exit_code=-number)

    monkeypatch.setattr(launching, "build_fabric", lambda config: Starting())
    with pytest.raises(KeyboardInterrupt):
        train(request(tmp_path / "run", "training.devices=2"), lambda step, row: None)


def test_devices_that_are_not_to_be_had_are_named():
    with pytest.raises(ConfigError, match=r"training\.devices: expected 1, got 2"):
        this_process(TrainingConfig(devices=2))
    with pytest.raises(ConfigError, match=r"training\.device: 'cuda:9' is not to be had here"):
        build_fabric(TrainingConfig(device="cuda:9"))
