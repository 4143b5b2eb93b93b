"""The backward pass of :mod:`psa.inference.fused_moments`: responsibilities once more, then every gradient.

With Ahat = A w / mass and the worth c_kn = g_mass + g_mean . (v_n - mean_k) + g_second . (v_n^2 - second_k), log A
has the gradient l = Ahat c (and A g_A), the scores have d = l - A sum_k l, natural has sum_n d_kn (k_n^2, k_n, 1), keys
have sum_k d_kn (first_k + 2 k_n second_k), and values sum_k Ahat_kn (g_mean_k + 2 v_n g_second_k). The worth is linear
in the values' features as the scores are in the keys', so both are the same product.
"""

from typing import no_type_check

import triton
import triton.language as tl

from psa.inference.kernels.blocks import (
    LIFT,
    SMALL,
    add_product,
    by_slot,
    linear_in_features,
    parts,
    put_sums,
    put_tokens,
    softmax_over_slots,
    thirds,
    tokens_at,
)


@triton.jit
@no_type_check
def add_by_slot(total, shares, parameter, OPERAND: tl.constexpr):
    """Total + sum_k shares_nk parameter_k, (ROWS, FEATURES): the six products of parts above 2^-24 of the largest."""
    high, middle, low = thirds(tl.trans(parameter), OPERAND)
    total = add_product(total, shares, high, 3, False, OPERAND)
    total = add_product(total, shares, middle, 2, False, OPERAND)
    return add_product(total, shares, low, 1, False, OPERAND)


@triton.jit
@no_type_check
def gradient_kernel(
    keys,
    values,
    natural,
    weights,
    mean,
    second_moment,
    inverse,
    grad_mass,
    grad_mean,
    grad_second,
    grad_responsibilities,
    grad_keys,
    grad_values,
    sums,
    num_tokens,
    num_slots,
    num_features,
    tokens_each,
    splits,
    SAME: tl.constexpr,
    WEIGHTED: tl.constexpr,
    KEPT: tl.constexpr,
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
    LOW: tl.constexpr,
    OPERAND: tl.constexpr,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    FEATURES: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Gradients of a range of tokens, and over it sums (B, splits, K, 2 D + 1) of natural's gradient.

    Where the keys are the values (SAME), ``grad_values`` gets the sum of both gradients. An empty slot owns no token,
    and has no gradient to give.
    """
    TOKEN: tl.constexpr = 1 if LOW else 3
    SQUARE: tl.constexpr = 2 if LOW else 3
    SHARES: tl.constexpr = 2 if LOW else 4
    program, chunk = tl.program_id(0) // CHUNKS, tl.program_id(0) % CHUNKS
    image, split = (program // splits).to(tl.int64), program % splits
    slot, own = tl.arange(0, SLOTS), chunk * FEATURES
    here = slot < tl.where(chunk > 0, 0, num_slots)  # what is no feature's is stored once
    stride = 2 * num_features + 1
    by_token, by_mean = image * num_tokens * num_features, image * num_slots * num_features
    keys += by_token
    values += by_token
    grad_keys += by_token
    grad_values += by_token
    mean += by_mean
    second_moment += by_mean
    grad_mean += by_mean
    grad_second += by_mean
    weights += image * num_tokens
    grad_responsibilities += image * num_slots * num_tokens
    natural += image * num_slots * stride
    sums += (image * splits + split) * num_slots * stride

    natural_first = natural + num_features
    second = by_slot(natural, stride, own, num_slots, num_features, SLOTS, FEATURES)
    first = by_slot(natural_first, stride, own, num_slots, num_features, SLOTS, FEATURES)
    constant = tl.load(natural + slot * stride + 2 * num_features, mask=slot < num_slots, other=float("-inf"))
    scale = tl.load(inverse + image * num_slots + slot, mask=slot < num_slots, other=0.0)
    of_second = by_slot(grad_second, num_features, own, num_slots, num_features, SLOTS, FEATURES)
    of_mean = by_slot(grad_mean, num_features, own, num_slots, num_features, SLOTS, FEATURES)
    offset = tl.load(grad_mass + image * num_slots + slot, mask=slot < num_slots, other=0.0)
    for block in range(0, CHUNKS):
        at = block * FEATURES
        g = by_slot(grad_second, num_features, at, num_slots, num_features, SLOTS, FEATURES)
        offset -= tl.sum(g * by_slot(second_moment, num_features, at, num_slots, num_features, SLOTS, FEATURES), 0)
        g = by_slot(grad_mean, num_features, at, num_slots, num_features, SLOTS, FEATURES)
        offset -= tl.sum(g * by_slot(mean, num_features, at, num_slots, num_features, SLOTS, FEATURES), 0)
    sum_second = tl.zeros((FEATURES, SHARES * SLOTS), tl.float32)
    sum_first = tl.zeros((FEATURES, SHARES * SLOTS), tl.float32)
    sum_constant = tl.zeros((ROWS, SLOTS), tl.float32)
    begin = split * tokens_each
    for start in range(begin, min(begin + tokens_each, num_tokens), ROWS):
        rows = start + tl.arange(0, ROWS)
        k = tokens_at(keys, rows, own, num_tokens, num_features, FEATURES)
        v = k if SAME else tokens_at(values, rows, own, num_tokens, num_features, FEATURES)
        scores = constant[None, :] + linear_in_features(
            keys, rows, k, second, first, natural, natural_first, stride,
            num_tokens, num_slots, num_features, TOKEN, SQUARE, OPERAND, CHUNKS,
        )  # fmt: skip
        worth = offset[None, :] + linear_in_features(
            values, rows, v, of_second, of_mean, grad_second, grad_mean, num_features,
            num_tokens, num_slots, num_features, TOKEN, SQUARE, OPERAND, CHUNKS,
        )  # fmt: skip
        a, weight = softmax_over_slots(scores, rows, weights, num_tokens, WEIGHTED)
        ahat = a * (weight * LIFT)[:, None] * scale[None, :]
        log_gradient = ahat * tl.where(scale[None, :] > 0.0, worth, 0.0)
        if KEPT:
            inside = (rows < num_tokens)[:, None] & (slot < num_slots)[None, :]
            place = grad_responsibilities + slot[None, :].to(tl.int64) * num_tokens + rows[:, None]
            log_gradient += tl.where(a < SMALL, 0.0, a) * tl.load(place, mask=inside, other=0.0)
        d = log_gradient - a * tl.sum(log_gradient, 1)[:, None]
        sum_constant += d
        shares = parts(d, SHARES, OPERAND)
        sum_first = add_product(sum_first, k, shares, TOKEN, True, OPERAND)
        sum_second = add_product(sum_second, k * k, shares, SQUARE, True, OPERAND)
        square = tl.zeros((ROWS, FEATURES), tl.float32)
        linear = tl.zeros((ROWS, FEATURES), tl.float32)
        if KEYS:
            square = add_by_slot(square, d, second, OPERAND)
            linear = add_by_slot(linear, d, first, OPERAND)
            if not SAME:
                put_tokens(grad_keys, rows, own, num_tokens, num_features, linear + 2.0 * k * square)
                square = tl.zeros((ROWS, FEATURES), tl.float32)
                linear = tl.zeros((ROWS, FEATURES), tl.float32)
        if VALUES:
            square = add_by_slot(square, ahat, of_second, OPERAND)
            linear = add_by_slot(linear, ahat, of_mean, OPERAND)
            put_tokens(grad_values, rows, own, num_tokens, num_features, linear + 2.0 * v * square)
    put_sums(sums, stride, own, num_slots, num_features, sum_second, sum_first, SHARES)
    tl.store(sums + slot * stride + 2 * num_features, tl.sum(sum_constant, 0), mask=here)
