"""Figures at evenly spaced steps of one training, the first before it."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from psa.errors import TrainingFailed
from psa.experiments.experiment import Outcome, Progress
from psa.inference.training import Trainer

Look = Callable[[int], tuple[Mapping[str, Any], Mapping[str, Tensor]]]  # from a step to figures and tensors


def over_training(trainer: Trainer, steps: int, checkpoints: int, look: Look, progress: Progress) -> Outcome:
    """Train to ``steps`` and look at ``checkpoints`` of them: ``curve``, the figures by step, and ``failed_at``.

    Tensors of a later look replace those of the same name; of a training that fails none are kept.
    """
    curve: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    for step in np.linspace(0, steps, checkpoints).astype(int).tolist():
        try:
            trainer.train_steps(step - trainer.step)
        except TrainingFailed:
            return Outcome({"failed_at": trainer.step, "curve": curve})
        found, seen = look(step)
        tensors |= seen
        curve.append({"step": step, **found})
        progress(step, steps)
    return Outcome({"failed_at": None, "curve": curve}, tensors)
