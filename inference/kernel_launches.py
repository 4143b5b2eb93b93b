"""How the kernels of :mod:`psa.inference.fused_moments` are launched: what goes in, and how a problem is cut."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MAX_TOKENS = 4096  # that one program adds up in float32


@dataclass(frozen=True)
class FusedMoments:
    """What the kernels find; :class:`psa.inference.slot_moments.SlotMoments` says what the first four are.

    Attributes:
        responsibilities: (B, K, N), A, float32; None where they were not asked for.
    """

    log_mass: Float[Tensor, "batch slots"]
    mean: Float[Tensor, "batch slots features"]
    second: Float[Tensor, "batch slots features"]
    empty: Bool[Tensor, "batch slots 1"]
    responsibilities: Float[Tensor, "batch slots tokens"] | None


@dataclass(frozen=True)
class Blocks:
    """How a problem is cut for the device.

    Attributes:
        slots: K padded to a power of two, 16 at least.
        features: Of a block: D likewise, or as many as leave room for the slots.
        chunks: Blocks of features, each with programs of its own.
        rows: Tokens at a time.
        warps, stages: Of a program; loads in flight.
        tokens_each: Tokens a program, a multiple of ``rows``.
        splits: Programs an image.
    """

    slots: int
    features: int
    chunks: int
    rows: int
    warps: int
    stages: int
    tokens_each: int
    splits: int


def padded(size: int, least: int = 16) -> int:
    """The next power of two."""
    return max(least, 1 << (size - 1).bit_length())


def interpreted() -> bool:
    """Whether Triton's interpreter stands in for a device: TRITON_INTERPRET=1 when Triton was first imported."""
    import triton

    return bool(triton.knobs.runtime.interpret)


def blocks_for(keys: Tensor, num_slots: int) -> Blocks:
    """Four programs a multiprocessor, each with whole rows and at most MAX_TOKENS tokens."""
    batch, num_tokens, num_features = keys.shape
    slots = padded(num_slots)
    features = min(padded(num_features), (2048 if keys.dtype == torch.bfloat16 else 1024) // slots)
    chunks = -(-num_features // features)
    rows, warps = 64, 4 if slots * features <= 1024 else 8
    processors = torch.cuda.get_device_properties(keys.device).multi_processor_count if keys.is_cuda else 1
    wanted = -(-batch * chunks * num_tokens // (4 * processors))
    tokens_each = min(MAX_TOKENS, -(-wanted // rows) * rows)
    return Blocks(slots, features, chunks, rows, warps, 2, tokens_each, -(-num_tokens // tokens_each))


class Saved(NamedTuple):
    """What the backward pass needs of the forward: what came in, the moments, and 1 / mass in the kernels' scale."""

    keys: Tensor
    values: Tensor | None
    natural: Tensor
    weights: Tensor | None
    mean: Tensor
    second: Tensor
    inverse: Tensor


def _switches(keys: Tensor, values: Tensor | None, weights: Tensor | None) -> dict[str, Any]:
    """What both kernels are compiled for."""
    import triton.language as tl

    low = keys.dtype == torch.bfloat16
    # the interpreter multiplies no bfloat16; their values in float32 are the same numbers
    operand = tl.bfloat16 if low and not interpreted() else tl.float32
    return {
        "SAME": values is None,
        "WEIGHTED": weights is not None,
        "LOW": low,
        "OPERAND": operand,
    }


def forward_pass(
    keys: Tensor, values: Tensor | None, natural: Tensor, weights: Tensor | None, keep: bool
) -> tuple[FusedMoments, Tensor]:
    """The moments, and 1 / mass in the kernels' scale (B, K), 0 for an empty slot."""
    from psa.inference.kernels import forward as kernels

    (batch, num_tokens, num_features), num_slots = keys.shape, natural.shape[1]
    blocks = blocks_for(keys, num_slots)
    sums = natural.new_empty(batch, blocks.splits, num_slots, 2 * num_features + 2)
    responsibilities = natural.new_empty(batch, num_slots, num_tokens) if keep else None
    kernels.moments_kernel[(batch * blocks.splits * blocks.chunks,)](
        keys,
        keys if values is None else values,
        natural,
        keys if weights is None else weights,
        sums,
        sums if responsibilities is None else responsibilities,
        num_tokens,
        num_slots,
        num_features,
        blocks.tokens_each,
        blocks.splits,
        KEEP=keep,
        ROWS=blocks.rows,
        SLOTS=blocks.slots,
        FEATURES=blocks.features,
        CHUNKS=blocks.chunks,
        num_warps=blocks.warps,
        num_stages=blocks.stages,
        **_switches(keys, values, weights),
    )
    log_mass, inverse = natural.new_empty(2, batch, num_slots)
    mean, second = natural.new_empty(2, batch, num_slots, num_features)
    empty = torch.empty(batch, num_slots, 1, dtype=torch.bool, device=natural.device)
    kernels.finish_kernel[(batch * num_slots,)](
        sums,
        log_mass,
        mean,
        second,
        empty,
        inverse,
        num_slots,
        num_features,
        blocks.splits,
        SPLITS=min(16, padded(blocks.splits, 1)),
        WIDTH=padded(2 * num_features + 2),
        num_warps=4,
    )
    return FusedMoments(log_mass, mean, second, empty, responsibilities), inverse


def backward_pass(
    saved: Saved,
    gradients: tuple[Tensor | None, ...],
    for_keys: bool,
    for_values: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Gradients of keys (of both, where the values are the keys), values, and natural."""
    from psa.inference.kernels.backward import gradient_kernel

    keys, values, natural, weights, mean, second, inverse = saved
    of_mass, of_mean, of_second, _, of_responsibilities = gradients
    (batch, num_tokens, num_features), num_slots = keys.shape, natural.shape[1]
    blocks = blocks_for(keys, num_slots)
    sums = natural.new_empty(batch, blocks.splits, num_slots, 2 * num_features + 1)
    grad_keys = torch.empty_like(keys) if for_keys else None
    grad_values = torch.empty_like(keys) if for_values else None
    gradient_kernel[(batch * blocks.splits * blocks.chunks,)](
        keys,
        keys if values is None else values,
        natural,
        keys if weights is None else weights,
        mean,
        second,
        inverse,
        *(_given(g, like) for g, like in ((of_mass, inverse), (of_mean, mean), (of_second, second))),
        sums if of_responsibilities is None else of_responsibilities.contiguous(),
        keys if grad_keys is None else grad_keys,
        (keys if grad_keys is None else grad_keys) if grad_values is None else grad_values,
        sums,
        num_tokens,
        num_slots,
        num_features,
        blocks.tokens_each,
        blocks.splits,
        KEPT=of_responsibilities is not None,
        KEYS=for_keys,
        VALUES=for_values or (for_keys and values is None),
        ROWS=blocks.rows,
        SLOTS=blocks.slots,
        FEATURES=blocks.features,
        CHUNKS=blocks.chunks,
        num_warps=blocks.warps,
        num_stages=blocks.stages,
        **_switches(keys, values, weights),
    )
    return grad_keys, grad_values, sums.sum(1)


def _given(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient.float().contiguous()
