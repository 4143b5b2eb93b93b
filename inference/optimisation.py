"""How the weights move: the optimiser, and the learning rate of each step."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from psa.inference.config import TrainingConfig


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then a cosine to 0 over all steps."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return config.learning_rate * warmup * 0.5 * (1.0 + math.cos(math.pi * step / config.steps))


def build_optimiser(parameters: Iterable[nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
    """Adam, at the peak of the learning rate until :func:`set_learning_rate` is called."""
    return torch.optim.Adam(parameters, lr=config.learning_rate)


def set_learning_rate(optimiser: torch.optim.Optimizer, step: int, config: TrainingConfig) -> None:
    """Give a step its learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(step, config)
