"""Slots times the encoder's own posterior: the product form of the aggregate mixture (PSA eqs. 29 to 33)."""

import torch
from jaxtyping import Float
from torch import Tensor

from psa.conjugate import LOG_2PI
from psa.inference.posterior_stream import Chunk, SlotChunk

RULES = ("exact", "paper")


def product_form(
    chunk: Chunk,
    encoder_loc: Float[Tensor, "batch features"],
    encoder_var: Float[Tensor, "batch features"],
    rule: str = "exact",
) -> SlotChunk:
    """Each image's mixture times Normal(m_b, diag v_b), normalised; a chunk again.

    var^ = 1 / (1 / var + 1 / v), mu^ = var^ (m / v + mu / var) (eq. 29). With c_bk = Normal(m_b; mu_bk, var_bk + v_b)
    the weights are proportional to pi_bk c_bk (``exact``), or (1 + c_bk) / sum_j (1 + c_bj) (``paper``, eqs. 30 to 33).
    The paper's ignore pi and depend on the units of slots: they are not the weights of the product's density.

    Args:
        chunk: Posteriors of B images.
        encoder_loc: (B, D), m_b.
        encoder_var: (B, D), v_b > 0.
        rule: ``exact`` or ``paper``.

    Returns:
        Weights (B, K) that sum to 1 over K, loc and var (B, K, D).

    Raises:
        ValueError: If the rule is unknown or a variance is not positive.
    """
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, got {rule!r}")
    if not bool((encoder_var > 0).all()):
        raise ValueError(f"encoder_var must be positive, got a least entry of {float(encoder_var.min()):.3g}")
    m, v = encoder_loc[:, None], encoder_var[:, None]
    total = chunk.var + v
    log_c = -0.5 * ((m - chunk.loc).square() / total + total.log() + LOG_2PI).sum(-1)
    log_weights = chunk.weights.log() + log_c if rule == "exact" else torch.logaddexp(torch.zeros_like(log_c), log_c)
    # written without 1 / var: v and var may be many orders apart
    loc = (m * chunk.var + chunk.loc * v) / total
    return SlotChunk(log_weights.softmax(1), loc, chunk.var * v / total)
