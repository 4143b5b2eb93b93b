import dataclasses
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import nn

import psa
from psa.errors import RunError, TrainingFailed
from psa.inference.checkpoints import TrainingState, load_checkpoint
from psa.inference.training import Trainer
from psa.runs import RunDirectory, load_tensors, save_tensors

OFTEN = ("training.steps=2", "training.evaluate_every=1", "training.checkpoint_every=1")
# Random starts, and a prior that is fitted when training ends.
RANDOM_START = {"slots": {"variant": "psa"}, "objective": {"sample": False, "kl_weight": 0.0}}
SCHEMA_1 = Path(__file__).parents[1] / "schema_1"
NOT_STATE = {"run", "progress", "cpu_seconds"}  # where, for whom, and how long


def inside(thing: Any) -> dict:
    """What an object is made of."""
    if isinstance(thing, torch.optim.Optimizer):
        return thing.state_dict()
    if isinstance(thing, list | tuple | set):
        return dict(enumerate(thing))
    if isinstance(thing, dict):
        return thing
    ours = type(thing).__module__.startswith(("psa", "torch.nn", "lightning"))
    return vars(thing) if ours and hasattr(thing, "__dict__") else {}


def everything(thing: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every number, text and tensor that hangs on an object, by its way there."""
    if isinstance(thing, torch.Generator):
        thing = thing.get_state()
    if isinstance(thing, torch.Tensor):
        yield name, (thing.dtype, thing.shape, thing.detach().numpy().tobytes())
    elif isinstance(thing, int | float | str | None):
        yield name, thing
    for key, value in inside(thing).items():
        if key not in NOT_STATE:
            yield from everything(value, f"{name}.{key}")


@pytest.mark.parametrize("values", [tiny.WITH_KL, tiny.DRAWN_MEANS], ids=["queries", "random start"])
def test_everything_about_a_resumed_trainer_is_as_if_it_had_not_stopped(values, tmp_path):
    """Whatever a trainer comes to hold: a part that is not in the state differs here."""
    short = ("training.steps=8", "training.evaluate_every=4", "training.checkpoint_every=4")
    whole = tiny.tiny_trainer(values, *short, path=tmp_path / "whole")
    whole.fit()
    ended = dict(everything(whole)), torch.random.get_rng_state()
    stopped = tiny.tiny_trainer(values, *short, path=tmp_path / "cut")
    stopped.train_steps(3)
    stopped.save()
    torch.rand(17)
    resumed = tiny.tiny_trainer(values, *short, path=tmp_path / "cut")
    resumed.resume()
    resumed.fit()
    found = dict(everything(resumed))
    assert len(found) > 50
    assert {name for name in found.keys() | ended[0].keys() if found.get(name) != ended[0].get(name)} == set()
    assert torch.equal(torch.random.get_rng_state(), ended[1])


@dataclasses.dataclass
class Longer(TrainingState):
    average: nn.Module | None = None
    second: torch.optim.Optimizer | None = None
    temperature: float = 1.0


@dataclasses.dataclass
class Wrong(TrainingState):
    schedule: Any = None


def longer(seed: int) -> Longer:
    trainer = tiny.tiny_trainer(tiny.WITH_KL)
    torch.manual_seed(seed)
    average = nn.BatchNorm1d(3)
    average(torch.randn(5, 3))
    weight = nn.Parameter(torch.randn(2))
    second = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    weight.square().sum().backward()
    second.step()
    return Longer(trainer.autoencoder, trainer._state.optimiser, 3, average=average, second=second, temperature=seed)


def test_a_part_that_is_added_to_the_state_is_saved_and_restored_without_a_word_elsewhere():
    one, other = longer(1), longer(2)
    other.load(one.tensors(), one.numbers())
    assert other.numbers() == one.numbers()
    tensors = other.tensors()
    assert tensors.keys() == one.tensors().keys()
    assert all(torch.equal(tensors[name], value) for name, value in one.tensors().items())
    assert any(name.startswith("average.") for name in tensors)
    assert any(name.startswith("second.") for name in tensors)


def test_a_part_of_a_kind_that_cannot_be_saved_is_refused():
    trainer = tiny.tiny_trainer(tiny.WITH_KL)
    state = Wrong(trainer.autoencoder, trainer._state.optimiser, schedule=object())
    with pytest.raises(TypeError, match="schedule must be a module, an optimiser, a number or None, got a object"):
        state.tensors()


def moments_of_a_kill(run: Path, folder: Path, monkeypatch) -> list[Path]:
    """Copies of a run as a kill would leave it: before and after every rename, and with a file half written."""
    copies: list[Path] = []
    fsync, replace = os.fsync, os.replace

    def copy(cut: bool = False) -> None:
        copies.append(folder / str(len(copies)))
        shutil.copytree(run, copies[-1])
        for path in copies[-1].glob(".*") if cut else ():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def watched_fsync(descriptor: int) -> None:
        copy(cut=True)
        fsync(descriptor)

    def watched_replace(one: Path, other: Path) -> None:
        copy()
        replace(one, other)
        copy()

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    try:
        tiny.tiny_trainer(RANDOM_START, *OFTEN, path=run).fit()
    finally:
        monkeypatch.undo()
    return copies


def assert_same_run(one: RunDirectory, other: RunDirectory) -> None:
    assert one.checkpoint.read_bytes() == other.checkpoint.read_bytes()
    assert one.state.read_bytes() == other.state.read_bytes()
    without_time = [[{k: v for k, v in row.items() if k != "cpu_seconds"} for row in run.read_metrics()]
                    for run in (one, other)]  # fmt: skip
    assert without_time[0] == without_time[1]


def test_a_run_that_was_killed_at_any_moment_of_its_writing_ends_in_the_same_bytes(tmp_path, monkeypatch):
    copies = moments_of_a_kill(tmp_path / "whole", tmp_path / "killed", monkeypatch)
    assert len(copies) > 30
    kept, tried = [], set()
    for path in copies:
        run = RunDirectory(path)
        if not run.config.exists():
            continue
        content = tuple(f.read_bytes() if f.exists() else b"" for f in (run.state, run.checkpoint, run.metrics))
        if content in tried:
            continue
        tried.add(content)
        if run.checkpoint.exists():
            psa.load(path)
        with run.held():
            trainer = tiny.tiny_trainer(RANDOM_START, *OFTEN, path=path)
            if run.state.exists():
                trainer.resume()
            kept.append(trainer.step)
            trainer.fit()
        assert_same_run(run, RunDirectory(tmp_path / "whole"))
        assert {f.name for f in path.iterdir()} == {f.name for f in (tmp_path / "whole").iterdir()}
    assert kept == sorted(kept)
    assert set(kept) == {0, 1, 2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Trainer, Path]:
    path = tmp_path_factory.mktemp("runs") / "trained"
    trainer = tiny.tiny_trainer(tiny.WITH_KL, path=path)
    trainer.fit()
    return trainer, path


def edited(change):
    """A spoiler that goes through tensors and notes: the file itself is whole."""

    def spoil(path: Path) -> None:
        tensors, notes = load_tensors(path)
        change(tensors, notes)
        save_tensors(path, tensors, notes)

    return spoil


def flipped(place: float):
    def spoil(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(place * len(content))] ^= 4
        path.write_bytes(content)

    return spoil


def first_weight(tensors: dict) -> str:
    return next(name for name, value in sorted(tensors.items()) if value.dim() > 1)


def with_nan(tensors, notes):
    tensors[first_weight(tensors)][0] = torch.nan


def reshaped(tensors, notes):
    tensors[first_weight(tensors)] = torch.zeros(2, 2)


class Trap:
    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


SPOILED = {
    "no bytes": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "a pickle": lambda path: torch.save({"trap": Trap()}, path),
    "a bit of the header": flipped(0.01),
    "a bit of a weight": flipped(0.9),
    "not finite": edited(with_nan),
    "another shape": edited(reshaped),
    "a weight less": edited(lambda tensors, notes: tensors.pop(first_weight(tensors))),
    "a weight more": edited(lambda tensors, notes: tensors.update(other=torch.zeros(3))),
    "another run's": edited(lambda tensors, notes: notes.update(run="0a1b2c3d")),
}
OF_THE_STATE = {
    "moments not finite": edited(lambda tensors, notes: tensors["optimiser.0.exp_avg"].fill_(torch.inf)),
    "moments of another shape": edited(lambda tensors, notes: tensors.update({"optimiser.0.exp_avg": torch.zeros(5)})),
    "no random state": edited(lambda tensors, notes: tensors.pop("random")),
    "a number less": edited(lambda tensors, notes: notes["numbers"].pop("skipped")),
    "no numbers": edited(lambda tensors, notes: notes.pop("numbers")),
}


@pytest.mark.parametrize("what", [*SPOILED, *OF_THE_STATE])
def test_a_state_that_was_spoiled_or_is_foreign_is_refused_in_one_line(trained, tmp_path, what):
    trainer, path = trained
    run = RunDirectory(shutil.copytree(path, tmp_path / "run"))
    (SPOILED | OF_THE_STATE)[what](run.state)
    before = run.metrics.read_bytes()
    with pytest.raises(RunError, match=r"^\S+state\.safetensors: .*(start a new run)") as caught:
        load_checkpoint(run, dataclasses.replace(trainer._state))
    assert "\n" not in str(caught.value)
    assert run.metrics.read_bytes() == before


@pytest.mark.parametrize("what", SPOILED)
def test_weights_that_were_spoiled_or_are_foreign_are_refused_in_one_line(trained, tmp_path, what):
    run = RunDirectory(shutil.copytree(trained[1], tmp_path / "run"))
    SPOILED[what](run.checkpoint)
    with pytest.raises(RunError, match=r"^\S+checkpoint\.safetensors: .*psa train --resume --out \S+ writes") as caught:
        psa.load(run.path)
    assert "\n" not in str(caught.value)


def test_spoiled_weights_are_written_anew_from_the_state(trained, tmp_path):
    run = RunDirectory(shutil.copytree(trained[1], tmp_path / "run"))
    run.checkpoint.write_bytes(b"")
    resumed = tiny.tiny_trainer(tiny.WITH_KL, path=run.path)
    resumed.resume()
    resumed.fit()
    assert run.checkpoint.read_bytes() == (trained[1] / "checkpoint.safetensors").read_bytes()


@pytest.fixture
def limit_files() -> Iterator:
    """A limit on the size of files stands for the full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_that_fills_while_training_keeps_the_last_checkpoint_and_says_so(trained, tmp_path, limit_files):
    run = RunDirectory(tmp_path / "run")

    def progress(step: int, row: dict[str, float]) -> None:
        if step == 12:
            limit_files(run.state.stat().st_size // 2)

    trainer = tiny.tiny_trainer(tiny.WITH_KL, path=run.path, progress=progress)
    with pytest.raises(
        TrainingFailed,
        match=r"state\.safetensors: cannot be written at step 20 \(File too large\); the last good checkpoint is kept.*"
        rf"psa train --resume --out {run.path}$",
    ):
        trainer.fit()
    limit_files(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    assert load_tensors(run.state)[1]["step"] == load_tensors(run.checkpoint)[1]["step"] == 10
    assert {path.name for path in run.path.iterdir()} == {path.name for path in trained[1].iterdir()}
    resumed = tiny.tiny_trainer(tiny.WITH_KL, path=run.path)
    resumed.resume()
    resumed.fit()
    assert_same_run(run, RunDirectory(trained[1]))


def test_a_run_of_schema_1_is_loaded_and_its_state_is_taken_over(tmp_path):
    run = RunDirectory(shutil.copytree(SCHEMA_1, tmp_path / "run"))
    assert psa.load(run.path).scene_prior is not None
    old, notes = load_tensors(run.state)
    from psa.inference.sessions import resume_run

    trainer = resume_run(run.path, ["training.steps=10"])
    found = trainer._state.tensors()
    assert trainer.step == notes["step"] == 8
    for name, value in old.items():
        assert torch.equal(found[name.replace("weights.", "autoencoder.").replace("adam.", "optimiser.")], value)
    trainer.fit()
    assert [row["step"] for row in run.read_metrics()] == [4, 8, 10]
    assert "schema = 2" in run.config.read_text()
    again = resume_run(run.path, [])
    assert again.step == 10
