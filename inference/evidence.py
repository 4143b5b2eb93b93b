"""The evidence log p(v | K) of the local model: exact where it can be summed, else estimated with an error."""

import math
import warnings
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

import psa.arviz
from psa.inference.annealing import anneal
from psa.inference.enumeration import enumerate_posterior
from psa.inference.evidence_bounds import relabelling_ratio
from psa.inference.fits import LocalMixtureFit, draw_labels
from psa.inference.gibbs import pose
from psa.inference.importance import Proposal, importance_draws
from psa.inference.slot_inference import positive_int
from psa.inference.variational import check_tokens
from psa.models.local_mixture import LocalMixturePrior

METHODS = ("importance", "annealed")
MAX_PARETO_K = 0.7
LIGHT_TAIL = 0.02  # of the estimate
FEWEST_DRAWS = 1000  # below, neither the tail of the ratios nor the standard error says enough
MAX_STANDARD_ERROR = 0.5  # nats, between independent annealed runs


class EvidenceWarning(UserWarning):
    """An estimate of the evidence failed its own diagnostic."""


@dataclass(frozen=True)
class EvidenceEstimate:
    """An estimate of log p(v) for every image.

    Attributes:
        log_evidence: (B,), nats.
        standard_error: (B,), nats, of the logarithm.
        diagnostic: (B,): importance, the Pareto k of the ratios; annealed, the standard error between runs.
        failed: (B,), where the estimate is not to be used: importance, the Pareto k is 0.7 or more and the tail that
            it describes carries over 2 % of the estimate (k knows no scale: of ratios that are all but equal it is any
            number), or there are under 1000 draws; annealed, the error is above 0.5 nats; or nothing is finite.
        method: importance or annealed.
    """

    log_evidence: Float[Tensor, " batch"]
    standard_error: Float[Tensor, " batch"]
    diagnostic: Float[Tensor, " batch"]
    failed: Bool[Tensor, " batch"]
    method: str


def exact_log_evidence(
    tokens: Float[Tensor, "batch tokens features"],
    prior: LocalMixturePrior,
    num_slots: int,
    mask: Bool[Tensor, "batch tokens"] | None = None,
    covariance: str = "diagonal",
) -> Float[Tensor, " batch"]:
    """log p(v) by the sum over all K^N assignments, in float64 (model.md section 1).

    Args:
        tokens: (B, N, D).
        prior: Prior of the local model.
        num_slots: K; K ** N at most 2^20 in every image.
        mask: (B, N), False where a token is padding.
        covariance: diagonal or full.

    Raises:
        ValueError: If there are more assignments, or a token is not finite.
    """
    check_tokens(tokens, mask)
    images = [image if mask is None else image[mask[b]] for b, image in enumerate(tokens)]
    return torch.stack([enumerate_posterior(image, prior, num_slots, covariance).log_evidence for image in images])


def log_evidence(
    tokens: Float[Tensor, "batch tokens features"],
    prior: LocalMixturePrior,
    num_slots: int,
    method: str = "importance",
    num_samples: int = 4096,
    *,
    mask: Bool[Tensor, "batch tokens"] | None = None,
    generator: torch.Generator | None = None,
) -> EvidenceEstimate:
    """Estimate log p(v) with a standard error; an estimate that fails its diagnostic is marked, and warned of.

    Args:
        tokens: (B, N, D).
        prior: Prior of the local model.
        num_slots: K; at most 14 for importance sampling, whose proposal is averaged over relabellings.
        method: ``importance``: from variational fits, fast and sharp on small inputs; ``annealed``: sequential Monte
            Carlo from the prior, which needs no good fit.
        num_samples: Draws, or particles (a multiple of 16), of every image.
        mask: (B, N), False where a token is padding.
        generator: Source of all draws.

    Raises:
        ValueError: If the method is unknown, a token is not finite, or a number is outside its support.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    check_tokens(tokens, mask)
    positive_int("num_slots", num_slots)
    arguments = (tokens, prior, num_slots, num_samples)
    if method == "importance":
        ratios = importance_draws(*arguments, mask=mask, generator=generator).log_ratios
        estimate, error = log_mean(ratios)
        diagnostic = torch.as_tensor(psa.arviz.psis(ratios.cpu().numpy())[1]).to(estimate)
        failed = ~(diagnostic < MAX_PARETO_K) & (tail_share(ratios) > LIGHT_TAIL)
        failed = failed | (num_samples < FEWEST_DRAWS)
    else:
        estimate, error = log_mean(anneal(*arguments, mask=mask, generator=generator).run_log_evidence)
        diagnostic, failed = error, ~(error < MAX_STANDARD_ERROR)
    failed = failed | ~torch.isfinite(estimate)
    result = EvidenceEstimate(estimate, error, diagnostic, failed, method)
    if bool(failed.any()):
        _warn(result, num_slots)
    return result


def symmetrised_bound(
    fit: LocalMixtureFit, num_samples: int = 200, generator: torch.Generator | None = None
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """The ELBO of q averaged over its K! relabellings, and its standard error: never above the log evidence.

    ELBO + log K! - E_q log [sum over permutations s of q(s(c, theta)) / q(c, theta)]. q is a product over slots, so the
    sum is a permanent, exact up to 14 slots; above, a number that is not below it takes its place and the bound is
    looser. The expectation is a mean over draws of (c, theta).

    Args:
        fit: A variational fit with diagonal covariances.
        num_samples: Draws.
        generator: Source of the draws.

    Returns:
        The bound (B,) and its standard error (B,), nats.

    Raises:
        ValueError: If covariances are full, or the likelihood was coarsened.
    """
    if fit.covariance != "diagonal" or fit.coarsening != 1.0:
        raise ValueError(
            "fit must have diagonal covariances and coarsening 1, "
            f"got covariance {fit.covariance!r} and coarsening {fit.coarsening}"
        )
    num_slots = fit.loc.shape[1]
    problem = pose(fit.tokens, fit.prior, num_slots, None if fit.mask is None else fit.mask > 0)
    sharp = Proposal(fit.concentration, replace(fit.components, loc=fit.loc - problem.origin))
    weights = torch.ones_like(fit.responsibilities[:, 0]) if fit.mask is None else fit.mask.to(fit.responsibilities)
    log_r = fit.responsibilities.clamp(min=torch.finfo(weights.dtype).tiny).log() * weights[:, None]
    ratios = []
    for _ in range(num_samples):
        one_hot = torch.nn.functional.one_hot(draw_labels(fit.responsibilities, generator), num_slots).to(log_r)
        match = sharp.matches(sharp.draw(1, generator)) + (log_r @ one_hot)[:, None]
        ratios.append(relabelling_ratio(match)[:, 0])
    excess = torch.stack(ratios)
    error = excess.std(0) / math.sqrt(num_samples)
    return fit.elbo + math.lgamma(num_slots + 1) - excess.mean(0), error


def log_mean(log_terms: Float[Tensor, "batch terms"]) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """log of the mean of exp(log_terms), and its standard error by the delta method."""
    count = log_terms.shape[-1]
    estimate = log_terms.logsumexp(-1) - math.log(count)
    relative = (log_terms - estimate[:, None]).exp()
    return estimate, relative.std(-1) / math.sqrt(count)


def tail_share(log_ratios: Float[Tensor, "batch draws"]) -> Float[Tensor, " batch"]:
    """What the largest ratios exceed the next largest by, in sum, as a share of the sum of all: PSIS's tail."""
    count = log_ratios.shape[-1]
    num_tail = math.ceil(min(0.2 * count, 3.0 * math.sqrt(count)))
    ratios = (log_ratios - log_ratios.amax(-1, keepdim=True)).exp()
    top = ratios.topk(num_tail + 1).values
    return (top - top[:, -1:]).sum(-1) / ratios.sum(-1)


def _warn(result: EvidenceEstimate, num_slots: int) -> None:
    worst = float(result.diagnostic[result.failed].max())
    what, limit = (
        ("Pareto k", MAX_PARETO_K) if result.method == "importance" else ("standard error", MAX_STANDARD_ERROR)
    )
    warnings.warn(
        f"{result.method} evidence of {num_slots} slots failed on {int(result.failed.sum())} of {len(result.failed)} "
        f"images: {what} up to {worst:.2f}, {limit} is the most to trust",
        EvidenceWarning,
        stacklevel=3,
    )
