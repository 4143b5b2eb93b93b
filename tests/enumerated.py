"""The local model's posterior of one small image, by the sum over all K^N assignments; loops, nothing of psa.

Given the assignments, weights are Dirichlet, means and precisions Normal-Gamma; so expectations are finite sums.
"""

import itertools
import math
from dataclasses import dataclass

import oracles
import torch
from torch import Tensor


@dataclass(frozen=True)
class Enumerated:
    """All assignments, in the order of itertools.product.

    Attributes:
        labels: (K^N, N).
        probability: (K^N,), p(c | v).
        log_evidence: log p(v), nats.
        expected: Exact expectations of :func:`label_free`, by name.
    """

    labels: Tensor
    probability: Tensor
    log_evidence: float
    expected: dict[str, Tensor]


def label_free(log_weights: Tensor, loc: Tensor, precision: Tensor) -> dict[str, Tensor]:
    """Functions of theta, (S, K), (S, K, D), (S, K, D), that no relabelling changes; (S,) or (S, D)."""
    weights = log_weights.exp()
    return {
        "sum of squared weights": weights.square().sum(-1),
        "weighted mean": (weights[..., None] * loc).sum(-2),
        "weighted precision": (weights[..., None] * precision).sum(-2),
        "weighted distance": (weights[..., None] * precision * (loc - 0.3).square()).sum(-2),
    }


def _given(labels: tuple[int, ...], tokens: Tensor, prior: oracles.Prior, num_slots: int) -> tuple:
    """log p(v, c) of one assignment, and the expectations given it."""
    total = num_slots * prior.alpha + len(labels)
    log_term = oracles.log_urn(labels, num_slots, prior.alpha)
    squares, rows = 0.0, torch.zeros(3, tokens.shape[1], dtype=torch.float64)
    for k in range(num_slots):
        owned = [n for n, label in enumerate(labels) if label == k]
        alpha = prior.alpha + len(owned)
        squares += alpha * (alpha + 1) / (total * (total + 1))
        for d in range(tokens.shape[1]):
            values = [float(tokens[n, d]) for n in owned]
            loc, strength, shape, rate = oracles.normal_gamma_posterior(values, [1.0] * len(owned), prior)
            log_term += 0.5 * math.log(prior.strength / strength) + math.lgamma(shape) - math.lgamma(prior.shape)
            log_term += prior.shape * math.log(prior.rate) - shape * math.log(rate)
            log_term -= 0.5 * len(owned) * math.log(2 * math.pi)
            mean_precision = shape / rate
            distance = 1 / strength + mean_precision * (loc - 0.3) ** 2
            rows[:, d] += alpha / total * torch.tensor([loc, mean_precision, distance], dtype=torch.float64)
    return log_term, squares, rows


def enumerated(tokens: Tensor, prior: oracles.Prior, num_slots: int) -> Enumerated:
    """Sum over the assignments of an image (N, D)."""
    assignments = list(itertools.product(range(num_slots), repeat=len(tokens)))
    log_terms, squares, rows = zip(*(_given(c, tokens, prior, num_slots) for c in assignments), strict=True)
    log_joint = torch.tensor(log_terms, dtype=torch.float64)
    probability = log_joint.softmax(0)
    mean, precision, distance = torch.einsum("a,aqd->qd", probability, torch.stack(rows))
    expected = {
        "sum of squared weights": probability @ torch.tensor(squares, dtype=torch.float64),
        "weighted mean": mean,
        "weighted precision": precision,
        "weighted distance": distance,
    }
    return Enumerated(torch.tensor(assignments), probability, float(log_joint.logsumexp(0)), expected)
