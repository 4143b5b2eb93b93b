"""How weights move: decays, the papers' schedules, accumulation, averaged weights, precision, TensorBoard."""

from pathlib import Path

import pytest
import tiny
import torch
from tolerances import FLOAT32, assert_close

import psa
from psa.cli.train import train
from psa.errors import ConfigError
from psa.inference.config import TrainingConfig, override, parse_config, published
from psa.inference.images import Batches
from psa.inference.interrupts import Interrupted
from psa.inference.optimisation import learning_rate, set_learning_rate
from psa.inference.schedules import SCHEDULES
from psa.inference.training import Trainer
from psa.runs import RunDirectory, load_tensors

DECAYS = {
    "linear": lambda step: 1 - step / 100,
    "exponential": lambda step: 2.0 ** (-step / 25),
    "constant": lambda step: 1.0,
}


@pytest.mark.parametrize("decay", DECAYS)
def test_each_decay_multiplies_the_warm_up(decay):
    config = TrainingConfig(steps=100, warmup_steps=10, learning_rate=0.5, decay=decay, half_life=25)
    for step in (0, 4, 10, 50, 99):
        assert_close(learning_rate(step, config), 0.5 * min(1.0, (step + 1) / 10) * DECAYS[decay](step))


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_gives_its_values_and_what_is_set_beside_it_wins(name):
    expected = SCHEDULES[name].settings
    config = parse_config({"training": {"schedule": name, "batch_size": 3}}).training
    assert config.batch_size == 3
    assert {key: getattr(config, key) for key in expected} == {**expected, "batch_size": 3}
    assert parse_config({"training": config.model_dump()}).training == config


def test_a_schedule_on_the_command_line_replaces_what_stood_before_it_and_not_what_follows():
    before = {"training": {"learning_rate": 0.1, "clip_norm": 2.0}}
    after = override(before, ["training.schedule=bo-qsa-mixture", "training.steps=7"])
    config = parse_config(after).training
    assert (config.learning_rate, config.steps, config.clip_norm) == (4e-4, 7, 2.0)
    assert before["training"]["learning_rate"] == 0.1


def test_a_schedule_of_no_paper_is_told_with_the_names_there_are():
    for values in (override({}, ["training.schedule=fast"]), {"training": {"schedule": ["fast"]}}):
        with pytest.raises(ConfigError, match=r"schedule must be one of slot-attention, .*got .*fast") as error:
            parse_config(values)
        assert "\n" not in str(error.value)


WORDS = ("decoder.kind=transformer", "code.vocabulary=4", "training.warmup_steps=10")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("settings", [("training.code_learning_rate=3e-4",), ()], ids=["own", "shared"])
def test_the_discrete_vae_moves_at_its_own_rate_from_the_first_step(settings):
    """Adam's first step is the learning rate in every entry whose gradient is far from rounding."""
    trainer = tiny.tiny_trainer(published("bo-qsa"), *WORDS, "training.learning_rate=1e-4", *settings)
    before = {name: value.clone() for name, value in trainer.autoencoder.state_dict().items()}
    trainer.train_steps(1)
    after = trainer.autoencoder.state_dict()
    moved = {name: float((after[name] - before[name]).abs().max()) for name in before}
    warm = learning_rate(0, trainer.config)
    assert_close(warm, 1e-5)
    of_code = {name for name in moved if name.startswith(("guide.code.", "model.decoder.painter."))}
    assert len(of_code) == 12
    for name in ("guide.code.encoder.convolutions.0.weight", "model.decoder.painter.convolutions.4.weight"):
        assert_close(moved[name], 3e-4 if settings else warm, 3e-6)
    assert max(moved[name] for name in of_code) < (3.1e-4 if settings else 1.1e-5)
    assert max(moved[name] for name in set(moved) - of_code) < 1.1e-5
    assert_close(moved["model.decoder.head.weight"], warm, 1e-7)


@pytest.mark.usefixtures("unchecked")
def test_the_rate_of_the_discrete_vae_decays_with_the_others_and_may_be_set_when_a_run_goes_on(tmp_path):
    settings = (*WORDS, "training.decay=linear", "training.steps=4")

    def trainer(name: str, *more: str) -> Trainer:
        return tiny.tiny_trainer(published("bo-qsa"), *settings, *more, path=tmp_path / name)

    trainer("run").fit(until=2)
    resumed = trainer("run", "training.code_learning_rate=0.5")
    order = [id(p) for group in resumed._state.optimiser.param_groups for p in group["params"]]
    assert order == [id(parameter) for parameter in resumed.autoencoder.parameters()]
    resumed.resume()
    set_learning_rate(resumed._state.optimiser, 2, resumed.config)
    rates = {group["lr"] for group in resumed._state.optimiser.param_groups}
    assert rates == {0.25, learning_rate(2, resumed.config)}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("values", "added"),
    [(tiny.DRAWN_MEANS, ()), (published("bo-qsa"), ()), (published("bo-qsa"), (*WORDS, "decoder.dropout=0.5"))],
    ids=["drawn", "bo-qsa", "dropout"],
)
def test_accumulated_batches_leave_the_gradient_of_the_whole_one(values, added):
    gradients = []
    for settings in (("training.batch_size=6",), ("training.batch_size=2", "training.accumulate=3")):
        trainer = tiny.tiny_trainer(values, *settings, *added)
        trainer.autoencoder.train()
        loss = trainer._gradients(trainer._source.batch(2))
        gradients.append([loss, *(p.grad for p in trainer._parameters if p.grad is not None)])
    assert len(gradients[0]) == len(gradients[1])
    largest = max(float(one.norm()) for one in gradients[0][1:])  # the key's bias cancels: its gradient is rounding
    for one, other in zip(*gradients, strict=True):
        assert float((one - other).norm()) <= FLOAT32 * max(float(one.norm()), largest)


def test_the_shares_of_processes_are_the_batch_of_one_with_all_of_them():
    whole = Batches(20, 7, 3)
    parts = [Batches(20, 7, 3, (rank, 3)) for rank in range(3)]
    for step in (0, 1, 5):
        assert torch.equal(torch.cat([part(step) for part in parts]), whole(step))


@pytest.mark.usefixtures("unchecked")
def test_averaged_weights_are_the_running_average_and_are_what_is_saved_and_evaluated(tmp_path):
    trainer = tiny.tiny_trainer(tiny.WITHOUT_KL, "training.ema=0.5", "training.steps=5", path=tmp_path)
    name = next(key for key in trainer.autoencoder.state_dict() if key.endswith("weight"))
    expected = None
    for count in range(5):
        trainer.train_steps(1)
        new = trainer.autoencoder.state_dict()[name].double().clone()
        decay = min(0.5, (1 + count) / (10 + count))
        expected = new if expected is None else decay * expected + (1 - decay) * new
    assert_close(trainer.trained.state_dict()[name], expected, FLOAT32)
    assert not torch.allclose(trainer.autoencoder.state_dict()[name].double(), expected)
    trainer.fit()
    loaded = psa.load(tmp_path)
    assert tiny.same_weights(loaded, trainer.trained)
    state = load_tensors(RunDirectory(tmp_path).state)[0]
    assert torch.equal(state[f"average.module.{name}"], loaded.state_dict()[name])
    assert torch.equal(state[f"autoencoder.{name}"], trainer.autoencoder.state_dict()[name])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("values", "added"),
    [
        (tiny.DRAWN_MEANS, ()),
        (published("bo-qsa"), (*WORDS, "decoder.dropout=0.5", "training.code_learning_rate=0.01")),
    ],
    ids=["psa", "words"],
)
def test_a_run_with_averaged_weights_and_accumulation_resumes_bit_by_bit(values, added, tmp_path):
    settings = ("training.ema=0.9", "training.batch_size=2", "training.accumulate=2", "training.steps=8", *added)

    def stop(step: int, row: dict[str, float]) -> None:
        if step == 5:
            cut.save()
            raise Interrupted

    whole = tiny.tiny_trainer(values, *settings, path=tmp_path / "whole")
    whole.fit()
    cut = tiny.tiny_trainer(values, *settings, path=tmp_path / "cut", progress=stop)
    with pytest.raises(Interrupted):
        cut.fit()
    resumed = tiny.tiny_trainer(values, *settings, path=tmp_path / "cut")
    resumed.resume()
    resumed.fit()
    assert tiny.same_weights(resumed.trained, whole.trained)
    assert tiny.same_weights(resumed.autoencoder, whole.autoencoder)


@pytest.mark.usefixtures("unchecked")
def test_in_bf16_networks_compute_in_it_and_the_e_and_m_steps_in_float32():
    trainer = tiny.tiny_trainer(tiny.WITH_KL, "training.precision=bf16-mixed", "training.steps=2")
    seen: dict[str, torch.dtype] = {}
    guide = trainer.autoencoder.guide
    guide.encoder.register_forward_hook(lambda module, given, tokens: seen.update(tokens=tokens.dtype))
    guide.inference.register_forward_hook(
        lambda module, given, found: seen.update(em=found.responsibilities.dtype, loc=found.loc.dtype)
    )
    trainer.autoencoder.train()
    assert bool(trainer._gradients(trainer._source.batch(0)).isfinite())
    assert seen == {"tokens": torch.bfloat16, "em": torch.float32, "loc": torch.float32}
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in trainer._parameters if p.grad is not None)


def test_noise_on_queries_ends_after_the_steps_that_are_set():
    trainer = tiny.tiny_trainer(published("bo-qsa"), "training.noise_steps=2", "training.steps=10")
    trainer.train_steps(3)
    assert float(trainer.autoencoder.guide.inference.initialiser.sigma) == 0.0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_back_the_rows_of_metrics(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = tiny.tiny_trainer(
        tiny.WITH_KL, "training.tensorboard=true", "training.evaluate_every=1", "training.steps=3", path=tmp_path
    )
    trainer.fit()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("loss", "held_out", "learning_rate"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in found] == [1, 2, 3]
        assert_close(
            torch.tensor([value for _, value in found]), torch.tensor([row[name] for row in trainer.history]), FLOAT32
        )


def test_the_documented_schedules_are_those_there_are():
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    table = page.partition("## Schedules of the papers")[2].partition("## torch.compile")[0]
    rows = [
        [cell.strip(" `") for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| `")
    ]
    assert [row[0] for row in rows] == list(SCHEDULES)
    for name, steps, batch, rate, of_code, warmup, decay, noise, _ in rows:
        settings = SCHEDULES[name].settings
        assert int(steps.replace(",", "")) == settings["steps"]
        assert int(batch) == settings["batch_size"]
        assert float(rate) == settings["learning_rate"]
        assert (float(of_code) if of_code else None) == settings.get("code_learning_rate")
        assert int(warmup.replace(",", "")) == settings["warmup_steps"]
        half_life = f"half in {settings['half_life']:,}" if settings["decay"] == "exponential" else "none"
        assert decay == half_life
        assert noise == (f"{settings['noise_steps']:,}" if "noise_steps" in settings else "")
        assert name in (train.__doc__ or "")
