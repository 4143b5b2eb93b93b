"""How many slots: the evidence for K = 1..Kmax, the posterior over K, and leave-one-out prediction beside them."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

import psa.arviz
from psa.inference.annealing import sweep
from psa.inference.draws import MixtureDraws
from psa.inference.evidence import EvidenceEstimate, EvidenceWarning, exact_log_evidence, log_evidence
from psa.inference.fits import LocalMixtureFit
from psa.inference.importance import importance_draws
from psa.inference.relabelling import relabel
from psa.inference.slot_inference import positive_int
from psa.inference.variational import fit_local_mixture
from psa.models.local_mixture import LocalMixturePrior

METHODS = ("variational", "importance", "annealed", "exact")
NUM_RESTARTS = 10
SPARSE = 0.1  # alpha0 of the fit that counts occupied slots: small enough to empty spare ones
NUM_CHAINS = 4
NUM_SWEEPS = 5


def weak_prior(tokens: Float[Tensor, "tokens features"], concentration: float = 1.0) -> LocalMixturePrior:
    """A prior in the data's own units, the same for every K, so that evidence compares.

    m0 the tokens' mean, kappa0 = 0.01, a0 = 1, b0 a tenth of the tokens' variance per axis. alpha0 = 1 charges for
    slots that are not needed; under a small alpha0 spare slots are empty and cost nothing, and the evidence is flat
    above the right K.

    Args:
        tokens: (N, D).
        concentration: alpha0 > 0.
    """
    var = tokens.to(torch.float64).var(0, correction=0)
    # an axis that does not vary has no scale: that of the others, or 1
    scale = torch.where(var > 0, var, var.max() if bool((var > 0).any()) else torch.ones_like(var))
    return LocalMixturePrior(concentration, tokens.to(torch.float64).mean(0), 0.01, 1.0, 0.1 * scale)


@dataclass(frozen=True)
class CountEvidence:
    """Evidence of K = 1..Kmax slots for a batch of images.

    Attributes:
        log_evidence: (B, Kmax), nats.
        standard_error: (B, Kmax), 0 where the method has none.
        failed: (B, Kmax), the method's own diagnostic; never under ``variational``, which has none.
        bound: (B, Kmax), guaranteed not to be above the log evidence.
        fits: The variational fit of each K.
        method: variational, importance, annealed or exact.
    """

    log_evidence: Float[Tensor, "batch counts"]
    standard_error: Float[Tensor, "batch counts"]
    failed: Bool[Tensor, "batch counts"]
    bound: Float[Tensor, "batch counts"]
    fits: Sequence[LocalMixtureFit]
    method: str

    @property
    def posterior(self) -> Float[Tensor, "batch counts"]:
        """p(K | v) under a uniform prior over 1..Kmax; sums to 1."""
        return self.log_evidence.softmax(-1)

    @property
    def best(self) -> Tensor:
        """The likeliest K, (B,)."""
        return self.log_evidence.argmax(-1) + 1


def compare_slot_counts(  # noqa: PLR0913 - the settings of one comparison
    tokens: Float[Tensor, "batch tokens features"],
    prior: LocalMixturePrior,
    max_slots: int,
    method: str = "annealed",
    *,
    mask: Bool[Tensor, "batch tokens"] | None = None,
    num_samples: int | None = None,
    num_restarts: int = NUM_RESTARTS,
    generator: torch.Generator | None = None,
    progress: Callable[[int], None] = lambda num_slots: None,
) -> CountEvidence:
    """The evidence of every number of slots up to ``max_slots``.

    Args:
        tokens: (B, N, D).
        prior: The same for every K; see :func:`weak_prior`.
        max_slots: Kmax, at most the number of tokens of every image.
        method: ``annealed`` or ``importance``, with a standard error; ``variational``, the estimate of model.md
            section 1, in milliseconds but too sure of itself; ``exact``, for Kmax^N up to 2^20.
        mask: (B, N), False where a token is padding.
        num_samples: Of the sampling methods; left out, 512 particles or 2048 draws.
        num_restarts: Of every fit.
        generator: Source of random draws.
        progress: Called with K when it is done.

    Raises:
        ValueError: If the method is unknown, or max_slots is above the number of tokens.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    fewest = tokens.shape[1] if mask is None else int(mask.sum(1).min())
    if positive_int("max_slots", max_slots) > fewest:
        raise ValueError(f"max_slots must be at most the number of tokens, {fewest}, got {max_slots}")
    if num_samples is None:
        num_samples = 2048 if method == "importance" else 512
    fits, estimates = [], []
    for num_slots in range(1, max_slots + 1):
        fit = fit_local_mixture(
            tokens.to(torch.float64), prior, num_slots,
            num_iterations=200, num_restarts=num_restarts, mask=mask, generator=generator,
        )  # fmt: skip
        assert isinstance(fit, LocalMixtureFit)
        fits.append(fit)
        estimates.append(_estimate(fit, method, num_samples, generator))
        progress(num_slots)
    return CountEvidence(
        torch.stack([estimate.log_evidence for estimate in estimates], dim=1),
        torch.stack([estimate.standard_error for estimate in estimates], dim=1),
        torch.stack([estimate.failed for estimate in estimates], dim=1),
        torch.stack([fit.log_evidence_bound for fit in fits], dim=1),
        fits,
        method,
    )


def _estimate(
    fit: LocalMixtureFit, method: str, num_samples: int, generator: torch.Generator | None
) -> EvidenceEstimate:
    num_slots = fit.loc.shape[1]
    if method in ("importance", "annealed"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EvidenceWarning)  # the record says which failed
            return log_evidence(
                fit.tokens, fit.prior, num_slots, method, num_samples, mask=fit.mask, generator=generator
            )
    if method == "exact":
        value = exact_log_evidence(fit.tokens, fit.prior, num_slots, fit.mask)
    else:
        value = fit.log_evidence_estimate
    zero = torch.zeros_like(value)
    return EvidenceEstimate(value, zero, zero, zero.bool(), method)


def occupied_distribution(
    tokens: Float[Tensor, "batch tokens features"],
    prior: LocalMixturePrior,
    max_slots: int,
    *,
    mask: Bool[Tensor, "batch tokens"] | None = None,
    num_samples: int = 1000,
    num_restarts: int = NUM_RESTARTS,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch counts"]:
    """How many of ``max_slots`` slots a sparse fit (alpha0 = 0.1) occupies: probabilities of 0..Kmax, (B, Kmax + 1)."""
    sparse = LocalMixturePrior(
        min(SPARSE, prior.concentration), prior.loc, prior.loc_strength, prior.precision_shape, prior.precision_rate
    )
    fit = fit_local_mixture(
        tokens.to(torch.float64), sparse, max_slots,
        num_iterations=200, num_restarts=num_restarts, mask=mask, generator=generator,
    )  # fmt: skip
    assert isinstance(fit, LocalMixtureFit)
    return fit.num_occupied(num_samples, generator=generator)


@dataclass(frozen=True)
class CountDraws:
    """Posterior draws of one image at one K, and how they predict each token when it is left out.

    Attributes:
        data: ArviZ groups of the draws, slots in one order (:meth:`psa.inference.draws.MixtureDraws.inference_data`).
        loo: PSIS-LOO over tokens, assignments summed out.
        pareto_k: Of the importance ratios that the draws were resampled by; 0 for NUTS.
    """

    data: Any
    loo: psa.arviz.Loo
    pareto_k: float


def variational_draws(
    fit: LocalMixtureFit, num_draws: int = 1000, generator: torch.Generator | None = None
) -> tuple[MixtureDraws, float]:
    """Posterior draws of the first image of a fit, as four chains, and the Pareto k of the ratios behind them.

    Draws from variational fits and what the importance sampler adds, resampled by Pareto-smoothed ratios, then moved by
    Gibbs sweeps, which leave the posterior as it is and part the copies.
    """
    num_slots = fit.loc.shape[1]
    tokens, mask = fit.tokens[:1], None if fit.mask is None else fit.mask[:1]
    weighted = importance_draws(tokens, fit.prior, num_slots, 2 * num_draws, mask=mask, generator=generator)
    smoothed, pareto_k = psa.arviz.psis(weighted.log_ratios.cpu().numpy())
    probability = torch.as_tensor(smoothed).exp().to(weighted.log_ratios)
    index = torch.multinomial(probability, num_draws, replacement=True, generator=generator)
    problem, parameters = weighted.problem, weighted.parameters[index]
    for _ in range(NUM_SWEEPS):
        parameters = sweep(problem, parameters, generator)
    chains = [
        part.unflatten(1, (NUM_CHAINS, -1))
        for part in (parameters.log_weights, parameters.loc + problem.origin[:, None], parameters.precision)
    ]
    return MixtureDraws(*chains), float(torch.as_tensor(pareto_k).reshape(-1)[0])


def predict_left_out(
    fit: LocalMixtureFit, draws: MixtureDraws, pareto_k: float = 0.0, generator: torch.Generator | None = None
) -> CountDraws:
    """PSIS-LOO of draws of the first image of a fit, their slots brought into the fit's order."""
    tokens, mask = fit.tokens[:1], None if fit.mask is None else fit.mask[:1]
    ordered, _ = relabel(draws, tokens, fit.responsibilities[:1], mask)
    data = ordered.inference_data(tokens, mask=mask, generator=generator)
    return CountDraws(data, psa.arviz.loo(data), pareto_k)
