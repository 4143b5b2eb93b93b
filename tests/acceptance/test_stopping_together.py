"""SIGTERM to the process that a user started: all processes of the run stop after the same step, and it goes on."""

import multiprocessing
import os
import signal

import pytest
import tiny

from psa.inference.config import override
from psa.inference.interrupts import Interrupted
from psa.inference.launching import Request, train
from psa.runs import RunDirectory, load_tensors

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unchecked")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["terminate", "interrupt"])
def test_a_signal_stops_all_processes_after_a_step_with_the_checkpoint_written(tmp_path, number):
    settings = (*tiny.SETTINGS, *tiny.SPRITES, "training.devices=2", "training.steps=100000")
    seen: list[int] = []

    def interrupt(step: int, row: dict[str, float]) -> None:
        seen.append(step)
        if step == 3:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match=r"interrupted at step \d+ of 100000"):
        train(Request(tmp_path, override(tiny.WITH_KL, settings)), interrupt)
    assert multiprocessing.active_children() == []
    step = load_tensors(RunDirectory(tmp_path).state)[1]["step"]
    assert step == seen[-1] >= 3
    trainer = Request(tmp_path, None, ("training.devices=1",)).open(None)
    assert trainer.step == step
    trainer.train_steps(2)
