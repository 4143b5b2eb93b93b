"""Empirical Bayes: types of slots learned from a whole data set, and where to start (docs/typed_slots.md)."""

import functools
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from psa.inference.em import MixtureState
from psa.inference.slot_inference import positive_int
from psa.inference.type_update import TypeStatistics, type_statistics, update_types
from psa.inference.typed_slots import TypedFit, fit_typed_slots
from psa.inference.typed_steps import TypedState
from psa.models.aggregate import AggregatePrior
from psa.models.typed_mixture import TypePrior

Chunk = Tensor | tuple[Tensor, Tensor]  # tokens (B, N, D), or with their mask (B, N)


@dataclass(frozen=True)
class LearnedTypes:
    """Types learned from a data set.

    Attributes:
        types: The types.
        elbo_trace: (rounds,), the summed ELBO of all images in nats, of the types of each round; the last is of
            ``types``. It never falls.
        converged: Whether the last round raised it by less than tol nats a token.
    """

    types: TypePrior
    elbo_trace: Float[Tensor, " rounds"]
    converged: bool


def learn_types(  # noqa: PLR0913 - the settings of one estimate
    source: Callable[[], Iterable[Chunk]],
    types: TypePrior,
    num_slots: int,
    concentration: float,
    *,
    num_rounds: int = 50,
    tol: float = 1e-6,
    fresh_every: int = 10,
    num_iterations: int = 100,
    num_restarts: int = 1,
    generator: torch.Generator | None = None,
) -> LearnedTypes:
    """Fit all images under the types, update the types, and so on until the total ELBO stops rising.

    An image goes on from where it was in the round before. In the first round, and every few after it, it also starts
    afresh, and keeps the better: better types part what was taken for one slot. So no round lowers the total. What is
    kept between rounds is every image's slots, not its tokens.

    Args:
        source: Gives the chunks of the data set anew on every call, in one order: tokens (B, N, D), or tokens and mask.
        types: Where to start, say :func:`types_from_aggregate`.
        num_slots: K >= 1.
        concentration: alpha0 > 0.
        num_rounds: Most rounds, >= 1; there is one update less.
        tol: Least gain of a round in nats a token, >= 0; 0 takes all rounds.
        fresh_every: Rounds from one with fresh starts to the next, >= 1.
        num_iterations: Most iterations of a fit.
        num_restarts: Fresh starts of an image.
        generator: Source of random starts, on the tokens' device.

    Raises:
        ValueError: If the source is no callable or does not give its chunks again, or a value is outside its support.
    """
    positive_int("num_rounds", num_rounds)
    positive_int("fresh_every", fresh_every)
    if not callable(source):
        kind = type(source).__name__
        raise ValueError(f"source must be a callable that gives the chunks anew each time it is called, got a {kind}")
    restarts = {"num_restarts": num_restarts, "generator": generator}
    trace: list[float] = []
    states: list[TypedState] | None = None
    while True:
        fit = functools.partial(
            fit_typed_slots,
            types=types,
            num_slots=num_slots,
            concentration=concentration,
            num_iterations=num_iterations,
        )
        origin = (types.weights @ types.loc).to(torch.float64)
        seen = _fit_all(source, fit, origin, states, restarts if len(trace) % fresh_every == 0 else None)
        states = seen.states
        trace.append(seen.elbo)
        converged = len(trace) > 1 and trace[-1] - trace[-2] < tol * seen.num_tokens
        if converged or len(trace) == num_rounds:
            return LearnedTypes(types, torch.tensor(trace, dtype=torch.float64), converged)
        types = update_types(seen.statistics, types)


@dataclass(frozen=True)
class _Round:
    """What one pass over the data set leaves."""

    elbo: float
    num_tokens: float
    states: list[TypedState]
    statistics: TypeStatistics


def _fit_all(
    source: Callable[[], Iterable[Chunk]],
    fit: Callable[..., TypedFit],
    origin: Float[Tensor, " features"],
    states: list[TypedState] | None,
    restarts: dict[str, Any] | None,
) -> _Round:
    """Fit every chunk from its state, where there is one, and afresh, where ``restarts`` says how."""
    found: list[TypedState] = []
    sums: list[TypeStatistics] = []
    elbo, num_tokens = 0.0, 0.0
    for index, chunk in enumerate(source()):
        if states is not None and index == len(states):
            raise ValueError(f"source must give its {index} chunks again each time it is called, got more")
        tokens, mask = chunk if isinstance(chunk, tuple) else (chunk, None)
        fits = [] if states is None else [fit(tokens, mask=mask, start=states[index])]
        fits += [] if restarts is None else [fit(tokens, mask=mask, **restarts)]
        each, state = _best(fits)
        found.append(state)
        sums.append(type_statistics(state, origin.to(tokens.device)))
        elbo += float(each.sum(dtype=torch.float64))
        num_tokens += tokens[..., 0].numel() if mask is None else float(mask.sum())
    if not found or (states is not None and len(found) < len(states)):
        wanted = "at least one chunk" if states is None else f"its {len(states)} chunks again"
        raise ValueError(f"source must give {wanted} each time it is called, got {len(found)}")
    return _Round(elbo, num_tokens, found, functools.reduce(operator.add, sums))


def _best(fits: list[TypedFit]) -> tuple[Float[Tensor, " batch"], TypedState]:
    """Of every image the ELBO and the state of its best fit; of equal ones the first."""
    elbo = fits[0].elbo
    state: MixtureState = fits[0].state
    for other in fits[1:]:
        better = other.elbo > elbo

        def chosen(held: Tensor, new: Tensor, better: Tensor = better) -> Tensor:
            return torch.where(better.reshape(-1, *[1] * (held.ndim - 1)), new, held)

        state, elbo = state.map(chosen, other.state), torch.maximum(elbo, other.elbo)
    assert isinstance(state, TypedState)
    return elbo, state


def types_from_aggregate(
    aggregate: AggregatePrior, loc_strength: float = 1.0, precision_shape: float = 2.0
) -> TypePrior:
    """Types that predict tokens with the mean and the variance of the aggregate's components, a start for learning.

    A type's predictive variance is b (1 + 1 / kappa) / (a - 1), so b_gd = var_gd (a - 1) kappa / (kappa + 1). How it
    divides into slots' means and tokens about them the components do not say: kappa and a are given, and learned after.

    Args:
        aggregate: The aggregate, reduced to as many components as there shall be types; diagonal covariances.
        loc_strength: kappa > 0, the variance within slots over that of their means.
        precision_shape: a > 1.

    Raises:
        ValueError: If covariances are full, or a value is outside its support.
    """
    if aggregate.var is None:
        raise ValueError("aggregate must have diagonal covariances, as types have, got full ones")
    if not precision_shape > 1.0:
        raise ValueError(f"precision_shape must be above 1, where the variance exists, got {precision_shape}")
    if not loc_strength > 0.0:
        raise ValueError(f"loc_strength must be positive, got {loc_strength}")
    every = torch.ones_like(aggregate.weights)
    rate = aggregate.var * (precision_shape - 1.0) * loc_strength / (loc_strength + 1.0)
    return TypePrior(
        aggregate.weights / aggregate.weights.sum(), aggregate.loc, loc_strength * every, precision_shape * every, rate
    )
