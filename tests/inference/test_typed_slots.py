"""Typed slots: monotone, equal to Pyro's bound, below the exact evidence, with one type the local mixture."""

import itertools
import math
import re
from dataclasses import replace
from typing import Any

import oracles
import pyro
import pytest
import scipy.special
import torch
from contracts import assert_same, draw
from hypothesis import given
from hypothesis import strategies as st
from pyro.infer import TraceEnum_ELBO
from tolerances import ALGEBRA, CONVERGED, FLOAT32, assert_close
from torch import Tensor
from torch.distributions import Gamma, Normal, kl_divergence

from psa.conjugate import NormalGamma, token_features
from psa.inference import restarts
from psa.inference.fits import LocalMixtureFit
from psa.inference.starts import STARTS
from psa.inference.typed_slots import TypedFit, fit_typed_slots
from psa.inference.typed_steps import averaged, expected_log_types, log_type_evidence
from psa.inference.variational import fit_local_mixture
from psa.models.local_mixture import LocalMixturePrior
from psa.models.typed_mixture import TypePrior, typed_mixture

NAMES = ("weights", "loc", "loc_strength", "precision_shape", "precision_rate")
MASKS = st.sampled_from(["none", "bool", "weights"])
seeds = st.integers(0, 10_000)


def types_of(num_types: int, seed: int, dim: int = 2, spread: float = 3.0) -> TypePrior:
    """Types of random places, sizes and strengths."""
    scales = draw(num_types, 3, seed=seed).exp()
    return TypePrior(
        scales[:, 0] / scales[:, 0].sum(),
        spread * draw(num_types, dim, seed=seed + 1),
        scales[:, 1],
        0.3 + scales[:, 2],
        draw(num_types, dim, seed=seed + 2).exp(),
    )


def components_of(num_images: int, num_slots: int, seed: int) -> NormalGamma:
    """Some q(mu, lambda)."""
    scales = draw(num_images, num_slots, 2, seed=seed).exp()
    shape = (num_images, num_slots, 2)
    return NormalGamma(draw(*shape, seed=seed + 1), scales[..., 0], scales[..., 1], draw(*shape, seed=seed + 2).exp())


def mask_of(kind: str, batch: int, num_tokens: int, seed: int) -> Tensor | None:
    weights = (draw(batch, num_tokens, seed=seed) + 0.6).clamp(min=0.0)
    weights[:, 0] = 0.7
    return {"none": None, "bool": weights > 0, "weights": weights}[kind]


def fit(tokens: Tensor, types: TypePrior, num_slots: int = 3, seed: int = 0, **settings: Any) -> TypedFit:
    generator = torch.Generator().manual_seed(seed)
    return fit_typed_slots(tokens, types, num_slots, 0.4, generator=generator, **settings)


def assert_same_fit(ours: TypedFit, theirs: TypedFit, tolerance: float = CONVERGED) -> None:
    assert_same(ours.slot_posterior(), theirs.slot_posterior(), tolerance)
    assert_close(ours.type_probabilities, theirs.type_probabilities, tolerance)


@given(
    seed=seeds,
    num_tokens=st.integers(1, 30),
    num_slots=st.integers(1, 4),
    num_types=st.integers(1, 4),
    kind=MASKS,
    start=st.sampled_from(list(STARTS)),
    spread=st.sampled_from([0.0, 3.0, 100.0]),
    shift=st.sampled_from([0.0, 1e3]),
)
def test_elbo_never_falls(
    seed: int, num_tokens: int, num_slots: int, num_types: int, kind: str, start: str, spread: float, shift: float
):
    tokens, mask = 3 * draw(2, num_tokens, 2, seed=seed) + shift, mask_of(kind, 2, num_tokens, seed + 1)
    types = types_of(num_types, seed, spread=spread)
    types = replace(types, loc=types.loc + shift)
    settings = {"num_restarts": 2, "num_iterations": 15, "tol": 0.0}
    trace = fit(tokens, types, num_slots, start=start, mask=mask, **settings).elbo_trace
    assert bool((trace[1:] - trace[:-1] >= -ALGEBRA * (1 + trace[:-1].abs())).all())


@given(
    seed=seeds,
    num_tokens=st.integers(1, 12),
    num_slots=st.integers(1, 4),
    num_types=st.integers(1, 4),
    kind=MASKS,
    num_iterations=st.integers(1, 8),
)
def test_elbo_is_every_single_particle_of_pyro(
    seed: int, num_tokens: int, num_slots: int, num_types: int, kind: str, num_iterations: int
):
    tokens, mask = 3 * draw(2, num_tokens, 2, seed=seed) + 2, mask_of(kind, 2, num_tokens, seed + 1)
    if mask is not None:
        tokens[mask == 0] = torch.nan
    types = types_of(num_types, seed)
    found = fit(tokens, types, num_slots, mask=mask, num_iterations=num_iterations)
    pyro.set_rng_seed(seed)
    for _ in range(2):
        loss = TraceEnum_ELBO(max_plate_nesting=2).loss(
            typed_mixture, found.guide(), tokens, types, num_slots, 0.4, mask
        )
        assert_close(-loss, found.elbo.sum())


def exact_log_evidence(tokens: Tensor, types: TypePrior, num_slots: int, alpha: float = 0.4) -> float:
    """log p(tokens) of an image (N, D): over all assignments, and for each set of tokens over the types."""
    num_tokens, dim = tokens.shape
    group: dict[tuple[int, ...], float] = {}
    for size in range(num_tokens + 1):
        for members in itertools.combinations(range(num_tokens), size):
            of_type = []
            for weight, loc, strength, shape, rate in zip(*(getattr(types, name) for name in NAMES), strict=True):
                priors = [
                    oracles.Prior(alpha, float(loc[d]), float(strength), float(shape), float(rate[d]))
                    for d in range(dim)
                ]
                columns = [[float(tokens[n, d]) for n in members] for d in range(dim)]
                predicted = sum(oracles.log_predictive(*pair) for pair in zip(columns, priors, strict=True))
                of_type.append(math.log(weight) + predicted)
            group[members] = float(scipy.special.logsumexp(of_type))
    terms = []
    for assignment in itertools.product(range(num_slots), repeat=num_tokens):
        owned = [tuple(n for n in range(num_tokens) if assignment[n] == k) for k in range(num_slots)]
        terms.append(oracles.log_urn(assignment, num_slots, alpha) + sum(group[members] for members in owned))
    return float(scipy.special.logsumexp(terms))


@given(
    seed=seeds,
    num_tokens=st.integers(1, 5),
    num_slots=st.integers(1, 3),
    num_types=st.integers(1, 3),
    spread=st.sampled_from([0.5, 4.0]),
)
def test_elbo_is_never_above_the_exact_evidence(
    seed: int, num_tokens: int, num_slots: int, num_types: int, spread: float
):
    tokens, types = spread * draw(1, num_tokens, 2, seed=seed), types_of(num_types, seed, spread=spread)
    exact = exact_log_evidence(tokens[0], types, num_slots)
    for settings in ({"num_iterations": 1}, {"num_restarts": 3}):
        assert float(fit(tokens, types, num_slots, **settings).elbo) <= exact + 1e-9


def test_elbo_is_the_evidence_where_one_slot_can_be_of_one_type_alone():
    types = replace(types_of(3, seed=0), loc=40.0 * torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, -1.0]]).double())
    types = replace(types, loc_strength=torch.ones(3).double(), precision_shape=torch.full((3,), 20.0).double())
    for g in range(3):
        tokens = types.loc[g] + 0.3 * draw(1, 3, 2, seed=g)
        found = fit(tokens, types, 1)
        assert_close(found.elbo[0], exact_log_evidence(tokens[0], types, 1), CONVERGED)
        assert int(found.type_probabilities.argmax()) == g


def one_type(prior: LocalMixturePrior) -> TypePrior:
    components = prior.components(torch.zeros(1, 2, dtype=torch.float64))
    tensors = (components.loc, components.strength, components.shape, components.rate)
    return TypePrior(torch.ones(1).double(), *(tensor[None] for tensor in tensors))


@given(seed=seeds, num_tokens=st.integers(1, 30), num_slots=st.integers(1, 4), kind=MASKS)
def test_with_one_type_it_is_fit_local_mixture(seed: int, num_tokens: int, num_slots: int, kind: str):
    prior = LocalMixturePrior(0.4, torch.tensor([0.7, -0.2]), 0.3, 1.5, torch.tensor([0.8, 1.0]))
    tokens, mask = 3 * draw(2, num_tokens, 2, seed=seed), mask_of(kind, 2, num_tokens, seed + 1)
    settings = {"mask": mask, "num_restarts": 3}
    theirs = fit_local_mixture(tokens, prior, num_slots, generator=torch.Generator().manual_seed(0), **settings)
    assert isinstance(theirs, LocalMixtureFit)
    ours = fit(tokens, one_type(prior), num_slots, **settings)
    assert_same(ours.slot_posterior(), theirs.slot_posterior())
    assert_close(ours.elbo_trace, theirs.elbo_trace)
    assert torch.equal(ours.ascent.num_iterations, theirs.ascent.num_iterations)
    assert_close(ours.type_probabilities, torch.ones(2, num_slots, 1))


def test_equal_types_are_one_type():
    one, tokens = types_of(1, seed=0), 3 * draw(2, 20, 2, seed=1)
    shares = torch.tensor([0.5, 0.2, 0.3]).double()
    several = TypePrior(shares / shares.sum(), *(getattr(one, name).repeat_interleave(3, 0) for name in NAMES[1:]))
    found = fit(tokens, several)
    assert_same(found.slot_posterior(), fit(tokens, one).slot_posterior())
    assert_close(found.type_probabilities, several.weights.expand(2, 3, 3))


def test_the_order_of_types_does_not_matter():
    types, tokens, order = types_of(4, seed=0), 3 * draw(2, 20, 2, seed=1), [2, 0, 3, 1]
    found = fit(tokens, types)
    other = fit(tokens, TypePrior(*(getattr(types, name)[order] for name in NAMES)))
    assert_same(other.slot_posterior(), found.slot_posterior())
    assert_close(other.type_probabilities, found.type_probabilities[..., order])


def test_weights_that_sum_to_one_up_to_single_precision_are_shares():
    types, tokens = types_of(3, seed=0), 3 * draw(2, 20, 2, seed=1)
    rough = replace(types, weights=types.weights * (1.0 + 5e-6))
    found = fit(tokens, rough)
    assert_close(found.elbo, fit(tokens, types).elbo)
    pyro.set_rng_seed(0)
    loss = TraceEnum_ELBO(max_plate_nesting=2).loss(typed_mixture, found.guide(), tokens, rough, 3, 0.4)
    assert_close(-loss, found.elbo.sum())


def test_a_type_of_weight_zero_is_not_there():
    types, tokens = types_of(3, seed=0), 3 * draw(2, 20, 2, seed=1)
    with_spare = TypePrior(
        torch.cat([types.weights, torch.zeros(1).double()]),
        *(torch.cat([getattr(types, name), getattr(types, name)[:1] + 1.0]) for name in NAMES[1:]),
    )
    found, expected = fit(tokens, with_spare), fit(tokens, types)
    assert_same(found.slot_posterior(), expected.slot_posterior())
    assert_close(found.type_probabilities[..., 3], torch.zeros(2, 3))
    pyro.set_rng_seed(0)
    loss = TraceEnum_ELBO(max_plate_nesting=2).loss(typed_mixture, found.guide(), tokens, with_spare, 3, 0.4)
    assert_close(-loss, found.elbo.sum())


@given(seed=seeds, num_types=st.integers(1, 4))
def test_natural_parameters_average(seed: int, num_types: int):
    """The averaged prior is the types' geometric mean: their log densities' average, up to a constant."""
    types = types_of(num_types, seed).components(torch.zeros(1, 2, dtype=torch.float64))
    tau = draw(1, 1, num_types, seed=seed + 3).softmax(-1)
    mean = averaged(replace(types, loc=types.loc[None]), tau)
    loc, precision = 3 * draw(50, 2, seed=seed + 4), draw(50, 2, seed=seed + 5).exp()
    of_types = torch.stack([types.log_density(at, p) for at, p in zip(loc, precision, strict=True)])
    of_mean = torch.stack([mean.log_density(at, p)[0, 0] for at, p in zip(loc, precision, strict=True)])
    difference = of_types @ tau[0, 0] - of_mean
    assert_close(difference, difference[:1].expand(50))


def test_expected_log_types_are_cross_entropies():
    """- KL(q || type) - H(q), by torch.distributions."""
    types, q = types_of(4, seed=0), components_of(2, 3, seed=3)
    components = types.components(q.loc)
    found = expected_log_types(replace(components, loc=components.loc.expand(2, -1, -1)), q)
    for b, k, g in itertools.product(range(2), range(3), range(4)):
        total = torch.zeros((), dtype=torch.float64)
        for d in range(2):
            of_q, of_type = Gamma(q.shape[b, k], q.rate[b, k, d]), Gamma(components.shape[g], components.rate[g, d])
            total -= kl_divergence(of_q, of_type) + of_q.entropy()
            # given lambda both are normal: the divergence and the entropy are linear in lambda and log lambda
            mean, log_mean = q.shape[b, k] / q.rate[b, k, d], q.shape[b, k].digamma() - q.rate[b, k, d].log()
            at_mean = Normal(q.loc[b, k, d], (q.strength[b, k] * mean).rsqrt())
            theirs = Normal(components.loc[g, d], (components.strength[g] * mean).rsqrt())
            total -= kl_divergence(at_mean, theirs) + at_mean.entropy() + 0.5 * (mean.log() - log_mean)
        assert_close(found[b, k, g], total)


def test_type_evidence_is_that_of_each_type_alone():
    types, tokens = types_of(3, seed=0), draw(1, 4, 2, seed=1)
    components = types.components(tokens)
    sums = token_features(tokens, full=False).sum(-1)[:, None]
    found = log_type_evidence(replace(components, loc=components.loc[None]), sums)[0, 0]
    for g in range(3):
        alone = TypePrior(torch.ones(1).double(), *(getattr(types, name)[g : g + 1] for name in NAMES[1:]))
        expected = exact_log_evidence(tokens[0], alone, 1)
        assert_close(found[g] - 0.5 * 8 * math.log(2 * math.pi), expected)


@given(seed=seeds, num_tokens=st.integers(2, 40), kind=MASKS, chosen=st.integers(0, 3))
def test_an_image_does_not_depend_on_its_batch_mates(seed: int, num_tokens: int, kind: str, chosen: int):
    tokens, mask, types = 3 * draw(4, num_tokens, 2, seed=seed), mask_of(kind, 4, num_tokens, seed), types_of(3, seed)
    settings = {"tol": 1e-3, "num_iterations": 20}
    together = fit(tokens, types, mask=mask, **settings)
    own = slice(chosen, chosen + 1)
    alone = fit(tokens[own], types, mask=None if mask is None else mask[own], **settings)
    assert_close(together.elbo[own], alone.elbo, CONVERGED)
    assert_close(together.type_probabilities[own], alone.type_probabilities, CONVERGED)
    assert_close(together.loc[own], alone.loc, CONVERGED)
    assert int(together.ascent.num_iterations[chosen]) == int(alone.ascent.num_iterations)


def test_chunks_that_fit_the_cache_change_nothing(monkeypatch: pytest.MonkeyPatch):
    tokens, types = 3 * draw(4, 30, 2, seed=1), types_of(3, seed=0)
    whole = fit(tokens, types, num_iterations=10)
    on = fit(tokens, types, num_iterations=3, start=whole.state)
    monkeypatch.setattr(restarts, "CACHED_BYTES", 1)
    assert_same_fit(fit(tokens, types, num_iterations=10), whole)
    assert_same_fit(fit(tokens, types, num_iterations=3, start=whole.state), on)


@given(seed=seeds, kind=MASKS)
def test_a_fit_goes_on_where_it_was(seed: int, kind: str):
    tokens, mask, types = 3 * draw(2, 20, 2, seed=seed) + 5, mask_of(kind, 2, 20, seed + 1), types_of(3, seed)
    half = fit(tokens, types, mask=mask, tol=0.0, num_iterations=4)
    on = fit(tokens, types, mask=mask, tol=0.0, num_iterations=5, start=half.state)
    whole = fit(tokens, types, mask=mask, tol=0.0, num_iterations=9)
    assert_close(on.elbo_trace, whole.elbo_trace[4:])
    assert_close(on.type_probabilities, whole.type_probabilities, CONVERGED)


def test_means_start_as_the_points_that_they_are():
    tokens, types = 3 * draw(2, 20, 2, seed=1) + 5, types_of(3, seed=0)
    first = fit(tokens, types, start="random")
    assert_same_fit(fit(tokens, types, start=first.initial_loc), first)


@pytest.mark.parametrize("filler", [float("nan"), float("inf"), 1e30])
def test_tokens_left_out_may_hold_anything(filler: float):
    tokens, mask, types = 3 * draw(1, 30, 2, seed=1), mask_of("weights", 1, 30, 2), types_of(3, seed=0)
    assert mask is not None
    keep = mask[0] > 0
    tokens[:, ~keep] = filler
    found = fit(tokens, types, mask=mask)
    alone = fit(tokens[:, keep], types, mask=mask[:, keep])
    assert_close(found.elbo, alone.elbo, CONVERGED)
    assert_close(found.type_probabilities, alone.type_probabilities, CONVERGED)
    assert bool(found.responsibilities.isfinite().all())


@given(seed=seeds, kind=MASKS)
def test_units_do_not_matter(seed: int, kind: str):
    tokens, mask, types = 3 * draw(2, 20, 2, seed=seed), mask_of(kind, 2, 20, seed + 1), types_of(3, seed)
    scale, shift = draw(2, seed=seed + 2).exp(), 10 * draw(2, seed=seed + 3)
    moved = replace(types, loc=scale * types.loc + shift, precision_rate=scale**2 * types.precision_rate)
    settings = {"mask": mask, "num_iterations": 6, "tol": 0.0}
    ours, theirs = fit(tokens, types, **settings), fit(scale * tokens + shift, moved, **settings)
    assert_close(theirs.type_probabilities, ours.type_probabilities, CONVERGED)
    assert_close(theirs.loc, scale * ours.loc + shift, CONVERGED)
    num_tokens = 20.0 if mask is None else mask.double().sum(1)
    assert_close(theirs.elbo, ours.elbo - num_tokens * scale.log().sum(), CONVERGED)


def test_single_precision_gives_the_same_and_stays_single(device: torch.device):
    tokens, types = 3 * draw(2, 20, 2, seed=1) + 5, types_of(3, seed=0)
    double = fit(tokens, types, num_iterations=4, tol=0.0)
    single = fit_typed_slots(tokens.float().to(device), types, 3, 0.4, num_iterations=4, tol=0.0)
    assert single.elbo.dtype == single.type_probabilities.dtype == torch.float32
    assert single.elbo.device.type == device.type
    assert_close(single.elbo, double.elbo, FLOAT32)
    assert_close(single.type_probabilities, double.type_probabilities, 100 * FLOAT32)


def test_slots_of_planted_types_are_named():
    types = replace(types_of(3, seed=0), loc=10.0 * torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, -1.0]]).double())
    tokens = (types.loc[[2, 0]][:, None] + 0.5 * draw(2, 15, 2, seed=1)).reshape(1, 30, 2)
    found = fit(tokens, types, 2, num_restarts=3)
    of_token = found.type_probabilities.argmax(-1)[0, found.labels[0]]
    assert of_token.tolist() == [2] * 15 + [0] * 15


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_slots": 0}, "num_slots must be"),
        ({"num_iterations": 0}, "num_iterations must be"),
        ({"num_restarts": 0}, "num_restarts must be"),
        ({"tol": -1.0}, "tol must be a number of at least 0, got -1.0"),
        ({"concentration": 0.0}, "concentration must be a positive number, got 0.0"),
        ({"start": "nearest"}, "start must be one of farthest, kmeans++, random, got 'nearest'"),
        ({"start": torch.zeros(1, 2, 2)}, "start must have means (1, 3, 2), got (1, 2, 2)"),
        ({"start": torch.zeros(1, 3, 2), "num_restarts": 2}, "num_restarts must be 1 where the start is given, got 2"),
        ({"tokens": torch.full((1, 5, 2), torch.nan)}, "tokens must be finite, token 0 of image 0 is not"),
        ({"tokens": torch.zeros(1, 5, 3)}, "loc has 2 axes, the tokens have 3"),
    ],
)
def test_values_outside_their_support_are_refused(settings: dict[str, Any], message: str):
    given = {"tokens": draw(1, 5, 2, seed=0), "types": types_of(2, 0), "num_slots": 3, "concentration": 0.4} | settings
    with pytest.raises(ValueError, match=re.escape(message)):
        fit_typed_slots(**given)
