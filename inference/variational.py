"""Coordinate ascent on the local model: variational Bayes, and beside it MAP and maximum likelihood.

Batched over images and restarts, on any device; the steps are those of the amortised ``vb`` and ``em`` members.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from psa.inference.ascent import Rule, VariationalRule
from psa.inference.conjugate_steps import parameters_of, start_from_mixture
from psa.inference.coordinates import at_least_float32, centre
from psa.inference.em import MixtureState
from psa.inference.fits import LocalMixtureFit, PointFit
from psa.inference.point_estimates import MaximumAPosterioriRule, MaximumLikelihoodRule
from psa.inference.restarts import Images, Outcome, fit_images
from psa.inference.slot_inference import positive_int, state_of
from psa.inference.starts import STARTS, start_means
from psa.models.local_mixture import COVARIANCES, LocalMixturePrior
from psa.records import SlotPosterior

ESTIMATES = ("variational", "map", "ml")


@dataclass(frozen=True)
class FitOptions:
    """How to fit the local model.

    Attributes:
        start: ``farthest``, ``kmeans++`` or ``random`` points of the image; or a state or posterior to go on from, or
            means (B, K, D). The first restart of ``farthest`` is deterministic, the others are ``kmeans++``.
        power: beta of a tempered E-step, r proportional to pi_k Normal_k^beta; the ELBO stays that of what was found,
            and may fall.
        coarsening: beta of a coarsened likelihood p(v | theta)^beta: counts are multiplied by it.
        estimate: ``variational``; ``map``, the joint mode in pi, mu, lambda, which needs concentration >= 1 and
            precision_shape > 1/2; or ``ml``, which knows no prior and needs a variance floor.
        covariance: ``diagonal`` or ``full`` (Normal-Wishart).
        variance_floor: Least variance under ``ml``, > 0, in squared token units.

    Raises:
        ValueError: If a value is outside its support.
    """

    start: str | Tensor | MixtureState | SlotPosterior = "farthest"
    power: float = 1.0
    coarsening: float = 1.0
    estimate: str = "variational"
    covariance: str = "diagonal"
    variance_floor: float = 1e-4

    def __post_init__(self) -> None:
        choices = (("estimate", ESTIMATES), ("covariance", COVARIANCES), ("start", tuple(STARTS)))
        for name, allowed in choices:
            value = getattr(self, name)
            if isinstance(value, str) and value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        for name in ("power", "coarsening", "variance_floor"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        if self.estimate == "map" and self.power != 1.0:
            raise ValueError(f"power must be 1 under map, where a tempered E-step raises no density, got {self.power}")
        if self.estimate == "ml" and self.coarsening != 1.0:
            raise ValueError(f"coarsening must be 1 under ml, where it changes nothing, got {self.coarsening}")

    def rule(self, prior: LocalMixturePrior) -> Rule:
        """The updates of this estimate.

        Raises:
            ValueError: If the prior's mode does not exist.
        """
        if self.estimate == "ml":
            return MaximumLikelihoodRule(self.variance_floor, self.power)
        if self.estimate == "variational":
            return VariationalRule(prior.concentration, self.power, self.coarsening)
        if prior.concentration < 1.0:
            raise ValueError(f"concentration must be at least 1 under map, got {prior.concentration}")
        if prior.precision_shape <= 0.5:
            raise ValueError(f"precision_shape must be above 1/2 under map, got {prior.precision_shape}")
        return MaximumAPosterioriRule(prior.concentration, self.coarsening)


def fit_local_mixture(  # noqa: PLR0913 - the settings of one fit
    tokens: Float[Tensor, "batch tokens features"],
    prior: LocalMixturePrior,
    num_slots: int,
    *,
    num_iterations: int = 100,
    tol: float = 1e-6,
    num_restarts: int = 1,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    options: FitOptions = FitOptions(),
) -> LocalMixtureFit | PointFit:
    """Fit the local model of model.md section 1 to every image of a batch.

    The result of an image depends on the batch only through the random draws of its start. float32 and float64 are
    computed as they are, lower precision in float32.

    Args:
        tokens: (B, N, D), finite where the mask keeps them.
        prior: Prior of the local model, in the tokens' units.
        num_slots: K >= 1.
        num_iterations: Most iterations, >= 1.
        tol: Least change of the objective in nats a token, >= 0; 0 takes all iterations.
        num_restarts: Starts of every image, as one batch; the best objective is kept.
        mask: (B, N), False where a token is padding; or non-negative weights, which multiply a token's whole factor.
        generator: Source of random starts, on the tokens' device.
        options: The start, temperings, estimate and covariances.

    Returns:
        A :class:`~psa.inference.fits.LocalMixtureFit`; a :class:`~psa.inference.fits.PointFit` under map and ml.

    Raises:
        ValueError: If shapes do not fit, a token is not finite, an image has no token, or a value is outside its
            support.
    """
    positive_int("num_slots", num_slots)
    positive_int("num_iterations", num_iterations)
    positive_int("num_restarts", num_restarts)
    if not (math.isfinite(tol) and tol >= 0):
        raise ValueError(f"tol must be a number of at least 0, got {tol}")
    check_tokens(tokens, mask)
    rule = options.rule(prior)
    with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False):
        tokens = at_least_float32(tokens)
        values, weights, origin = centre(tokens, mask)
        images = Images(values, weights, prior.components(values, options.covariance).shifted(-origin))
        start = _start(images, origin, prior, (num_slots, num_restarts), generator, options)
        outcome = fit_images(images, start, rule, num_iterations, tol)
    if options.estimate == "variational":
        return _variational_fit(tokens, mask, prior, origin, options, outcome)
    return _point_fit(origin, outcome)


def check_tokens(tokens: Tensor, mask: Tensor | None) -> None:
    """Tokens (B, N, D) with at least one of positive weight an image, finite where they count.

    Raises:
        ValueError: If not; it names the image.
    """
    if tokens.ndim != 3 or 0 in tokens.shape or not tokens.is_floating_point():
        raise ValueError(
            f"tokens must be floating point (batch, tokens, features), got {tokens.dtype} {tuple(tokens.shape)}"
        )
    keep = torch.ones_like(tokens[..., 0], dtype=torch.bool)
    if mask is not None:
        if mask.shape != tokens.shape[:2] or not (mask.dtype == torch.bool or mask.is_floating_point()):
            raise ValueError(
                f"mask must be bool or weights of shape {tuple(tokens.shape[:2])}, got {mask.dtype} {tuple(mask.shape)}"
            )
        if not bool((torch.isfinite(mask) & (mask >= 0)).all()):
            raise ValueError("mask must hold finite weights of at least 0")
        keep = mask > 0
    if not bool(keep.any(1).all()):
        raise ValueError(
            f"mask must keep at least one token an image, image {int((~keep.any(1)).nonzero()[0])} has none"
        )
    bad = keep & ~torch.isfinite(tokens).all(-1)
    if bool(bad.any()):
        image, token = bad.nonzero()[0].tolist()
        raise ValueError(f"tokens must be finite, token {token} of image {image} is not")


def _start(
    images: Images,
    origin: Tensor,
    prior: LocalMixturePrior,
    size: tuple[int, int],
    generator: torch.Generator | None,
    options: FitOptions,
) -> Tensor | MixtureState:
    """Means (B, R, K, D), or the given state, about the tokens' mean; ``size`` is (K, R)."""
    values, given, (num_slots, num_restarts) = images.values, options.start, size
    if isinstance(given, str):
        return start_means(given, values, images.weights, num_slots, num_restarts, generator)
    if num_restarts != 1:
        raise ValueError(f"num_restarts must be 1 where the start is given, got {num_restarts}")
    state = state_of(given) if isinstance(given, SlotPosterior) else given
    loc = state if isinstance(state, Tensor) else state.loc
    wanted = (len(values), num_slots, values.shape[2])
    if tuple(loc.shape) != wanted:
        raise ValueError(f"start must have means {wanted}, got {tuple(loc.shape)}")
    if isinstance(state, Tensor):
        return (state.to(values) - origin)[:, None]
    state = replace(state.map(lambda t: t.to(values)), loc=loc.to(values) - origin)
    return _continued(state, images, prior.concentration, options)


def _continued(state: MixtureState, images: Images, concentration0: float, options: FitOptions) -> MixtureState:
    """A given state with what this estimate carries and no more."""
    full = options.covariance == "full"
    covariance = state.covariance
    if full and covariance is None:
        covariance = state.var.diag_embed()
    mixture = MixtureState(state.loc, state.var, state.log_weights, covariance if full else None)
    if options.estimate != "variational":
        return mixture
    if state.precision_rate is None:
        return start_from_mixture(mixture, concentration0, images.prior, images.tokens().num_tokens)
    if (state.precision_rate.ndim == 4) != full:
        raise ValueError(f"start must have {options.covariance} covariances, as options.covariance says")
    return state


def _variational_fit(
    tokens: Tensor,
    mask: Tensor | None,
    prior: LocalMixturePrior,
    origin: Tensor,
    options: FitOptions,
    outcome: Outcome,
) -> LocalMixtureFit:
    concentration, components = parameters_of(outcome.state)
    return LocalMixtureFit(
        tokens=tokens,
        mask=mask,
        prior=prior,
        covariance=options.covariance,
        coarsening=options.coarsening,
        elbo=outcome.ascent.objective_trace[-1],
        concentration=concentration,
        loc=components.loc + origin,
        loc_strength=components.strength,
        precision_shape=components.shape,
        precision_rate=components.rate,
        responsibilities=outcome.responsibilities,
        initial_loc=outcome.initial_loc + origin,
        ascent=outcome.ascent,
    )


def _point_fit(origin: Tensor, outcome: Outcome) -> PointFit:
    state = outcome.state
    return PointFit(
        objective=outcome.ascent.objective_trace[-1],
        weights=state.log_weights.exp(),
        loc=state.loc + origin,
        var=state.var,
        covariance=state.covariance,
        responsibilities=outcome.responsibilities,
        initial_loc=outcome.initial_loc + origin,
        ascent=outcome.ascent,
    )
