"""Checkpoints of training: what a state is, how it is written, and how it is read again to go on bit by bit.

state.safetensors is all of it, checkpoint.safetensors the weights alone, for those who use the run. The state is
written first and is what resuming reads: between the two a run is whole, and its weights are of one checkpoint before.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from psa.errors import RunError, TrainingFailed
from psa.inference.autoencoder import SlotAutoencoder
from psa.runs import RunDirectory, load_tensors, save_tensors

RANDOM = "random"
REMEDY = "restore it from a copy, or start a new run (what was trained is in checkpoint.safetensors too)"
# Of the files of schema 1, by the names of today.
RENAMED = {"weights.": "autoencoder.", "adam.": "optimiser."}


@dataclass
class TrainingState:
    """All that a training run has come to; what a checkpoint holds.

    A field is a module, an optimiser, a number, or None where a run has none: each is saved and restored as it stands
    here, without a word elsewhere. What is a function of the step and the configuration is no field.

    Attributes:
        autoencoder: The weights.
        optimiser: Adam, with its moments.
        step: Steps done, those that were skipped among them.
        loss_sum: Of the losses since the last row of metrics, nats per channel of a pixel.
        loss_steps: How many they are.
        skipped: Steps whose loss or gradient was not finite.
        skipped_running: The last of them, in a row.
        average: A model of the averaged weights, if they are kept.
    """

    autoencoder: SlotAutoencoder
    optimiser: Optimizer
    step: int = 0
    loss_sum: float = 0.0
    loss_steps: int = 0
    skipped: int = 0
    skipped_running: int = 0
    average: AveragedModel | None = None

    @property
    def trained(self) -> SlotAutoencoder:
        """The model to use: that of the averaged weights, if there is one."""
        if self.average is None:
            return self.autoencoder
        model = self.average.module
        assert isinstance(model, SlotAutoencoder)
        return model

    def tensors(self) -> dict[str, Tensor]:
        """Everything of it that is a tensor, by name, with torch's random state."""
        found = {RANDOM: torch.random.get_rng_state()}
        for name, part in self._parts():
            found |= {f"{name}.{key}": value for key, value in _tensors_of(part).items()}
        return found

    def numbers(self) -> dict[str, int | float]:
        """Everything of it that is a number, by name."""
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), int | float)}

    def load(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, int | float]) -> None:
        """Become what :meth:`tensors` and :meth:`numbers` of another state were.

        Raises:
            RuntimeError, ValueError, KeyError: If that was of another model, or something is missing or too much.
        """
        _same_names("numbers", set(numbers), set(self.numbers()))
        left = dict(tensors)
        random = left.pop(RANDOM)
        for name, part in self._parts():
            own = {key: left.pop(key) for key in list(left) if key.startswith(f"{name}.")}
            _restore(part, {key.removeprefix(f"{name}."): value for key, value in own.items()})
        _same_names("tensors", set(left), set())
        for name, value in numbers.items():
            setattr(self, name, value)
        torch.random.set_rng_state(random)

    def _parts(self) -> Iterator[tuple[str, nn.Module | Optimizer]]:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, nn.Module | Optimizer):
                yield field.name, value
            elif not isinstance(value, int | float | None):
                kind = type(value).__name__
                raise TypeError(f"{field.name} must be a module, an optimiser, a number or None, got a {kind}")


def _same_names(what: str, found: set[str], expected: set[str]) -> None:
    if found != expected:
        parts = [f"{word} {', '.join(sorted(names)[:3])}" for word, names in
                 (("no", expected - found), ("unknown", found - expected)) if names]  # fmt: skip
        raise ValueError(f"{what}: {'; '.join(parts)}")


def _tensors_of(part: nn.Module | Optimizer) -> dict[str, Tensor]:
    """Of an optimiser, what it keeps of each parameter; its settings are the configuration's."""
    if isinstance(part, Optimizer):
        kept = part.state_dict()["state"]
        return {f"{i}.{name}": torch.as_tensor(value) for i, own in kept.items() for name, value in own.items()}
    return part.state_dict()


def _restore(part: nn.Module | Optimizer, tensors: Mapping[str, Tensor]) -> None:
    if not isinstance(part, Optimizer):
        part.load_state_dict(dict(tensors))
        return
    parameters = [parameter for group in part.param_groups for parameter in group["params"]]
    kept: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".")
        if value.dim() > 0 and value.shape != parameters[int(index)].shape:
            raise ValueError(f"{name} of parameter {index} has the shape {list(value.shape)}")
        kept.setdefault(int(index), {})[name] = value
    part.load_state_dict({"state": kept, "param_groups": part.state_dict()["param_groups"]})


def save_checkpoint(run: RunDirectory, state: TrainingState) -> None:
    """Write the state, then the weights; each file whole or not at all. The weights must be finite.

    Raises:
        TrainingFailed: If they cannot be written; what was there stays.
    """
    notes: dict[str, Any] = {"run": run.name, "size": list(state.autoencoder.size), "step": state.step}
    try:
        run.bring_metrics_to_disk()
        save_tensors(run.state, state.tensors(), notes | {"numbers": state.numbers()})
        save_tensors(run.checkpoint, state.trained.state_dict(), notes)
    except OSError as error:
        raise TrainingFailed(
            f"{error.filename or run.path}: cannot be written at step {state.step} ({error.strerror or error}); the "
            f"last good checkpoint is kept. Make room, then go on with: psa train --resume --out {run.path}"
        ) from None


def finite_weights(state: TrainingState) -> bool:
    """Whether every weight is finite: what a checkpoint may hold."""
    models = (state.autoencoder, state.trained)
    return all(bool(value.isfinite().all()) for model in models for value in model.state_dict().values())


def load_checkpoint(run: RunDirectory, state: TrainingState) -> None:
    """Bring a state to the last checkpoint of a run.

    Raises:
        RunError: If there is none, or it is spoiled, or of another run or model; the state may be half changed then.
    """
    tensors, notes = load_tensors(run.state, REMEDY)
    if notes.get("run") != run.name:
        raise RunError(f"{run.state}: expected the state of run {run.name}, got that of {notes.get('run')}; {REMEDY}")
    spoiled = [name for name, value in tensors.items() if not bool(value.isfinite().all())]
    if spoiled:
        raise RunError(f"{run.state}: {spoiled[0]} has numbers that are not finite; {REMEDY}")
    try:
        state.load(*_of_today(tensors, notes))
    except (RuntimeError, ValueError, KeyError, IndexError, TypeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise RunError(
            f"{run.state}: not of this configuration ({reason}); undo the --set, or start a new run"
        ) from None


def _of_today(tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and numbers of a state, also of schema 1, by the names of today."""
    if "sums" not in notes:
        return dict(tensors), notes["numbers"]
    renamed = {}
    for name, value in tensors.items():
        old = next((old for old in RENAMED if name.startswith(old)), "")
        renamed[RENAMED.get(old, "") + name.removeprefix(old)] = value
    sums = {"loss_sum": notes["sums"]["loss"], "loss_steps": int(notes["sums"]["steps"])}
    return renamed, {"step": notes["step"], **sums, "skipped": 0, "skipped_running": 0}
