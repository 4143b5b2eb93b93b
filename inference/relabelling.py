"""Undoing label switching: slots of all draws brought into one order (Stephens 2000, algorithm 2)."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from psa.inference.draws import MixtureDraws
from psa.inference.slot_inference import positive_int


def relabel(
    draws: MixtureDraws,
    tokens: Float[Tensor, "batch tokens features"],
    reference: Float[Tensor, "batch slots tokens"] | None = None,
    mask: Bool[Tensor, "batch tokens"] | None = None,
    max_sweeps: int = 20,
) -> tuple[MixtureDraws, Int[Tensor, "batch chains draws slots"]]:
    """Permute the slots of every draw so that they agree on which tokens each slot owns.

    With p the classification probabilities of a draw, it lowers sum over draws of sum_nk p_nk log(p_nk / q_nk) by
    turns: q is the mean of p over all chains and draws in their present order, and each draw takes the order of least
    cost, an assignment problem. No turn raises the cost; the end may be a local minimum. Slots that own no token in
    any draw stay in an arbitrary order.

    Args:
        draws: The draws, in any order of slots.
        tokens: (B, N, D), what they were conditioned on.
        reference: Responsibilities q to begin with, such as a variational fit's, whose order of slots is then kept;
            by default those of each image's draw of highest likelihood.
        mask: (B, N), False where a token is padding; it has no say.
        max_sweeps: Most turns; fewer where nothing changes any more.

    Returns:
        The draws in their new order, and the order: new slot k is old slot order[..., k].
    """
    positive_int("max_sweeps", max_sweeps)
    shape = draws.log_weights.shape
    probabilities = draws.responsibilities(tokens, mask).flatten(1, 2)
    if reference is None:
        best = draws.token_log_density(tokens, mask).sum(-1).flatten(1).argmax(1)
        reference = probabilities[torch.arange(len(best), device=best.device), best]
    q = reference.to(probabilities)
    order = torch.full(probabilities.shape[:3], -1, dtype=torch.int64, device=probabilities.device)
    for _ in range(max_sweeps):
        previous, order = order, _least_cost(probabilities, q, mask)
        if torch.equal(order, previous):
            break
        q = probabilities.gather(2, order[..., None].expand_as(probabilities)).mean(1)
    order = order.reshape(shape)
    return draws.permuted(order), order


def _least_cost(
    probabilities: Float[Tensor, "batch draws slots tokens"],
    q: Float[Tensor, "batch slots tokens"],
    mask: Tensor | None,
) -> Int[Tensor, "batch draws slots"]:
    """Each draw's order of least sum_nk p_nj log(p_nj / q_nk), j the old slot that becomes new slot k.

    sum_nj p_nj log p_nj is the same in every order, so what is minimised is the rest.
    """
    log_q = q.clamp(min=torch.finfo(q.dtype).tiny).log()
    if mask is not None:
        log_q = log_q.masked_fill(~mask[:, None], 0.0)
    cost = -(log_q[:, None] @ probabilities.transpose(2, 3))
    flat = cost.flatten(0, 1).cpu().numpy()
    found = np.stack([linear_sum_assignment(matrix)[1] for matrix in flat])
    return torch.from_numpy(found.astype(np.int64)).to(q.device).reshape(cost.shape[:3])
