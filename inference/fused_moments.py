"""slot_moments in one pass over the tokens, by Triton kernels: nothing of size batch x slots x tokens is written.

The backward pass recomputes the responsibilities from the tokens in one pass of its own. Triton is asked for only
when a kernel is to run; without it everything else works (docs/performance.md).
"""

import os
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from psa.errors import ConfigError
from psa.inference.kernel_launches import FusedMoments, Saved, backward_pass, forward_pass, interpreted

SETTING = "PSA_FUSED"  # environment variable: one of SETTINGS
SETTINGS = ("auto", "always", "never")
MAX_SLOTS = 64
MAX_FEATURES = 256
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@cache
def installed() -> bool:
    """Whether there is Triton; asked without importing it."""
    return find_spec("triton") is not None


def unfit(keys: Tensor, values: Tensor, num_slots: int) -> str | None:
    """Why the kernels cannot do this problem, or None if they can."""
    (_, num_tokens, num_features), dtype = keys.shape, keys.dtype
    if not installed():
        return "Triton is not installed (pip install psa-slots[triton])"
    if dtype not in DTYPES or values.dtype != dtype:
        return f"tokens are {dtype} and {values.dtype}, not both float32, bfloat16 or float16"
    if num_slots > MAX_SLOTS or num_features > MAX_FEATURES:
        return f"{num_slots} slots of {num_features} features are more than {MAX_SLOTS} of {MAX_FEATURES}"
    if num_tokens * num_features >= 2**31:
        return f"{num_tokens} tokens of {num_features} features an image are 2^31 numbers or more"
    if not keys.is_cuda and not interpreted():
        return f"tokens are on {keys.device}, not on a CUDA device"
    return None


def chosen(keys: Tensor, values: Tensor, num_slots: int) -> bool:
    """Whether the kernels are to do this problem, by the environment variable PSA_FUSED.

    ``auto``, the default: on a CUDA device, where they can. ``always``: everywhere. ``never``: nowhere.

    Raises:
        ConfigError: If it is something else, or ``always`` and they cannot.
    """
    setting = os.environ.get(SETTING, "auto")
    if setting not in SETTINGS:
        raise ConfigError(f"{SETTING}={setting}: expected one of {', '.join(SETTINGS)}")
    if setting == "never" or (setting == "auto" and not keys.is_cuda):
        return False
    reason = unfit(keys, values, num_slots)
    if setting == "always" and reason:
        raise ConfigError(f"{SETTING}=always: {reason}")
    return reason is None


def fused_moments(
    keys: Float[Tensor, "batch tokens features"],
    values: Float[Tensor, "batch tokens features"],
    natural: Float[Tensor, "batch slots terms"],
    token_weights: Float[Tensor, "batch tokens"] | None = None,
    *,
    keep_responsibilities: bool = False,
) -> FusedMoments:
    """The moments of :func:`psa.inference.slot_moments.slot_moments`, all float32, whatever the tokens' dtype.

    Args:
        keys, values: (B, N, D), float32, bfloat16 or float16, alike; where they are one tensor, it is read once.
        natural: (B, K, 2 D + 1), computed in float32.
        token_weights: (B, N), non-negative; constants.
        keep_responsibilities: Write A, too.

    Raises:
        ValueError: If the kernels cannot do this problem; the message says why.
    """
    if reason := unfit(keys, values, natural.shape[1]):
        raise ValueError(f"the fused kernels cannot run: {reason}")
    weights = None if token_weights is None else token_weights.detach().float().contiguous()
    keys = keys.contiguous()
    other = None if values is keys else values.contiguous()
    found = _Moments.apply(keys, other, natural.float().contiguous(), weights, keep_responsibilities)
    log_mass, mean, second, empty, responsibilities = found
    return FusedMoments(log_mass, mean, second, empty, responsibilities)


class _Moments(torch.autograd.Function):
    """The two passes; ``values`` is None where they are the keys."""

    @staticmethod
    def forward(
        ctx: Any,
        keys: Tensor,
        values: Tensor | None,
        natural: Tensor,
        weights: Tensor | None,
        keep: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        with torch.cuda.device_of(keys):
            found, inverse = forward_pass(keys, values, natural, weights, keep)
        ctx.save_for_backward(keys, values, natural, weights, found.mean, found.second, inverse)
        ctx.mark_non_differentiable(found.empty)
        ctx.set_materialize_grads(False)
        return found.log_mass, found.mean, found.second, found.empty, found.responsibilities

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        for_keys, for_values = ctx.needs_input_grad[:2]
        saved = Saved(*ctx.saved_tensors)
        with torch.cuda.device_of(saved.keys):
            return (*backward_pass(saved, gradients, for_keys, for_values), None, None)
