"""What the kernels of :mod:`psa.inference.fused_moments` are made of.

Products run on the tensor cores in bfloat16, without the loss: a float32 number is three bfloat16, and the square of a
bfloat16 is two. Parameters stand side by side in their parts, so that one product multiplies all of them; partial
products add up in float32.

Names: ROWS x FEATURES is a block of tokens, SLOTS all slots; both are powers of two, the lower-case counts the true
ones. Parameters are stored by slot and held as (FEATURES, SLOTS). TOKEN and SQUARE are the parts that a token and its
square have. OPERAND is bfloat16, and float32 in the interpreter.

Triton compiles a function from its source and its globals, so nothing may wrap it: hence no_type_check.
"""

from typing import no_type_check

import triton
import triton.language as tl

LIFT = tl.constexpr(2.0**32)
LOG_LIFT = tl.constexpr(22.180709777918249)
TINY = tl.constexpr(2.0**-126)  # float32's smallest normal number
SMALL = tl.constexpr(2.0**-42)  # its third root: responsibilities below are exact zeros, as in psa.inference.em


@triton.jit
@no_type_check
def eight_bits(x):
    """x rounded to a bfloat16's 8 bits, in float32: the interpreter's casts truncate, and it multiplies no bfloat16."""
    scaled = x * 65537.0
    return scaled - (scaled - x)


@triton.jit
@no_type_check
def halves(x, OPERAND: tl.constexpr):
    """Two bfloat16 whose sum is x up to 2^-17 |x|, exactly where x has 16 bits."""
    if tl.bfloat16 == OPERAND:
        high = x.to(tl.bfloat16)
        low = (x - high.to(tl.float32)).to(tl.bfloat16)
    else:
        high = eight_bits(x)
        low = eight_bits(x - high)
    return high, low


@triton.jit
@no_type_check
def thirds(x, OPERAND: tl.constexpr):
    """Three bfloat16 whose sum is x, of 24 bits."""
    high, _ = halves(x, OPERAND)
    middle, low = halves(x - high.to(tl.float32), OPERAND)
    return high, middle, low


@triton.jit
@no_type_check
def parts(x, COUNT: tl.constexpr, OPERAND: tl.constexpr):
    """(R, C) as (R, COUNT C): blocks side by side whose sum is x; 2, or 4 of which the last is 0."""
    if COUNT == 2:
        high, low = halves(x, OPERAND)
        joined = tl.join(high, low)
    else:
        high, middle, low = thirds(x, OPERAND)
        joined = tl.join(tl.join(high, low), tl.join(middle, tl.zeros_like(high)))
        joined = tl.reshape(joined, (x.shape[0], x.shape[1], 4))
    return tl.reshape(tl.permute(joined, (0, 2, 1)), (x.shape[0], COUNT * x.shape[1]))


@triton.jit
@no_type_check
def sum_of_parts(x, COUNT: tl.constexpr):
    """(R, COUNT C) to (R, C): the inverse of :func:`parts`."""
    return tl.sum(tl.reshape(x, (x.shape[0], COUNT, x.shape[1] // COUNT)), 1)


@triton.jit
@no_type_check
def add_product(total, x, y, COUNT: tl.constexpr, TRANSPOSED: tl.constexpr, OPERAND: tl.constexpr):
    """Total + x y, or x' y, with x (float32) as its COUNT largest parts, and y an operand."""
    high, low = halves(x, OPERAND)
    total = tl.dot(tl.trans(high) if TRANSPOSED else high, y, total)
    if COUNT > 2:
        middle, low = halves(x - high.to(tl.float32), OPERAND)
        total = tl.dot(tl.trans(middle) if TRANSPOSED else middle, y, total)
    if COUNT > 1:
        total = tl.dot(tl.trans(low) if TRANSPOSED else low, y, total)
    return total


@triton.jit
@no_type_check
def by_slot(start, stride, begin, num_slots, num_features, SLOTS: tl.constexpr, FEATURES: tl.constexpr):
    """Features from ``begin`` on of rows of ``stride`` numbers, one row a slot, as (FEATURES, SLOTS); 0 outside."""
    slot, feature = tl.arange(0, SLOTS), begin + tl.arange(0, FEATURES)
    inside = (slot < num_slots)[None, :] & (feature < num_features)[:, None]
    return tl.load(start + slot[None, :] * stride + feature[:, None], mask=inside, other=0.0)


@triton.jit
@no_type_check
def tokens_at(start, rows, begin, num_tokens, num_features, FEATURES: tl.constexpr):
    """Features from ``begin`` on of tokens, (ROWS, FEATURES) in float32; 0 outside."""
    feature = begin + tl.arange(0, FEATURES)
    inside = (rows < num_tokens)[:, None] & (feature < num_features)[None, :]
    return tl.load(start + rows[:, None] * num_features + feature[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def put_tokens(start, rows, begin, num_tokens, num_features, x):
    """Store (ROWS, FEATURES) where :func:`tokens_at` reads."""
    feature = begin + tl.arange(0, x.shape[1])
    inside = (rows < num_tokens)[:, None] & (feature < num_features)[None, :]
    tl.store(start + rows[:, None] * num_features + feature[None, :], x.to(start.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def put_sums(start, stride, begin, num_slots, num_features, second, first, COUNT: tl.constexpr):
    """Store sums (FEATURES, COUNT SLOTS): a slot's row of ``stride`` numbers begins with those of v^2, then of v."""
    second, first = tl.trans(sum_of_parts(second, COUNT)), tl.trans(sum_of_parts(first, COUNT))
    slot, feature = tl.arange(0, second.shape[0])[:, None], begin + tl.arange(0, second.shape[1])[None, :]
    inside = (slot < num_slots) & (feature < num_features)
    tl.store(start + slot * stride + feature, second, mask=inside)
    tl.store(start + slot * stride + num_features + feature, first, mask=inside)


@triton.jit
@no_type_check
def add_linear(scores, x, second, first, TOKEN: tl.constexpr, SQUARE: tl.constexpr, OPERAND: tl.constexpr):
    """Scores (ROWS, 4 SLOTS), in parts, + second_k . x_n^2 + first_k . x_n, of this block's features."""
    scores = add_product(scores, x, parts(first, 4, OPERAND), TOKEN, False, OPERAND)
    return add_product(scores, x * x, parts(second, 4, OPERAND), SQUARE, False, OPERAND)


@triton.jit
@no_type_check
def linear_in_features(
    tokens,
    rows,
    x,
    second,
    first,
    second_start,
    first_start,
    stride,
    num_tokens,
    num_slots,
    num_features,
    TOKEN: tl.constexpr,
    SQUARE: tl.constexpr,
    OPERAND: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """second_k . x_n^2 + first_k . x_n over all features, (ROWS, SLOTS).

    Where one block has all features it is given, x with its parameters; else block after block is read.
    """
    FEATURES: tl.constexpr = second.shape[0]
    SLOTS: tl.constexpr = second.shape[1]
    scores = tl.zeros((x.shape[0], 4 * SLOTS), tl.float32)
    if CHUNKS == 1:
        scores = add_linear(scores, x, second, first, TOKEN, SQUARE, OPERAND)
    else:
        for chunk in range(0, CHUNKS):
            begin = chunk * FEATURES
            part = tokens_at(tokens, rows, begin, num_tokens, num_features, FEATURES)
            seconds = by_slot(second_start, stride, begin, num_slots, num_features, SLOTS, FEATURES)
            firsts = by_slot(first_start, stride, begin, num_slots, num_features, SLOTS, FEATURES)
            scores = add_linear(scores, part, seconds, firsts, TOKEN, SQUARE, OPERAND)
    return sum_of_parts(scores, 4)


@triton.jit
@no_type_check
def softmax_over_slots(scores, rows, weights, num_tokens, WEIGHTED: tl.constexpr):
    """A, (ROWS, SLOTS), and the tokens' weights, (ROWS,), 0 outside."""
    weight = (rows < num_tokens).to(tl.float32)
    if WEIGHTED:
        weight = tl.load(weights + rows, mask=rows < num_tokens, other=0.0)
    e = tl.exp(scores - tl.max(scores, 1)[:, None])
    return e / tl.sum(e, 1)[:, None], weight
