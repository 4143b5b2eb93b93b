"""Checkpoints of training: what a state is, how it is written, and how it is read again to go on bit by bit."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from psa.errors import RunError
from psa.inference.autoencoder import SlotAutoencoder
from psa.runs import RunDirectory, load_tensors, save_tensors

WEIGHTS, ADAM = "weights.", "adam."


@dataclass
class TrainingState:
    """All that a training run has come to; what a checkpoint holds.

    Attributes:
        autoencoder: The weights.
        optimiser: Adam, with its moments.
        step: Steps done.
        loss_sum: Of the losses since the last row of metrics, nats per channel of a pixel.
        loss_steps: How many they are.
    """

    autoencoder: SlotAutoencoder
    optimiser: torch.optim.Optimizer
    step: int = 0
    loss_sum: float = 0.0
    loss_steps: int = 0

    def tensors(self) -> dict[str, Tensor]:
        """Everything of it that is a tensor, by name, with torch's random state."""
        weights = self.autoencoder.state_dict()
        tensors = {f"{WEIGHTS}{name}": value for name, value in weights.items()}
        for index, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"{ADAM}{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
        return tensors | {"random": torch.random.get_rng_state()}

    def load(self, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
        """Become what :meth:`tensors` and the notes of a file say.

        Raises:
            RuntimeError, ValueError: If they are of another model.
        """
        weights = {name.removeprefix(WEIGHTS): value for name, value in tensors.items() if name.startswith(WEIGHTS)}
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith(ADAM):
                _, index, key = name.split(".")
                moments.setdefault(int(index), {})[key] = value
        self.autoencoder.load_state_dict(weights)
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": moments, "param_groups": groups})
        torch.random.set_rng_state(tensors["random"])
        self.step, self.loss_sum, self.loss_steps = notes["step"], notes["sums"]["loss"], notes["sums"]["steps"]


def save_checkpoint(run: RunDirectory, state: TrainingState) -> None:
    """Write the weights, and beside them all that resuming needs; each file whole or not at all.

    The weights must be finite: :func:`finite_weights`.
    """
    notes: dict[str, Any] = {"size": list(state.autoencoder.size), "step": state.step}
    sums = {"loss": state.loss_sum, "steps": state.loss_steps}
    save_tensors(run.state, state.tensors(), notes | {"sums": sums})
    save_tensors(run.checkpoint, state.autoencoder.state_dict(), notes)


def finite_weights(state: TrainingState) -> bool:
    """Whether every weight is finite: what a checkpoint may hold."""
    return all(bool(value.isfinite().all()) for value in state.autoencoder.state_dict().values())


def load_checkpoint(run: RunDirectory, state: TrainingState) -> None:
    """Bring a state to the last checkpoint of a run; metrics past it are dropped.

    Raises:
        RunError: If there is none, or it is of another model.
    """
    tensors, notes = load_tensors(run.state)
    try:
        state.load(tensors, notes)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise RunError(f"{run.state}: not of this configuration ({reason})") from None
    run.keep_metrics_before(state.step)
