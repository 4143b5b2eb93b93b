"""Learning types: each update is a maximum, sums add, the total never falls, planted types are found."""

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import scipy.optimize
import scipy.special
import scipy.stats
import torch
from contracts import draw
from hypothesis import given
from hypothesis import strategies as st
from tolerances import ALGEBRA, CONVERGED, STANDARD_ERRORS, assert_close
from torch import Tensor
from torch.distributions import Gamma, Normal, kl_divergence

from psa.inference.type_learning import learn_types, types_from_aggregate
from psa.inference.type_update import TypeStatistics, gamma_shape, type_statistics, update_types
from psa.inference.typed_slots import TypedFit, fit_typed_slots
from psa.models.aggregate import AggregatePrior
from psa.models.typed_mixture import TypePrior

NAMES = ("weights", "loc", "loc_strength", "precision_shape", "precision_rate")
SUMS = ("count", "log_precision", "precision", "first", "second")
MASKS = st.sampled_from(["none", "bool", "weights"])
seeds = st.integers(0, 10_000)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def types_of(num_types: int, seed: int, dim: int = 2) -> TypePrior:
    scales = draw(num_types, 3, seed=seed).exp()
    return TypePrior(
        scales[:, 0] / scales[:, 0].sum(),
        3 * draw(num_types, dim, seed=seed + 1),
        scales[:, 1],
        0.3 + scales[:, 2],
        draw(num_types, dim, seed=seed + 2).exp(),
    )


def mask_of(kind: str, batch: int, num_tokens: int, seed: int) -> Tensor | None:
    weights = (draw(batch, num_tokens, seed=seed) + 0.6).clamp(min=0.0)
    weights[:, 0] = 0.7
    return {"none": None, "bool": weights > 0, "weights": weights}[kind]


def fit(num_images: int, types: TypePrior, seed: int = 0, **settings: Any) -> TypedFit:
    tokens = 3 * draw(num_images, 12, 2, seed=seed)
    return fit_typed_slots(tokens, types, 3, 0.4, **({"num_iterations": 5} | settings))


def about(found: TypedFit, types: TypePrior) -> TypeStatistics:
    return type_statistics(found.state, types.weights @ types.loc)


def gain(found: TypedFit, types: TypePrior) -> Tensor:
    """sum tau (log w - KL(q || type)): the ELBO's dependence on types, by torch.distributions."""
    q, tau = found.components, found.type_probabilities
    precision = Gamma(q.shape[..., None, None], q.rate[:, :, None])
    of_type = Gamma(types.precision_shape[:, None], types.precision_rate)
    kl = kl_divergence(precision, of_type)
    # given lambda both are normal, and the expectation over lambda is linear in it
    mean = q.expected_precision()[:, :, None]
    own = Normal(q.loc[:, :, None], (q.strength[..., None, None] * mean).rsqrt())
    theirs = Normal(types.loc, (types.loc_strength[:, None] * mean).rsqrt())
    kl = (kl + kl_divergence(own, theirs)).sum(-1)
    return (tau * types.weights.log() - tau * kl).sum()


@given(excess=st.lists(st.floats(1e-7, 50.0), min_size=1, max_size=5))
def test_the_root_is_scipys(excess: list[float]):
    def at(log_shape: float, wanted: float) -> float:
        return log_shape - float(scipy.special.digamma(math.exp(log_shape))) - wanted

    found = gamma_shape(torch.tensor(excess, dtype=torch.float64))
    for shape, wanted in zip(found, excess, strict=True):
        root = scipy.optimize.brentq(at, -8.0, 20.0, args=(wanted,), xtol=1e-14)
        assert_close(shape.log(), root, CONVERGED)


@given(seed=seeds, num_types=st.integers(1, 4))
def test_an_update_is_the_maximum(seed: int, num_types: int):
    types = types_of(num_types, seed)
    found = fit(6, types, seed)
    updated = update_types(about(found, types), types)
    best = gain(found, updated)
    assert float(best) >= float(gain(found, types)) - ALGEBRA
    parameters = {name: getattr(updated, name).clone().requires_grad_() for name in NAMES}
    gain(found, TypePrior(**parameters)).backward()
    for name in NAMES[1:]:
        slope = parameters[name].grad
        assert slope is not None
        # in units in which every parameter is of order 1
        unit = updated.precision_rate.sqrt() if name == "loc" else getattr(updated, name)
        assert_close(slope * unit, torch.zeros_like(slope), CONVERGED)
    for size in (1e-3, 0.3):
        for index, name in enumerate(NAMES):
            noise = (size * draw(*getattr(updated, name).shape, seed=seed + index)).exp()
            moved = getattr(updated, name) * noise
            moved = moved / moved.sum() if name == "weights" else moved
            assert float(gain(found, replace(updated, **{name: moved}))) <= float(best) + ALGEBRA


def test_weights_are_the_mean_type_probabilities():
    types = types_of(3, 0)
    found = fit(6, types)
    assert_close(update_types(about(found, types), types).weights, found.type_probabilities.mean((0, 1)))


@pytest.mark.parametrize("sizes", [[6], [1, 5], [2, 3, 1]])
def test_sums_of_chunks_are_those_of_the_whole(sizes: list[int]):
    types = types_of(3, 0)
    tokens = 3 * draw(6, 12, 2, seed=0)
    whole = about(fit_typed_slots(tokens, types, 3, 0.4, num_iterations=5), types)
    first, *rest = (
        about(fit_typed_slots(part, types, 3, 0.4, num_iterations=5), types) for part in tokens.split(sizes)
    )
    total = first
    for part in rest:
        total = total + part
    for name in SUMS:
        assert_close(getattr(total, name), getattr(whole, name), message=name)
    ours, theirs = update_types(total, types), update_types(whole, types)
    for name in NAMES:
        assert_close(getattr(ours, name), getattr(theirs, name), message=name)


def test_the_origin_of_sums_does_not_matter_and_must_be_one():
    types = types_of(3, 0)
    found = fit(6, types)
    here, there = (type_statistics(found.state, torch.tensor([at, -at]).double()) for at in (0.0, 5.0))
    ours, theirs = update_types(here, types), update_types(there, types)
    for name in NAMES:
        assert_close(getattr(ours, name), getattr(theirs, name), message=name)
    with pytest.raises(ValueError, match="must have the same origin"):
        here + there


def test_a_type_that_owns_nothing_stays_with_weight_zero():
    types = types_of(3, 0)
    far = replace(types, loc=types.loc + torch.tensor([[0.0], [1e6], [0.0]]).double())
    updated = update_types(about(fit(6, far), far), far)
    assert float(updated.weights[1]) == 0.0
    assert_close(updated.weights.sum(), 1.0)
    for name in NAMES[1:]:
        assert_close(getattr(updated, name)[1], getattr(far, name)[1])
        assert not torch.equal(getattr(updated, name)[0], getattr(far, name)[0])
    again = learn_types(lambda: [3 * draw(6, 12, 2, seed=0)], updated, 3, 0.4, num_rounds=3)
    assert float(again.types.weights[1]) == 0.0
    assert bool(again.elbo_trace.isfinite().all())


@given(seed=seeds, num_slots=st.integers(1, 4), num_types=st.integers(1, 4), kind=MASKS)
def test_the_total_elbo_never_falls(seed: int, num_slots: int, num_types: int, kind: str):
    tokens, mask = 3 * draw(6, 10, 2, seed=seed) + 20, mask_of(kind, 6, 10, seed + 1)
    types = types_of(num_types, seed)

    def source() -> list:
        if mask is None:
            return list(tokens.split(4))
        return list(zip(tokens.split(4), mask.split(4), strict=True))

    settings = {"num_rounds": 4, "tol": 0.0, "num_iterations": 3, "fresh_every": 2}
    learned = learn_types(source, types, num_slots, 0.4, generator=seeded(), **settings)
    trace = learned.elbo_trace
    assert bool((trace[1:] - trace[:-1] >= -ALGEBRA * (1 + trace[:-1].abs())).all())
    first = fit_typed_slots(
        tokens[:4], types, num_slots, 0.4, num_iterations=3, generator=seeded(),
        mask=None if mask is None else mask[:4],
    )  # fmt: skip
    assert float(trace[0]) < float(first.elbo.sum())  # the other two images count too
    assert trace.shape[0] == 4 or learned.converged


def test_one_round_changes_no_type_and_two_make_one_update():
    tokens, types = 3 * draw(6, 12, 2, seed=0), types_of(3, 0)
    one, two = (learn_types(lambda: [tokens], types, 3, 0.4, num_rounds=n, num_iterations=5) for n in (1, 2))
    found = fit(6, types)
    assert_close(one.elbo_trace, found.elbo.sum()[None])
    assert one.types is types
    updated = update_types(about(found, types), types)
    for name in NAMES:
        assert_close(getattr(two.types, name), getattr(updated, name), message=name)
    assert (one.converged, two.converged) == (False, False)
    again = fit(6, updated, start=found.state)
    assert_close(two.elbo_trace, torch.stack([found.elbo.sum(), again.elbo.sum()]))


def test_in_a_fresh_round_every_image_keeps_the_better_of_two_fits():
    tokens, types = 3 * draw(20, 12, 2, seed=0), types_of(3, 0)
    settings = {"num_rounds": 2, "num_iterations": 5}
    fresh, on = (learn_types(lambda: [tokens], types, 3, 0.4, fresh_every=n, **settings) for n in (1, 2))
    first = fit(20, types)
    updated = update_types(about(first, types), types)
    gone_on, anew = fit(20, updated, start=first.state), fit(20, updated)
    assert 0 < int((anew.elbo > gone_on.elbo).sum()) < 20
    assert_close(on.elbo_trace[1], gone_on.elbo.sum())
    assert_close(fresh.elbo_trace[1], torch.maximum(anew.elbo, gone_on.elbo).sum())
    third = learn_types(lambda: [tokens], types, 3, 0.4, fresh_every=1, **(settings | {"num_rounds": 3}))
    better = (anew.elbo > gone_on.elbo)[:, None, None]
    kept = torch.where(better, anew.type_probabilities, gone_on.type_probabilities)
    assert_close(third.types.weights, kept.mean((0, 1)))


def test_chunks_change_nothing_and_learning_stops_when_it_gains_little():
    tokens, types = 3 * draw(6, 12, 2, seed=0), types_of(2, 0)
    settings = {"num_rounds": 40, "tol": 0.05, "num_iterations": 5}
    whole = learn_types(lambda: [tokens], types, 3, 0.4, **settings)
    parts = learn_types(lambda: iter(tokens.split(2)), types, 3, 0.4, **settings)
    assert_close(parts.elbo_trace, whole.elbo_trace, CONVERGED)
    for name in NAMES:
        assert_close(getattr(parts.types, name), getattr(whole.types, name), CONVERGED, name)
    assert whole.converged
    gains = whole.elbo_trace[1:] - whole.elbo_trace[:-1]
    assert float(gains[-1]) < 0.05 * 72
    assert bool((gains[:-1] >= 0.05 * 72).all())


@pytest.mark.usefixtures("unchecked")
def test_sources_that_cannot_be_read_again_are_refused():
    tokens, types = 3 * draw(6, 12, 2, seed=0), types_of(2, 0)
    used_up = iter([tokens])
    growing = iter([[tokens], [tokens, tokens]])
    for source, message in (
        ([tokens], "source must be a callable that gives the chunks anew each time it is called, got a list"),
        (lambda: used_up, "source must give its 1 chunks again each time it is called, got 0"),
        (lambda: next(growing), "source must give its 1 chunks again each time it is called, got more"),
        (list, "source must give at least one chunk each time it is called, got 0"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            learn_types(source, types, 3, 0.4)  # type: ignore[arg-type]


def planted(num_images: int, num_points: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images of three of five objects, unit deviation: tokens, the objects' means, the types in each image."""
    loc = 6.0 * torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.5, 2.0]]).double()
    which = torch.rand(num_images, 5, generator=seeded(seed)).argsort(-1)[:, :3]
    tokens = loc[which][:, :, None] + draw(num_images, 3, num_points, 2, seed=seed + 1)
    return tokens.flatten(1, 2), loc, which


def test_planted_types_are_recovered():
    tokens, loc, which = planted(100, 30, 0)
    realised = which.flatten().bincount() / which.numel()
    start = AggregatePrior(torch.full((5,), 0.2).double(), loc + draw(5, 2, seed=2), 2.0 * torch.ones(5, 2).double())
    learned = learn_types(
        lambda: tokens.split(50), types_from_aggregate(start), 3, 1.0, num_rounds=6, num_restarts=3, generator=seeded()
    )
    assert float((learned.types.weights - realised).abs().max()) < 0.02
    error = (30 * 300 * realised.double()).rsqrt()[:, None]
    assert bool(((learned.types.loc - loc).abs() < STANDARD_ERRORS * error).all())


def test_types_of_an_aggregate_predict_its_moments():
    aggregate = AggregatePrior(
        torch.tensor([0.25, 0.75]).double(), draw(2, 3, seed=0), draw(2, 3, seed=1).exp(), num_images=4
    )
    types = types_from_aggregate(aggregate, loc_strength=0.4, precision_shape=3.0)
    assert_close(types.weights, aggregate.weights)
    assert aggregate.var is not None
    for g in range(2):
        for d in range(3):
            scale = (float(types.precision_rate[g, d]) * 1.4 / (3.0 * 0.4)) ** 0.5
            predictive = scipy.stats.t(6.0, float(types.loc[g, d]), scale)
            assert_close(predictive.mean(), aggregate.loc[g, d])
            assert_close(predictive.var(), aggregate.var[g, d])


def test_aggregates_without_such_types_are_refused():
    weights, loc = torch.ones(1).double(), torch.zeros(1, 2).double()
    full = AggregatePrior(weights, loc, covariance=torch.eye(2).double()[None])
    with pytest.raises(ValueError, match="aggregate must have diagonal covariances, as types have, got full ones"):
        types_from_aggregate(full)
    diagonal = AggregatePrior(weights, loc, torch.ones(1, 2).double())
    with pytest.raises(ValueError, match="precision_shape must be above 1, where the variance exists, got 1"):
        types_from_aggregate(diagonal, precision_shape=1.0)
    with pytest.raises(ValueError, match="loc_strength must be positive, got 0"):
        types_from_aggregate(diagonal, loc_strength=0.0)
