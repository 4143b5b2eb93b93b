"""The forward pass of :mod:`psa.inference.fused_moments`: sums over ranges of tokens, then over ranges.

A program goes once over a range of one image's tokens, ROWS at a time: it scores them, takes the softmax over slots,
and adds to sums in registers. The second, small kernel adds the programs' sums in their order; nothing is added by
atomics, so that results are reproducible bit for bit. Where tokens have more features than a block (CHUNKS > 1), a
program scores all features and sums its own block's.

Sums are of A w 2^32 in place of flash attention's exp about a running maximum: A is at most 1, and a slot whose largest
A w is below float32's smallest normal number is empty by definition, so one fixed scale holds all that counts.
"""

from typing import no_type_check

import triton
import triton.language as tl

from psa.inference.kernels.blocks import (
    LIFT,
    LOG_LIFT,
    SMALL,
    TINY,
    add_product,
    by_slot,
    halves,
    linear_in_features,
    parts,
    put_sums,
    softmax_over_slots,
    tokens_at,
)


@triton.jit
@no_type_check
def moments_kernel(
    keys,
    values,
    natural,
    weights,
    sums,
    responsibilities,
    num_tokens,
    num_slots,
    num_features,
    tokens_each,
    splits,
    SAME: tl.constexpr,
    WEIGHTED: tl.constexpr,
    KEEP: tl.constexpr,
    LOW: tl.constexpr,
    OPERAND: tl.constexpr,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    FEATURES: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Sums (B, splits, K, 2 D + 2) over a range of tokens: of shares times v^2, v and 1, and the largest share."""
    TOKEN: tl.constexpr = 1 if LOW else 3
    SQUARE: tl.constexpr = 2 if LOW else 3
    SHARES: tl.constexpr = 2 if LOW else 4
    program, chunk = tl.program_id(0) // CHUNKS, tl.program_id(0) % CHUNKS
    image, split = (program // splits).to(tl.int64), program % splits
    slot, own = tl.arange(0, SLOTS), chunk * FEATURES
    here = slot < tl.where(chunk > 0, 0, num_slots)  # what is no feature's is stored once
    stride, width = 2 * num_features + 1, 2 * num_features + 2
    keys += image * num_tokens * num_features
    values += image * num_tokens * num_features
    weights += image * num_tokens
    natural += image * num_slots * stride
    responsibilities += image * num_slots * num_tokens
    sums += (image * splits + split) * num_slots * width

    natural_first = natural + num_features
    second = by_slot(natural, stride, own, num_slots, num_features, SLOTS, FEATURES)
    first = by_slot(natural_first, stride, own, num_slots, num_features, SLOTS, FEATURES)
    constant = tl.load(natural + slot * stride + 2 * num_features, mask=slot < num_slots, other=float("-inf"))
    sum_second = tl.zeros((FEATURES, SHARES * SLOTS), tl.float32)
    sum_first = tl.zeros((FEATURES, SHARES * SLOTS), tl.float32)
    mass = tl.zeros((ROWS, SLOTS), tl.float32)
    peak = tl.zeros((ROWS, SLOTS), tl.float32)
    begin = split * tokens_each
    for start in range(begin, min(begin + tokens_each, num_tokens), ROWS):
        rows = start + tl.arange(0, ROWS)
        k = tokens_at(keys, rows, own, num_tokens, num_features, FEATURES)
        v = k if SAME else tokens_at(values, rows, own, num_tokens, num_features, FEATURES)
        scores = constant[None, :] + linear_in_features(
            keys, rows, k, second, first, natural, natural_first, stride,
            num_tokens, num_slots, num_features, TOKEN, SQUARE, OPERAND, CHUNKS,
        )  # fmt: skip
        a, weight = softmax_over_slots(scores, rows, weights, num_tokens, WEIGHTED)
        if KEEP:
            inside = (rows < num_tokens)[:, None] & here[None, :]
            place = responsibilities + slot[None, :].to(tl.int64) * num_tokens + rows[:, None]
            tl.store(place, tl.where(a < SMALL, 0.0, a), mask=inside)
        share = a * (weight * LIFT)[:, None]
        if LOW:  # what is summed for the mass is what is multiplied
            high, low = halves(share, OPERAND)
            share = high.to(tl.float32) + low.to(tl.float32)
        mass += share
        peak = tl.maximum(peak, share)
        shares = parts(share, SHARES, OPERAND)
        sum_first = add_product(sum_first, v, shares, TOKEN, True, OPERAND)
        sum_second = add_product(sum_second, v * v, shares, SQUARE, True, OPERAND)
    put_sums(sums, width, own, num_slots, num_features, sum_second, sum_first, SHARES)
    last = sums + slot * width + 2 * num_features
    tl.store(last, tl.sum(mass, 0), mask=here)
    tl.store(last + 1, tl.max(peak, 0), mask=here)


@triton.jit
@no_type_check
def finish_kernel(
    sums,
    log_mass,
    mean,
    second,
    empty,
    inverse,
    num_slots,
    num_features,
    splits,
    SPLITS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One slot: its programs' sums added in their order, SPLITS at a time, and normalised; ``inverse`` is 1 / mass."""
    image, slot = (tl.program_id(0) // num_slots).to(tl.int64), tl.program_id(0) % num_slots
    width = 2 * num_features + 2
    column = tl.arange(0, WIDTH)
    sums += image * splits * num_slots * width + slot * width
    total = tl.zeros((WIDTH,), tl.float32)
    peak = tl.zeros((WIDTH,), tl.float32)
    for start in range(0, splits, SPLITS):
        split = start + tl.arange(0, SPLITS)
        inside = (split < splits)[:, None] & (column < width)[None, :]
        place = sums + split[:, None].to(tl.int64) * num_slots * width + column[None, :]
        block = tl.load(place, mask=inside, other=0.0)
        total += tl.sum(block, 0)
        peak = tl.maximum(peak, tl.max(block, 0))
    mass = tl.sum(tl.where(column == 2 * num_features, total, 0.0), 0)
    none = tl.max(tl.where(column == 2 * num_features + 1, peak, 0.0), 0) < TINY * LIFT
    share = tl.where(none, 0.0, 1.0 / tl.where(none, 1.0, mass))
    row = tl.program_id(0).to(tl.int64)
    tl.store(second + row * num_features + column, total * share, mask=column < num_features)
    within = (column >= num_features) & (column < 2 * num_features)
    tl.store(mean + row * num_features + column - num_features, total * share, mask=within)
    tl.store(log_mass + row, tl.where(none, float("-inf"), tl.log(tl.where(none, 1.0, mass)) - LOG_LIFT))
    tl.store(empty + row, none)
    tl.store(inverse + row, share)
