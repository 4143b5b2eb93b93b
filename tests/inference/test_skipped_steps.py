import json
import math
from collections.abc import Callable

import pytest
import tiny
import torch

from psa.errors import TrainingFailed
from psa.inference.training import Trainer
from psa.runs import RunDirectory, load_tensors


def poison_weights(trainer: Trainer) -> torch.Tensor:
    return next(trainer.autoencoder.guide.encoder.parameters())


def poison_decoder(trainer: Trainer) -> torch.Tensor:
    return next(trainer.autoencoder.model.decoder.parameters())


def poison_prior(trainer: Trainer) -> torch.Tensor:
    return trainer.autoencoder.model.prior_loc


def spoiled(bad: Callable[[int], bool], *settings: str, path=None, look=None, where=poison_weights, value=math.nan):
    """A trainer some of whose steps, by their numbers from 0, meet a weight that is not finite; healed after each."""
    healthy = {}

    def progress(step: int, row: dict[str, float]) -> None:
        weight = where(trainer)
        with torch.no_grad():
            if "value" in healthy:
                weight.copy_(healthy.pop("value"))
            if look is not None:
                look(step)
            if bad(step):
                healthy["value"] = weight.clone()
                weight.fill_(value)

    trainer = tiny.tiny_trainer(tiny.WITH_KL, *settings, path=path, progress=progress)  # progress looks it up
    return trainer


def assert_good_checkpoint(run: RunDirectory, step: int) -> None:
    for path in (run.checkpoint, run.state):
        tensors, notes = load_tensors(path)
        assert notes["step"] == step
        assert all(bool(value.isfinite().all()) for value in tensors.values())


@pytest.mark.parametrize(
    ("where", "value"), [(poison_weights, math.nan), (poison_decoder, math.inf), (poison_prior, math.nan)]
)
def test_a_step_that_is_not_finite_is_skipped_and_counted_and_changes_nothing(where, value):
    seen = {}

    def look(step: int) -> None:
        seen[step] = {k: v.clone() for k, v in trainer._state.tensors().items() if k != "random"}

    short = ("training.steps=8", "training.evaluate_every=4")
    trainer = spoiled(lambda step: step == 5, *short, look=look, where=where, value=value)
    trainer.fit()
    assert trainer.step == 8
    assert trainer.skipped == 1
    assert [row["skipped"] for row in trainer.history] == [0, 1]
    assert all(torch.equal(seen[5][name], value) for name, value in seen[6].items())
    assert not all(torch.equal(seen[6][name], value) for name, value in seen[7].items())


def test_a_finite_loss_with_a_gradient_that_is_not_is_skipped():
    trainer = tiny.tiny_trainer(tiny.WITH_KL)
    weight, before = poison_weights(trainer), poison_weights(trainer).detach().clone()
    hook = weight.register_hook(lambda gradient: gradient * math.inf)
    trainer.train_steps(1)
    assert (trainer.skipped, trainer.step) == (1, 1)
    assert torch.equal(weight, before)
    hook.remove()
    trainer.train_steps(1)
    assert trainer.skipped == 1
    assert not torch.equal(weight, before)


@pytest.mark.parametrize(("allowed", "stop"), [(0, 12), (3, 15)])
def test_more_steps_in_a_row_than_allowed_stop_training_with_advice_and_keep_the_good_checkpoint(
    tmp_path, allowed, stop
):
    trainer = spoiled(lambda step: step >= 12, f"training.max_skipped={allowed}", path=tmp_path)
    before = rf" \(as in {allowed} steps before it, which were skipped\)" if allowed else ""
    advice = r"the last good checkpoint is kept.*training\.learning_rate.*docs/failures\.md"
    with pytest.raises(
        TrainingFailed, match=rf"the loss or its gradient{before} is not finite at step {stop}; {advice}"
    ):
        trainer.fit()
    assert (trainer.step, trainer.skipped) == (stop, allowed)
    assert_good_checkpoint(RunDirectory(tmp_path), 10)


def test_the_count_begins_anew_after_a_step_that_is_finite():
    trainer = spoiled(lambda step: step % 3 != 1, "training.max_skipped=2", "training.evaluate_every=20")
    trainer.fit()
    assert trainer.step == 20
    assert trainer.skipped == 12


def test_a_row_without_a_step_that_was_taken_has_no_loss(tmp_path):
    trainer = tiny.tiny_trainer(tiny.WITH_KL, "training.max_skipped=10", "training.steps=10", path=tmp_path)
    poison_weights(trainer).register_hook(lambda gradient: gradient * math.inf)
    trainer.fit()
    (row,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert row["skipped"] == 10
    assert "loss" not in row
    assert math.isfinite(row["held_out"])


@pytest.mark.parametrize("every", ["training.checkpoint_every=1", "training.evaluate_every=1"])
def test_weights_that_stopped_being_finite_are_never_saved_or_reported(tmp_path, every):
    """The loss of a step says nothing of the weights after it."""
    trainer = tiny.tiny_trainer(tiny.WITH_KL, every, path=tmp_path)
    trainer.train_steps(2)
    trainer.save()

    def broken_step(*_: object) -> None:
        with torch.no_grad():
            poison_weights(trainer).fill_(math.nan)

    trainer._state.optimiser.step = broken_step
    with pytest.raises(TrainingFailed, match=r"the (weights are|held-out objective is) not finite at step 3"):
        trainer.fit()
    assert_good_checkpoint(RunDirectory(tmp_path), 2)
    assert trainer.history == []
