"""How the weights move: the optimiser, and the learning rate of each step."""

import math
from collections.abc import Iterable, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.config import TrainingConfig
from psa.models.decoders.code import CodeTransformerDecoder

CODE = "code"  # of a group of parameters: whether they are the discrete VAE's


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Linear warm-up times the decay, which starts at step 0 as well."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return config.learning_rate * warmup * _decay(step, config)


def _decay(step: int, config: TrainingConfig) -> float:
    """From 1: to 0 over all steps by a cosine or a line, to a half in each half-life, or never."""
    if config.decay == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * step / config.steps))
    if config.decay == "linear":
        return 1.0 - step / config.steps
    return 0.5 ** (step / config.half_life) if config.decay == "exponential" else 1.0


def build_optimiser(
    parameters: Iterable[nn.Parameter], config: TrainingConfig, code: Iterable[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """Adam, at the peak of the learning rate until :func:`set_learning_rate` is called.

    Args:
        parameters: All that are trained.
        config: Of training.
        code: Those among them that may have a learning rate of their own: :func:`code_parameters`.
    """
    own = {id(parameter) for parameter in code}
    # groups of neighbours, so that a checkpoint's moments are of the same parameters whatever is set
    groups = groupby(parameters, key=lambda parameter: id(parameter) in own)
    tables = [{"params": list(members), CODE: of_code} for of_code, members in groups]
    return torch.optim.Adam(tables, lr=config.learning_rate)


def code_parameters(autoencoder: SlotAutoencoder) -> list[nn.Parameter]:
    """Those of the discrete VAE, its encoder's and its painter's; none where the decoder has no words."""
    code, decoder = autoencoder.guide.code, autoencoder.model.decoder
    if code is None or not isinstance(decoder, CodeTransformerDecoder):
        return []
    return [*code.parameters(), *decoder.painter.parameters()]


def averaged(autoencoder: SlotAutoencoder, decay: float) -> AveragedModel | None:
    """A second model whose weights are running averages of the first's; None for a decay of 0.

    After the n-th step, from 0, they are d_n (average) + (1 - d_n) (weights) with d_n = min(decay, (1 + n) / (10 + n)),
    so that early weights do not stay; buffers are copied.
    """
    if decay == 0.0:
        return None

    def average(kept: Sequence[Tensor], new: Sequence[Tensor], count: Tensor | int) -> None:
        torch._foreach_lerp_(list(kept), list(new), 1.0 - min(decay, (1 + int(count)) / (10 + int(count))))

    return AveragedModel(autoencoder, multi_avg_fn=torch.no_grad()(average))


def compile_networks(autoencoder: SlotAutoencoder) -> None:
    """Let torch.compile make encoder and decoder faster, at their first step; the weights keep their names."""
    autoencoder.guide.encoder.compile()
    autoencoder.model.decoder.compile()


def set_learning_rate(optimiser: torch.optim.Optimizer, step: int, config: TrainingConfig) -> None:
    """Give a step its learning rate, and the discrete VAE its own: ``code_learning_rate`` times the decay."""
    for group in optimiser.param_groups:
        if group[CODE] and config.code_learning_rate is not None:
            group["lr"] = config.code_learning_rate * _decay(step, config)
        else:
            group["lr"] = learning_rate(step, config)
