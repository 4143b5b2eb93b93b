"""Moments of an E-step as a differentiable function, forward and backward in chunks of images and of tokens.

With T(v) = (v^2, v, 1), scores s_kn = natural_k . T(k_n), and
l_kn = g_mass_k + g_mean_k . (v_n - mean_k) + g_second_k . (v_n^2 - second_k), which is a score of the values,

    u_kn = dL / dlog(w_n A_kn) = Ahat_kn l_kn + A_kn dL/dA_kn        d_kn = dL / ds_kn = u_kn - A_kn sum_j u_jn
    dL / dnatural_k = sum_n d_kn T(k_n)
    dL / dk_n = sum_k d_kn ds_kn / dk_n        dL / dv_n = sum_k Ahat_kn dl_kn / dv_n

so that everything but the exponentials is a product of matrices. Of every step that autograd records, log A is kept,
which is smaller than the tokens. Here tokens have their features first, (B, D, N).

Gradients to tokens are sums over slots and over the steps that share the tokens. Each step hands d, Ahat and the
parameters that go with them to :class:`SharedTokens`, as the gradients of placeholders that it was given, and the sum
is made of all steps' at once: a third of the passes over the tokens that three steps of their own would take.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from psa.inference.attention import attend, slot_scores
from psa.inference.token_chunks import Chunk, chunks

PLACEHOLDERS = 6  # a step's: d and the keys' parameters, second and first; Ahat and the values' l, second and first


class Natural(NamedTuple):
    """Parameters of scores: (B, K, D) or None where they are linear in a token; (B, K, D); (B, K, 1)."""

    second: Tensor | None
    first: Tensor
    constant: Tensor

    def of(self, images: slice) -> "Natural":
        """Of some images."""
        return Natural(None if self.second is None else self.second[images], self.first[images], self.constant[images])


class Tokens(NamedTuple):
    """Tokens (B, D, N), and their squares where they are at hand."""

    first: Tensor
    second: Tensor | None

    def of(self, chunk: Chunk, squared: bool) -> "Tokens":
        """Of a chunk, with squares if they are wanted."""
        first = chunk.of(self.first)
        if not squared:
            return Tokens(first, None)
        return Tokens(first, first.square() if self.second is None else chunk.of(self.second))


class Batch(NamedTuple):
    """Keys, values, and log weights (B, 1, N) or None where all are 1."""

    keys: Tokens
    values: Tokens
    log_weights: Tensor | None

    def of(self, chunk: Chunk, squared_keys: bool, squared_values: bool) -> "Batch":
        """Of a chunk, with squares where they are wanted."""
        log_weights = None if self.log_weights is None else chunk.of(self.log_weights)
        return Batch(self.keys.of(chunk, squared_keys), self.values.of(chunk, squared_values), log_weights)


class Wanted(NamedTuple):
    """Which results beside masses and means, and whether there will be a backward pass."""

    second: bool
    responsibilities: bool
    gradients: bool


def unpack_natural(natural: Tensor, num_features: int) -> Natural:
    """From (B, K, 2 D + 1), or (B, K, D + 1) where scores are linear."""
    sizes = [natural.shape[-1] - 1 - num_features, num_features, 1]
    second, first, constant = natural.split(sizes, dim=-1)
    return Natural(second.contiguous() if sizes[0] else None, first.contiguous(), constant)


def exp_or_zero_(log_p: Tensor) -> Tensor:
    """:func:`psa.inference.attention.exp_or_zero` in place."""
    floor = math.log(torch.finfo(log_p.dtype).tiny) / 3.0
    return torch.threshold_(log_p.clamp_(min=floor).exp_(), 1.001 * math.exp(floor), 0.0)


def scores(tokens: Tokens, natural: Natural) -> Tensor:
    """natural_k . T(token_n), (b, K, n)."""
    found = torch.baddbmm(natural.constant, natural.first, tokens.first)
    if natural.second is None or tokens.second is None:
        return found
    return found.baddbmm_(natural.second, tokens.second)


# Of a chunk or of all, under shares exp(log(w_n A_kn) - top_k): top and total (b, K, 1), sums of values and of their
# squares (b, K, D); no squares where they are not wanted.
Sums = list[Tensor]


def add_up(batch: Batch, log_a: Tensor) -> Sums:
    """The sums of a chunk."""
    log_owned = log_a if batch.log_weights is None else log_a + batch.log_weights
    top = log_owned.amax(-1, keepdim=True).clamp_(min=torch.finfo(log_a.dtype).min)
    share = exp_or_zero_(log_owned - top)
    sums = [top, share.sum(-1, keepdim=True), torch.bmm(share, batch.values.first.mT)]
    if batch.values.second is not None:
        sums.append(torch.bmm(share, batch.values.second.mT))
    return sums


def merge(parts: Sequence[Sums]) -> Sums:
    """The sums of all chunks of the same images."""
    if len(parts) == 1:
        return parts[0]
    tops, *others = (torch.stack(tensors) for tensors in zip(*parts, strict=True))
    top = tops.amax(0)
    factor = exp_or_zero_(tops - top)
    return [top, *((factor * sums).sum(0) for sums in others)]


def add_natural_gradient(sums: list[Tensor], tokens: Tokens, weights: Tensor) -> None:
    """Add sum_n weights_kn T(token_n) to the sums by T's parts, whose first is left alone where T has no squares."""
    second, first, constant = sums
    if tokens.second is not None:
        second.baddbmm_(weights, tokens.second.mT)
    first.baddbmm_(weights, tokens.first.mT)
    constant.add_(weights.sum(-1, keepdim=True))


class MomentStep(torch.autograd.Function):
    """One E-step: log masses (B, K, 1), infinite for an empty slot; means; second moments; responsibilities."""

    @staticmethod
    def forward(
        ctx: Any, wanted: Wanted, batch: Batch, natural: Tensor, keys: Tensor, values: Tensor, *placeholders: Tensor
    ) -> tuple[Tensor | None, ...]:
        """``keys`` and ``values`` are the batch's, (B, N, D); the placeholders come from :class:`SharedTokens`."""
        parameters = unpack_natural(natural, keys.shape[-1])
        squared = parameters.second is not None, wanted.second
        size = (*natural.shape[:2], keys.shape[1])
        responsibilities = keys.new_empty(size) if wanted.responsibilities else None
        kept = keys.new_empty(size) if wanted.gradients else None
        found = []
        for group in chunks(batch.keys.first):
            parts = []
            for chunk in group:
                part = batch.of(chunk, *squared)
                log_a = scores(part.keys, parameters.of(chunk.images)).log_softmax(1)
                if kept is not None:
                    chunk.of(kept).copy_(log_a)
                if responsibilities is not None:
                    exp_or_zero_(chunk.of(responsibilities).copy_(log_a))
                parts.append(add_up(part, log_a))
            found.append(merge(parts))
        top, total, *sums = (torch.cat(tensors) for tensors in zip(*found, strict=True))
        empty = top < math.log(torch.finfo(top.dtype).tiny)
        log_mass = torch.where(empty, torch.inf, top + total.log())
        mean, *rest = ((part / total).masked_fill_(empty, 0.0) for part in sums)
        second = rest[0] if rest else None
        ctx.set_materialize_grads(False)
        ctx.shares_tokens = bool(placeholders)
        squares = (batch.keys.second, batch.values.second)
        ctx.save_for_backward(natural, keys, values, kept, log_mass, mean, second, batch.log_weights, *squares)
        return log_mass, mean, second, responsibilities

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """The factors d, Ahat and their parameters for the placeholders; or, to be differentiated again, dense."""
        natural, keys, values, log_a, log_mass, mean, second, log_weights, *squares = ctx.saved_tensors
        if torch.is_grad_enabled():
            weights = None if log_weights is None else log_weights[:, 0].exp()
            again = dense_gradients((natural, keys, values), weights, gradients)
            return (None, None, *again, *[None] * (PLACEHOLDERS * ctx.shares_tokens))
        batch = Batch(Tokens(keys.mT, squares[0]), Tokens(values.mT, squares[1]), log_weights)
        parameters, cotangent = unpack_natural(natural, keys.shape[-1]), _cotangent(gradients, mean, second)
        with torch.autocast(keys.device.type, enabled=False):
            factors, sums = _factors(batch, (parameters, cotangent), (log_a, log_mass), gradients[3])
        of_natural = torch.cat(sums if parameters.second is not None else sums[1:], dim=-1)
        if not ctx.shares_tokens:
            return None, None, of_natural, None, None
        d, attention = factors
        for_keys = d, parameters.second, parameters.first
        for_values = attention, cotangent.second, cotangent.first
        return None, None, of_natural, None, None, *for_keys, *for_values


def _cotangent(gradients: Sequence[Tensor | None], mean: Tensor, second: Tensor | None) -> Natural:
    """l as parameters of the values' features."""
    of_mass, of_mean, of_second, _ = gradients
    of_mean = torch.zeros_like(mean) if of_mean is None else of_mean.contiguous()
    constant = -(of_mean * mean).sum(-1, keepdim=True)
    if of_second is not None:
        of_second = of_second.contiguous()
        assert second is not None
        constant -= (of_second * second).sum(-1, keepdim=True)
    return Natural(of_second, of_mean, constant if of_mass is None else constant.add_(of_mass))


def _factors(
    batch: Batch,
    parameters: tuple[Natural, Natural],
    found: tuple[Tensor, Tensor],
    of_responsibilities: Tensor | None,
) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
    """d and Ahat, (B, K, N) each, and the gradient to the scores' parameters by parts; from log A and log masses."""
    (natural, cotangent), (every_log_a, log_mass) = parameters, found
    d, attention = torch.empty_like(every_log_a), torch.empty_like(every_log_a)
    sums = [torch.zeros_like(part) for part in (natural.first, natural.first, natural.constant)]
    for chunk in (chunk for group in chunks(batch.keys.first) for chunk in group):
        images, part = chunk.images, batch.of(chunk, natural.second is not None, cotangent.second is not None)
        log_a, of_scores, share = (chunk.of(tensor) for tensor in (every_log_a, d, attention))
        torch.sub(log_a, log_mass[images], out=share)
        exp_or_zero_(share if part.log_weights is None else share.add_(part.log_weights))
        responsibilities = exp_or_zero_(log_a.clone())
        torch.mul(scores(part.values, cotangent.of(images)), share, out=of_scores)
        if of_responsibilities is not None:
            # where A is an exact zero, the gradient may be infinite, as that of an entropy
            of_scores += (responsibilities * chunk.of(of_responsibilities)).masked_fill_(responsibilities == 0, 0.0)
        of_scores.addcmul_(responsibilities, of_scores.sum(1, keepdim=True), value=-1.0)
        add_natural_gradient([part_sum[images] for part_sum in sums], part.keys, of_scores)
    return (d, attention), sums


def dense_gradients(
    inputs: tuple[Tensor, Tensor, Tensor], token_weights: Tensor | None, gradients: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """The gradients to natural, keys and values as an expression that can be differentiated again."""
    # views, so that keys which are the values, too, get a gradient of their own
    natural, keys, values = (tensor.view_as(tensor) for tensor in inputs)
    attention = attend(slot_scores(keys, natural), token_weights)
    moments = attention.attention @ values, attention.attention @ values.square()
    outputs = attention.log_mass[..., None], *moments, attention.responsibilities
    pairs = [(output, g) for output, g in zip(outputs, gradients, strict=True) if g is not None]
    wanted = [tensor for tensor in (natural, keys, values) if tensor.requires_grad]
    of_outputs, given = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(of_outputs, wanted, given, create_graph=True, allow_unused=True))
    return tuple(next(found) if tensor.requires_grad else None for tensor in (natural, keys, values))


class Factors(NamedTuple):
    """A step's part of the gradient to tokens: (B, K, N), and scores' parameters (B, K, D) or None, (B, K, D)."""

    weights: Tensor
    second: Tensor | None
    first: Tensor


class SharedTokens(torch.autograd.Function):
    """Placeholders for steps that share keys and values; their gradients are what :class:`MomentStep` hands back."""

    @staticmethod
    def forward(ctx: Any, keys: Tensor, values: Tensor, num_slots: int, num_steps: int) -> tuple[Tensor, ...]:
        """For tokens (B, N, D), PLACEHOLDERS for each step, which each may be used once. They take no memory."""
        ctx.save_for_backward(keys, values)
        ctx.set_materialize_grads(False)
        batch, num_tokens, num_features = keys.shape
        zero = keys.new_zeros(())
        sizes = [(batch, num_slots, size) for size in (num_tokens, num_features, num_features)] * 2
        return tuple(zero.expand(size) for _ in range(num_steps) for size in sizes)

    @staticmethod
    def backward(ctx: Any, *handed: Tensor | None) -> tuple[Tensor | None, ...]:
        """The sums of all steps' factors."""
        found: list[Tensor | None] = []
        for tokens, wanted, first in zip(ctx.saved_tensors, ctx.needs_input_grad, (0, 3), strict=False):
            steps = []
            for at in range(first, len(handed), PLACEHOLDERS):
                weights, second, linear = handed[at : at + 3]
                if weights is not None and linear is not None:
                    steps.append(Factors(weights, second, linear))
            with torch.autocast(tokens.device.type, enabled=False):
                found.append(token_gradient(tokens.mT, steps).mT if wanted and steps else None)
        return *found, None, None


def token_gradient(tokens: Tensor, steps: Sequence[Factors]) -> Tensor:
    """sum over steps and slots of weights_kn d score_kn / d token_n, (B, D, N)."""
    weights = torch.cat([step.weights for step in steps], dim=1)
    first = torch.cat([step.first for step in steps], dim=1).mT
    quadratic = [(step.weights, step.second) for step in steps if step.second is not None]
    gradient = torch.empty_like(tokens, memory_format=torch.contiguous_format)
    if not quadratic:
        for chunk in (chunk for group in chunks(tokens) for chunk in group):
            torch.bmm(first[chunk.images], chunk.of(weights), out=chunk.of(gradient))
        return gradient
    weights_of_squares = weights if len(quadratic) == len(steps) else torch.cat([part for part, _ in quadratic], dim=1)
    second = 2.0 * torch.cat([part for _, part in quadratic], dim=1).mT
    for chunk in (chunk for group in chunks(tokens) for chunk in group):
        out = torch.bmm(second[chunk.images], chunk.of(weights_of_squares), out=chunk.of(gradient))
        out.mul_(chunk.of(tokens)).baddbmm_(first[chunk.images], chunk.of(weights))
    return gradient
