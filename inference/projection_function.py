"""Projections of tokens whose results have the tokens of a feature side by side, as E-steps on a CPU read them fastest.

In the backward pass all projections add to one gradient of the tokens, in the tokens' own layout. Autograd of the same
products would make one each in the other layout, and then transpose and add them.
"""

from typing import Any

import torch
from torch import Tensor


class ProjectTokens(torch.autograd.Function):
    """tokens W' for each W, (B, N, D) that lie as (B, D, N)."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        """Of tokens (B, N, I) and weights (D, I); a result has the tokens' precision, also under autocast."""
        ctx.save_for_backward(tokens, *weights)
        ctx.set_materialize_grads(False)
        by_feature = tokens.mT
        return tuple(torch.bmm(_for_each(weight, tokens), by_feature).to(tokens.dtype).mT for weight in weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """One gradient of the tokens, and one for each W."""
        tokens, *weights = ctx.saved_tensors
        of_tokens_wanted, *wanted = ctx.needs_input_grad
        of_tokens = None
        of_weights: list[Tensor | None] = [None] * len(weights)
        with torch.autocast(tokens.device.type, enabled=False):
            for place, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
                if gradient is None:
                    continue
                if wanted[place]:
                    of_weights[place] = torch.bmm(gradient.mT, tokens).sum(0)
                if of_tokens_wanted:
                    factor = _for_each(weight, tokens)
                    of_tokens = gradient @ factor if of_tokens is None else torch.baddbmm(of_tokens, gradient, factor)
        return of_tokens, *of_weights


def _for_each(weight: Tensor, tokens: Tensor) -> Tensor:
    return weight.to(tokens.dtype).expand(len(tokens), -1, -1)
