"""Coordinate ascent on the local model with typed slots, and what it returns (docs/typed_slots.md)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from pyro.poutine.runtime import InferDict
from torch import Tensor

from psa.conjugate import NormalGamma
from psa.inference.ascent import Ascent
from psa.inference.conjugate_steps import parameters_of, with_parameters
from psa.inference.coordinates import at_least_float32, centre
from psa.inference.em import MixtureState
from psa.inference.restarts import Images, Outcome, fit_images
from psa.inference.slot_inference import positive_int
from psa.inference.starts import STARTS, start_means
from psa.inference.typed_steps import TypedRule, TypedState
from psa.inference.variational import check_tokens
from psa.models.local_mixture import draw_components, keeping
from psa.models.typed_mixture import TypePrior
from psa.records import SlotPosterior


@dataclass(frozen=True)
class TypedFit:
    """q(c) q(t) q(pi) q(mu, lambda) of a batch of images, the second half computed from the first.

    Attributes:
        tokens: (B, N, D), what was fitted.
        mask: (B, N), bool or non-negative weights, or None.
        types: The types of slots that were the prior.
        prior_concentration: alpha0.
        elbo: (B,), nats, every constant kept.
        type_probabilities: (B, K, G), q(t), sums to 1 over G.
        concentration: (B, K), Dirichlet alpha_k.
        loc: (B, K, D), m_k.
        loc_strength: (B, K), kappa_k.
        precision_shape: (B, K), a_k.
        precision_rate: (B, K, D), b_k.
        responsibilities: (B, K, N), sums to 1 over K.
        initial_loc: (B, K, D), where the best restart began.
        ascent: How it went.
    """

    tokens: Float[Tensor, "batch tokens features"]
    mask: Tensor | None
    types: TypePrior
    prior_concentration: float
    elbo: Float[Tensor, " batch"]
    type_probabilities: Float[Tensor, "batch slots types"]
    concentration: Float[Tensor, "batch slots"]
    loc: Float[Tensor, "batch slots features"]
    loc_strength: Float[Tensor, "batch slots"]
    precision_shape: Float[Tensor, "batch slots"]
    precision_rate: Float[Tensor, "batch slots features"]
    responsibilities: Float[Tensor, "batch slots tokens"]
    initial_loc: Float[Tensor, "batch slots features"]
    ascent: Ascent

    @property
    def elbo_trace(self) -> Float[Tensor, "iterations batch"]:
        """The ELBO after each iteration."""
        return self.ascent.objective_trace

    @property
    def components(self) -> NormalGamma:
        """q(mu, lambda), (B, K)."""
        return NormalGamma(self.loc, self.loc_strength, self.precision_shape, self.precision_rate)

    @property
    def labels(self) -> Int[Tensor, "batch tokens"]:
        """The slot that owns each token."""
        return self.responsibilities.argmax(1)

    @property
    def state(self) -> TypedState:
        """What a fit can go on from: all but the tokens and what has their number."""
        mixture = with_parameters(self.concentration, self.components)
        return TypedState(**vars(mixture), type_probabilities=self.type_probabilities)

    def slot_posterior(self) -> SlotPosterior:
        """As the record that every member of the family returns."""
        state = self.state
        return SlotPosterior(
            weights=state.log_weights.exp(),
            loc=state.loc,
            var=state.var,
            responsibilities=self.responsibilities,
            initial_loc=self.initial_loc,
            elbo=self.elbo,
            concentration=self.concentration,
            loc_strength=self.loc_strength,
            precision_shape=self.precision_shape,
            precision_rate=self.precision_rate,
        )

    def guide(self) -> Callable[..., None]:
        """q as a Pyro guide of :func:`psa.models.typed_mixture.typed_mixture`, its arguments those of the program.

        Types and assignments are enumerated in parallel; every particle of TraceEnum_ELBO equals the summed ELBO.
        """

        def guide(tokens: Tensor, *_: object, **__: object) -> None:
            """q of the images that were fitted; tokens give the plates their sizes, the other arguments nothing."""
            enumerated: InferDict = {"enumerate": "parallel"}
            with pyro.plate("images", len(tokens), dim=-2):
                pyro.sample("weights", dist.Dirichlet(self.concentration[:, None]))
                with pyro.plate("slots", self.loc.shape[1], dim=-1):
                    pyro.sample("type", dist.Categorical(self.type_probabilities), infer=enumerated)
                    draw_components(self.components)
                with pyro.plate("tokens", tokens.shape[1], dim=-1), keeping(self.mask):
                    assignment = dist.Categorical(self.responsibilities.transpose(1, 2))
                    pyro.sample("assignment", assignment, infer=enumerated)

        return guide


def fit_typed_slots(  # noqa: PLR0913 - the settings of one fit
    tokens: Float[Tensor, "batch tokens features"],
    types: TypePrior,
    num_slots: int,
    concentration: float,
    *,
    num_iterations: int = 100,
    tol: float = 1e-6,
    num_restarts: int = 1,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    start: str | Tensor | TypedState = "farthest",
) -> TypedFit:
    """Fit the local model with typed slots to every image of a batch (model.md section 4).

    With one type this is :func:`psa.inference.variational.fit_local_mixture`. Covariances are diagonal.

    Args:
        tokens: (B, N, D), finite where the mask keeps them.
        types: The types of slots, in the tokens' units.
        num_slots: K >= 1.
        concentration: alpha0 > 0.
        num_iterations: Most iterations, >= 1.
        tol: Least change of the ELBO in nats a token, >= 0; 0 takes all iterations.
        num_restarts: Starts of every image, as one batch; the best ELBO is kept.
        mask: (B, N), False where a token is padding; or non-negative weights, which multiply a token's whole factor.
        generator: Source of random starts, on the tokens' device.
        start: ``farthest``, ``kmeans++`` or ``random`` points of the image; or means (B, K, D), or the state of a
            fit of these images to go on from, maybe under other types.

    Raises:
        ValueError: If shapes do not fit, a token is not finite, an image has no token, or a value is outside its
            support.
    """
    for name, value in (("num_slots", num_slots), ("num_iterations", num_iterations), ("num_restarts", num_restarts)):
        positive_int(name, value)
    if not (math.isfinite(tol) and tol >= 0):
        raise ValueError(f"tol must be a number of at least 0, got {tol}")
    if not (math.isfinite(concentration) and concentration > 0):
        raise ValueError(f"concentration must be a positive number, got {concentration}")
    check_tokens(tokens, mask)
    with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False):
        tokens = at_least_float32(tokens)
        values, weights, origin = centre(tokens, mask)
        images = Images(values, weights, types.components(values).shifted(-origin))
        begin = _start(start, images, origin, (num_slots, num_restarts), generator)
        rule = TypedRule(concentration, types.weights.to(values).log().log_softmax(-1))
        outcome = fit_images(images, begin, rule, num_iterations, tol)
    return _fit(tokens, mask, types, concentration, origin, outcome)


def _start(
    given: str | Tensor | TypedState,
    images: Images,
    origin: Tensor,
    size: tuple[int, int],
    generator: torch.Generator | None,
) -> Tensor | MixtureState:
    """Means (B, R, K, D), or the state of a fit, about the tokens' mean; ``size`` is (K, R)."""
    values, (num_slots, num_restarts) = images.values, size
    if isinstance(given, str):
        if given not in STARTS:
            raise ValueError(f"start must be one of {', '.join(STARTS)}, got {given!r}")
        return start_means(given, values, images.weights, num_slots, num_restarts, generator)
    if num_restarts != 1:
        raise ValueError(f"num_restarts must be 1 where the start is given, got {num_restarts}")
    loc = given if isinstance(given, Tensor) else given.loc
    wanted = (len(values), num_slots, values.shape[2])
    if tuple(loc.shape) != wanted:
        raise ValueError(f"start must have means {wanted}, got {tuple(loc.shape)}")
    if isinstance(given, Tensor):
        return (given.to(values) - origin)[:, None]
    state = given.map(lambda t: t.to(values))
    return replace(state, loc=state.loc - origin)


def _fit(
    tokens: Tensor, mask: Tensor | None, types: TypePrior, concentration: float, origin: Tensor, outcome: Outcome
) -> TypedFit:
    state = outcome.state
    assert isinstance(state, TypedState)
    assert state.type_probabilities is not None
    posterior_concentration, components = parameters_of(state)
    return TypedFit(
        tokens=tokens,
        mask=mask,
        types=types,
        prior_concentration=concentration,
        elbo=outcome.ascent.objective_trace[-1],
        type_probabilities=state.type_probabilities,
        concentration=posterior_concentration,
        loc=components.loc + origin,
        loc_strength=components.strength,
        precision_shape=components.shape,
        precision_rate=components.rate,
        responsibilities=outcome.responsibilities,
        initial_loc=outcome.initial_loc + origin,
        ascent=outcome.ascent,
    )
