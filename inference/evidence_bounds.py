"""Log joints of hard assignments, and the labellings that stand for the same partition (model.md section 1)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psa.conjugate import token_features
from psa.inference.conjugate_steps import conjugate_update, evidence_lower_bound
from psa.inference.coordinates import centre
from psa.models.local_mixture import LocalMixturePrior
from psa.permanent import MAX_SIZE, log_permanent


def log_relabellings(num_slots: int, occupied: Int[Tensor, " *batch"]) -> Float[Tensor, " *batch"]:
    """log(K! / (K - K+)!), the labellings of a partition into K+ occupied slots; float64."""
    occupied = occupied.to(torch.float64)
    return torch.lgamma(torch.tensor(num_slots + 1.0, dtype=torch.float64)) - torch.lgamma(num_slots - occupied + 1.0)


def occupied_slots(
    responsibilities: Float[Tensor, "batch slots tokens"], mask: Tensor | None, min_tokens: float | None = None
) -> Int[Tensor, " batch"]:
    """K+, the slots that are the likeliest of at least ``min_tokens`` tokens (by default 1 % of N, at least 1)."""
    num_slots = responsibilities.shape[1]
    one_hot = torch.nn.functional.one_hot(responsibilities.argmax(1), num_slots).to(responsibilities)
    weights = torch.ones_like(one_hot[..., 0]) if mask is None else mask.to(one_hot)
    count = (one_hot * weights[..., None]).sum(1)
    least = (0.01 * weights.sum(1, keepdim=True)).clamp(min=1.0) if min_tokens is None else min_tokens
    return (count >= least).sum(1)


def assignment_log_joint(
    labels: Int[Tensor, "batch tokens"],
    tokens: Float[Tensor, "batch tokens features"],
    prior: LocalMixturePrior,
    num_slots: int,
    mask: Tensor | None = None,
    covariance: str = "diagonal",
) -> tuple[Float[Tensor, " batch"], Int[Tensor, " batch"]]:
    """log p(v, c) with weights, means and precisions integrated out, (B,), and the slots that c uses, (B,).

    It is the ELBO of the q(c) that puts all its mass on c, where the mean field loses nothing.
    """
    values, weights, origin = centre(tokens, mask)
    one_hot = torch.nn.functional.one_hot(labels, num_slots).to(values).transpose(1, 2)
    weighted = one_hot if weights is None else one_hot * weights[:, None]
    components = prior.components(values, covariance).shifted(-origin)
    state = conjugate_update(
        weighted @ token_features(values, components.full).transpose(1, 2), prior.concentration, components
    )
    num_tokens = weighted.sum((1, 2))
    joint = evidence_lower_bound(torch.zeros_like(num_tokens), state, prior.concentration, components, num_tokens)
    return joint, (weighted.sum(-1) > 0).sum(-1)


def relabelling_ratio(
    match: Float[Tensor, "batch draws slots slots"],
) -> Float[Tensor, "batch draws"]:
    """log of the sum over permutations s of prod_k exp(M[k, s(k)] - M[k, k]); above 14 slots, a bound from above.

    The bound is the smaller of the products of row and column sums, which every permanent is below.
    """
    own = match.diagonal(dim1=-2, dim2=-1).sum(-1)
    if match.shape[-1] <= MAX_SIZE:
        return log_permanent(match) - own
    return torch.minimum(match.logsumexp(-1).sum(-1), match.logsumexp(-2).sum(-1)) - own
