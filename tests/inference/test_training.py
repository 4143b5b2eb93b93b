import json
import math
import os
import signal
import threading

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerances import FLOAT32, assert_close

import psa
from psa.inference.config import TrainingConfig, published
from psa.inference.images import Batches
from psa.inference.initialisers import NoisyQueries
from psa.inference.interrupts import Interrupted, deferred_interrupts
from psa.inference.optimisation import learning_rate
from psa.inference.scene_priors import fit_slot_prior
from psa.inference.training import seed_everything as seed
from psa.runs import RunDirectory, load_tensors

MEMBERS = {"kl": tiny.WITH_KL, "point": tiny.WITHOUT_KL, "drawn": tiny.DRAWN_MEANS, "bo-qsa": published("bo-qsa")}


@pytest.fixture(params=MEMBERS)
def values(request) -> dict:
    return MEMBERS[request.param]


def interrupt_at(step: int, *signals: int):
    def progress(now: int, row: dict[str, float]) -> None:
        if now == step:
            for number in signals or (signal.SIGINT,):
                os.kill(os.getpid(), number)

    return progress


def comparable(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name != "cpu_seconds"} for row in history]


@given(num_images=st.integers(1, 40), batch_size=st.integers(1, 12), number=st.integers(0, 5))
def test_every_epoch_visits_each_image_at_most_once_and_leaves_out_less_than_a_batch(num_images, batch_size, number):
    batches = Batches(num_images, batch_size, number)
    per_epoch = num_images // min(batch_size, num_images)
    for epoch in range(3):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        seen = torch.cat([batches(step) for step in steps]).tolist()
        assert len(set(seen)) == len(seen)
        assert num_images - len(seen) < min(batch_size, num_images)
        assert set(seen) <= set(range(num_images))


def test_epochs_are_different_permutations():
    batches = Batches(12, 3, 0)
    epochs = [tuple(torch.cat([batches(4 * e + i) for i in range(4)]).tolist()) for e in range(5)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len(set(epochs)) == 5


def test_a_batch_is_a_function_of_seed_and_step_alone():
    forward = [Batches(10, 3, 1)(step) for step in range(12)]
    one = Batches(10, 3, 1)
    torch.rand(5)
    backward = [one(step) for step in reversed(range(12))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forward, backward, strict=True))
    other = [Batches(10, 3, 2)(step) for step in range(12)]
    assert not all(torch.equal(a, b) for a, b in zip(forward, other, strict=True))


def test_the_learning_rate_warms_up_linearly_and_falls_to_zero_by_a_cosine():
    config = TrainingConfig(steps=100, warmup_steps=10, learning_rate=0.5)
    for step in (0, 4, 9, 10, 50, 99, 100):
        expected = 0.5 * min(1.0, (step + 1) / 10) * (1 + math.cos(math.pi * step / 100)) / 2
        assert_close(learning_rate(step, config), expected)
    rates = [learning_rate(step, config) for step in range(101)]
    assert max(rates) == rates[9]
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert_close(rates[100], 0.0)


def test_without_warm_up_the_first_step_has_the_whole_learning_rate():
    assert learning_rate(0, TrainingConfig(steps=10, warmup_steps=0, learning_rate=0.5)) == 0.5


def test_an_interrupted_run_resumes_to_the_same_numbers_bit_by_bit(values, tmp_path):
    settings = ("training.evaluate_every=5", "training.checkpoint_every=7")
    whole = tiny.tiny_trainer(values, *settings, path=tmp_path / "whole")
    whole.fit()
    stopped = tiny.tiny_trainer(values, *settings, path=tmp_path / "cut", progress=interrupt_at(8))
    with pytest.raises(Interrupted):
        stopped.fit()
    assert stopped.step == 8
    seed(1234)  # another process has another state
    torch.rand(17)
    resumed = tiny.tiny_trainer(values, *settings, path=tmp_path / "cut")
    resumed.resume()
    assert resumed.step == 8
    resumed.fit()
    assert comparable(resumed.history) == comparable(whole.history)
    assert [row["step"] for row in resumed.history] == [5, 10, 15, 20]
    assert tiny.same_weights(resumed.autoencoder, whole.autoencoder)
    assert comparable(RunDirectory(tmp_path / "cut").read_metrics()) == comparable(whole.history)
    assert (tmp_path / "cut" / "checkpoint.safetensors").read_bytes() == (
        tmp_path / "whole" / "checkpoint.safetensors"
    ).read_bytes()


def test_resuming_goes_back_to_the_checkpoint_and_drops_later_metrics(tmp_path):
    settings = ("training.evaluate_every=1", "training.checkpoint_every=6")
    whole = tiny.tiny_trainer(tiny.WITH_KL, *settings, path=tmp_path / "whole")
    whole.fit()

    def crash(step: int, row: dict[str, float]) -> None:
        if step == 9:
            raise OSError("power cut")

    crashed = tiny.tiny_trainer(tiny.WITH_KL, *settings, path=tmp_path / "run", progress=crash)
    with pytest.raises(OSError, match="power cut"):
        crashed.fit()
    with open(tmp_path / "run" / "metrics.jsonl", "a") as handle:
        handle.write('{"step": 10, "lo')
    resumed = tiny.tiny_trainer(tiny.WITH_KL, *settings, path=tmp_path / "run")
    resumed.resume()
    assert resumed.step == 6
    resumed.fit()
    assert comparable(resumed.history) == comparable(whole.history)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_leaves_a_readable_checkpoint(tmp_path, number):
    before = signal.getsignal(number)
    trainer = tiny.tiny_trainer(tiny.WITH_KL, path=tmp_path / "run", progress=interrupt_at(3, number))
    with pytest.raises(Interrupted):
        trainer.fit()
    assert signal.getsignal(number) == before
    weights, notes = load_tensors(tmp_path / "run" / "checkpoint.safetensors")
    assert (notes["size"], notes["step"]) == ([16, 16], 3)
    assert all(torch.equal(value, weights[name]) for name, value in trainer.autoencoder.state_dict().items())
    psa.load(tmp_path / "run")


def test_a_second_signal_acts_at_once(tmp_path):
    trainer = tiny.tiny_trainer(tiny.WITH_KL, path=tmp_path, progress=interrupt_at(3, signal.SIGINT, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()


def test_training_in_another_thread_leaves_signals_alone():
    found = []

    def look() -> None:
        with deferred_interrupts() as caught:
            found.append((caught, signal.getsignal(signal.SIGINT)))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [([], before)]


def test_fewer_images_than_a_batch_make_a_batch_of_all_of_them():
    trainer = tiny.tiny_trainer(tiny.WITH_KL, "training.batch_size=16", num_images=3)
    trainer.fit()
    assert trainer.step == 20
    assert sorted(trainer._source.batch(7).index.tolist()) == [0, 1, 2]


def test_a_few_dozen_steps_lower_the_loss(values):
    rate = ("training.learning_rate=0.003", "training.evaluate_every=20", "training.steps=60")
    trainer = tiny.tiny_trainer(values, *rate)
    start = trainer.evaluate(0.0)
    trainer.history.clear()
    trainer.fit()
    first, *_, last = trainer.history
    assert last["loss"] < first["loss"]
    assert last["held_out"] < start["held_out"]
    assert last["mse"] < start["mse"]


def test_every_part_of_the_model_is_trained(values):
    trainer = tiny.tiny_trainer(values)
    before = {name: value.clone() for name, value in trainer.autoencoder.named_parameters()}
    trainer.train_steps(3)
    still = [name for name, value in trainer.autoencoder.named_parameters() if torch.equal(value, before[name])]
    without_kl = trainer.autoencoder.guide.kl_weight == 0
    untrained = ["model.prior_loc", "model.prior_log_scale"] if without_kl else []
    # Keys are compared by their distances to queries: a bias cancels where there is a softmax over slots.
    assert [name for name in still if not name.endswith("projections.key.bias")] == untrained


def test_a_loaded_run_encodes_as_the_trained_model(values, tmp_path):
    trainer = tiny.tiny_trainer(values, path=tmp_path)
    trainer.fit()
    loaded = psa.load(tmp_path)
    assert not loaded.training
    assert tiny.same_weights(loaded, trainer.autoencoder)
    images = tiny.tiny_images(4, "test").images
    results = []
    for model in (trainer.autoencoder, loaded):
        seed(3)
        posterior, slots, masks = model.encode(images)
        results.append((posterior.loc, slots, masks, model.decode(slots).mean))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_loaded_run_samples_scenes_in_range(tmp_path):
    tiny.tiny_trainer(tiny.WITH_KL, path=tmp_path).fit()
    images, slots = psa.load(tmp_path).sample(5)
    assert images.shape == (5, 3, 16, 16)
    assert slots.shape == (5, 3, 8)
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 16, 16, 3), "float in"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), "uint8"),
        (torch.zeros(16, 16, 3, dtype=torch.uint8), "images must be"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), "images must be 16 x 16"),
    ],
)
def test_encode_rejects_images_of_another_layout(images, message):
    with pytest.raises(ValueError, match=message):
        tiny.tiny_autoencoder(tiny.WITH_KL).encode(images)


def test_bytes_and_floats_encode_alike():
    model, images = tiny.tiny_autoencoder(tiny.WITH_KL), tiny.tiny_images(2)
    assert_close(model.encode(images.images)[2], model.encode(images.batch(slice(None)))[2], FLOAT32)


def test_noise_on_queries_is_gone_at_the_end_of_training():
    trainer = tiny.tiny_trainer(published("bo-qsa"), "training.steps=10")
    noisy = trainer.autoencoder.guide.inference.initialiser
    assert isinstance(noisy, NoisyQueries)
    sigmas = []
    for _ in range(10):
        trainer.train_steps(1)
        sigmas.append(float(noisy.sigma))
    assert_close(sigmas[0], 1.0)
    assert sigmas == sorted(sigmas, reverse=True)
    assert sigmas[-1] < 0.05


def test_a_run_without_kl_ends_with_the_moments_of_its_slots_as_prior():
    trainer = tiny.tiny_trainer(tiny.WITHOUT_KL)
    trainer.fit()
    model = trainer.autoencoder
    slots = model.encode(trainer.images.images)[1].flatten(0, 1).double()
    assert_close(model.model.prior_loc, slots.mean(0), FLOAT32)
    assert_close(model.model.prior_log_scale.double().exp(), slots.var(0, correction=0).sqrt(), FLOAT32)


def test_slots_that_do_not_vary_give_a_prior_that_is_finite():
    model = tiny.tiny_autoencoder(tiny.WITHOUT_KL)
    with torch.no_grad():
        for parameter in model.guide.inference.readout.parameters():
            parameter.zero_()
    fit_slot_prior(model, tiny.tiny_images(4))
    assert bool(model.model.prior_log_scale.isfinite().all())


def test_a_run_with_kl_keeps_the_prior_it_learned(tmp_path):
    trainer = tiny.tiny_trainer(tiny.WITH_KL)
    trainer.train_steps(20)
    learned = trainer.autoencoder.model.prior_loc.clone()
    trainer.fit()
    assert torch.equal(trainer.autoencoder.model.prior_loc, learned)


def test_metrics_without_masks_hold_no_segmentation_score():
    trainer = tiny.tiny_trainer(tiny.WITH_KL, masks=False)
    trainer.fit()
    assert all("foreground_ari" not in row for row in trainer.history)


def test_metrics_on_disk_are_the_history(tmp_path):
    trainer = tiny.tiny_trainer(tiny.WITH_KL, path=tmp_path)
    trainer.fit()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == trainer.history


def test_the_training_loss_of_a_row_is_the_mean_since_the_last_row():
    losses = []
    trainer = tiny.tiny_trainer(
        tiny.WITH_KL, "training.evaluate_every=1", progress=lambda step, row: losses.append(row["loss"])
    )
    trainer.fit()
    coarse = tiny.tiny_trainer(tiny.WITH_KL)
    coarse.fit()
    expected = [sum(losses[:10]) / 10, sum(losses[10:]) / 10]
    assert_close(torch.tensor([row["loss"] for row in coarse.history]), torch.tensor(expected), FLOAT32)
