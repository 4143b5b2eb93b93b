"""A fit's bound against Pyro and the exact evidence, its guide, its count of occupied slots, its records."""

import itertools
import math
from dataclasses import fields, replace

import oracles
import pyro
import pytest
import torch
from contracts import draw
from hypothesis import given
from hypothesis import strategies as st
from pyro.infer import TraceEnum_ELBO
from tolerances import ALGEBRA, FLOAT32, STANDARD_ERRORS, assert_close
from torch import Tensor

from psa.inference.enumeration import enumerate_posterior
from psa.inference.evidence_bounds import assignment_log_joint
from psa.inference.fits import LocalMixtureFit, PointFit, draw_labels
from psa.inference.variational import FitOptions, fit_local_mixture
from psa.models.local_mixture import LocalMixturePrior, local_mixture

PRIOR = LocalMixturePrior(0.4, torch.tensor([0.7, -0.2]), 0.3, 1.5, torch.tensor([0.8, 1.0]))
PRIORS = {"diagonal": PRIOR, "full": replace(PRIOR, precision_rate=torch.tensor([[0.8, 0.5], [0.5, 1.0]]))}
COVARIANCES = pytest.mark.parametrize("covariance", PRIORS)
MASKS = st.sampled_from(["none", "bool", "weights"])
seeds = st.integers(0, 10_000)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mask_of(kind: str, batch: int, num_tokens: int, seed: int) -> Tensor | None:
    weights = (draw(batch, num_tokens, seed=seed) + 0.6).clamp(min=0.0)
    weights[:, 0] = 0.7
    return {"none": None, "bool": weights > 0, "weights": weights}[kind]


def fit(
    tokens: Tensor,
    prior: LocalMixturePrior,
    num_slots: int,
    mask: Tensor | None = None,
    num_iterations: int = 100,
    num_restarts: int = 1,
    **options: object,
) -> LocalMixtureFit:
    found = fit_local_mixture(
        tokens,
        prior,
        num_slots,
        mask=mask,
        num_iterations=num_iterations,
        num_restarts=num_restarts,
        generator=seeded(),
        options=FitOptions(**options),  # type: ignore[arg-type]
    )
    assert isinstance(found, LocalMixtureFit)
    return found


def exact_log_evidence(tokens: Tensor, prior: LocalMixturePrior, num_slots: int, covariance: str) -> float:
    """Of an image (N, D), over all assignments, whose log joints test_evidence_bounds.py holds to scipy."""
    every = torch.tensor(list(itertools.product(range(num_slots), repeat=len(tokens))))
    together = tokens.expand(len(every), *tokens.shape)
    return float(assignment_log_joint(every, together, prior, num_slots, None, covariance)[0].logsumexp(0))


@COVARIANCES
@given(
    seed=seeds,
    num_tokens=st.integers(1, 12),
    num_slots=st.integers(1, 4),
    kind=MASKS,
    power=st.sampled_from([1.0, 0.4]),
    num_iterations=st.integers(1, 8),
)
def test_elbo_is_every_single_particle_of_pyro(
    covariance: str, seed: int, num_tokens: int, num_slots: int, kind: str, power: float, num_iterations: int
):
    tokens, mask = 3 * draw(2, num_tokens, 2, seed=seed) + 2, mask_of(kind, 2, num_tokens, seed + 1)
    if mask is not None:
        tokens[mask == 0] = torch.nan
    found = fit(tokens, PRIORS[covariance], num_slots, mask, num_iterations, covariance=covariance, power=power)
    pyro.set_rng_seed(seed)
    for _ in range(2):
        loss = TraceEnum_ELBO(max_plate_nesting=2).loss(
            local_mixture, found.guide(), tokens, PRIORS[covariance], num_slots, mask, covariance
        )
        assert_close(-loss, found.elbo.sum())


@pytest.mark.parametrize("alpha0", [0.1, 1.0])
@given(seed=seeds, num_tokens=st.integers(1, 6), num_slots=st.integers(1, 3), spread=st.sampled_from([0.5, 4.0]))
def test_elbo_and_bound_are_never_above_the_exact_evidence(
    alpha0: float, seed: int, num_tokens: int, num_slots: int, spread: float
):
    tokens = spread * draw(1, num_tokens, 2, seed=seed)
    for covariance, prior in PRIORS.items():
        prior = replace(prior, concentration=alpha0)
        exact = exact_log_evidence(tokens[0], prior, num_slots, covariance) + 1e-9
        for options in ({"num_iterations": 1}, {"num_restarts": 3}, {"num_iterations": 5, "power": 0.3}):
            found = fit(tokens, prior, num_slots, covariance=covariance, **options)  # type: ignore[arg-type]
            assert float(found.elbo) <= exact
            assert float(found.elbo) <= float(found.log_evidence_bound) <= exact


def test_evidence_used_here_is_the_oracles():
    plain = oracles.Prior(0.4, 0.7, 0.3, 1.5, 0.8)
    prior = LocalMixturePrior(0.4, 0.7, 0.3, 1.5, 0.8)
    tokens = draw(5, 2, seed=1)
    expected = oracles.exact_log_evidence(tokens, plain, 3)
    assert_close(exact_log_evidence(tokens, prior, 3, "diagonal"), expected)
    assert_close(enumerate_posterior(tokens, prior, 3).log_evidence, expected)


@pytest.mark.parametrize("weight", [0.1, 1.0, 2.5])
def test_bound_of_weighted_tokens_is_not_above_their_evidence(weight: float):
    # p(v) = E[(sum_k pi_k Normal_k)^w] of one token; w <= 1: by Jensen at most (E[sum_k pi_k Normal_k])^w
    tokens, prior = draw(1, 1, 1, seed=1), LocalMixturePrior(2.0, 0.0, 1.0, 2.0, 1.0)
    found = fit(tokens, prior, 5, torch.full((1, 1), weight, dtype=torch.float64))
    generator = torch.distributions.Gamma(torch.tensor(2.0).double(), 1.0)
    torch.manual_seed(0)
    precision = generator.sample((200_000, 5))
    loc = precision.rsqrt() * torch.randn(200_000, 5, dtype=torch.float64)
    shares = torch.distributions.Dirichlet(torch.full((5,), 2.0).double()).sample((200_000,))
    density = torch.distributions.Normal(loc, precision.rsqrt()).log_prob(tokens[0, 0]).exp()
    powers = (shares * density).sum(1) ** weight
    above = powers.mean() + STANDARD_ERRORS * powers.std() / 200_000**0.5
    assert float(found.elbo) <= float(above.log())
    assert float(found.log_evidence_bound) <= float(above.log())


def groups(distance: float, seed: int) -> Tensor:
    """Eight tokens on a line in two groups."""
    tokens = draw(8, 1, seed=seed)
    tokens[:4] += distance
    return tokens


def test_elbo_plus_log_k_factorial_reaches_the_evidence_where_one_partition_has_it():
    prior, reached = LocalMixturePrior(1.0, 0.0, 0.05, 2.0, 1.0), 0
    for seed, distance in itertools.product(range(6), (3.0, 6.0, 10.0, 15.0)):
        tokens = groups(distance, seed)
        exact = enumerate_posterior(tokens, prior, 2)
        mass, occupied = exact.best_partition_mass()
        if mass < 0.96 or occupied != 2:
            continue
        found = fit(tokens[None], prior, 2, num_restarts=4)
        assert abs(float(found.elbo) + math.log(2) - float(exact.log_evidence)) <= 0.05
        assert_close(found.log_evidence_estimate[0], found.elbo[0] + math.log(2))
        reached += 1
    assert reached >= 8


def test_elbo_plus_log_k_factorial_is_no_bound_where_slots_are_empty():
    # the known failure: K = 3, N = 8, alpha0 = 0.1, one cluster
    tokens, prior = draw(1, 8, 1, seed=0), LocalMixturePrior(0.1, 0.0, 0.01, 1.0, 1.0)
    found = fit(tokens, prior, 3, num_restarts=6)
    exact = float(enumerate_posterior(tokens[0], prior, 3).log_evidence)
    assert float(found.elbo) + math.log(6) > exact + 0.3
    assert_close(found.log_evidence_estimate[0], found.elbo[0] + math.log(3))  # one slot of three is occupied
    assert float(found.log_evidence_bound) <= exact


def test_a_coarsened_fit_has_no_evidence():
    found = fit(draw(1, 8, 2, seed=0), PRIOR, 3, coarsening=2.0)
    for name in ("log_evidence_estimate", "log_evidence_bound"):
        with pytest.raises(ValueError, match=r"coarsening must be 1 for the evidence of the model, got 2\.0"):
            getattr(found, name)


def with_responsibilities(responsibilities: Tensor, mask: Tensor | None = None) -> LocalMixtureFit:
    batch, num_slots, num_tokens = responsibilities.shape
    found = fit(draw(batch, num_tokens, 2, seed=0), PRIOR, num_slots, mask, num_iterations=1)
    return replace(found, responsibilities=responsibilities)


@given(seed=seeds, kind=MASKS)
def test_count_of_occupied_slots_is_a_distribution(seed: int, kind: str):
    found = fit(3 * draw(2, 6, 2, seed=seed), PRIOR, 3, mask_of(kind, 2, 6, seed + 1), num_iterations=3)
    count = found.num_occupied(20, generator=seeded())
    assert count.shape == (2, 4)
    assert bool((count >= 0).all())
    assert_close(count.sum(1), torch.ones(2))


def test_count_of_hard_responsibilities_is_certain_and_knows_mask_and_least():
    labels = torch.tensor([[0, 0, 0, 0, 1, 1], [2, 2, 2, 2, 2, 2]])
    hard = torch.nn.functional.one_hot(labels, 4).transpose(1, 2).double()
    mask = torch.tensor([[1, 1, 1, 0, 1, 0], [1, 1, 1, 1, 1, 1]]) > 0
    for given_mask, least, expected in (
        (None, None, [2, 1]), (None, 3, [1, 1]), (None, 5, [0, 1]), (None, 7, [0, 0]), (None, 0.5, [2, 1]),
        (mask, None, [2, 1]), (mask, 2, [1, 1]), (0.5 * mask.double(), 1, [1, 1]), (0.3 * mask.double(), 1, [0, 1]),
    ):  # fmt: skip
        count = with_responsibilities(hard, given_mask).num_occupied(3, least)
        assert count.argmax(1).tolist() == expected
        assert count.amax(1).tolist() == [1, 1]


def test_count_is_that_of_independent_assignments():
    share = draw(1, 5, seed=3).sigmoid()
    found = with_responsibilities(torch.stack([share, 1 - share], dim=1))
    num_samples = 1000
    count = found.num_occupied(num_samples, generator=seeded())[0]
    one = float(share.prod() + (1 - share).prod())
    error = (one * (1 - one) / num_samples) ** 0.5
    assert abs(float(count[1]) - one) <= STANDARD_ERRORS * error
    three = 0.0  # at least three of five tokens under slot 0, or under slot 1: never both, never neither
    for labels in itertools.product((0, 1), repeat=5):
        p = math.prod(float(share[0, n] if label == 0 else 1 - share[0, n]) for n, label in enumerate(labels))
        three += p * (labels.count(0) >= 2) * (labels.count(1) >= 2)
    count = found.num_occupied(num_samples, 2, seeded())[0]
    assert abs(float(count[2]) - three) <= STANDARD_ERRORS * (three * (1 - three) / num_samples) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_drawn_labels_have_the_responsibilities_as_frequencies(dtype: torch.dtype):
    share = torch.tensor([0.0, 0.3, 0.1, 0.6, 0.0], dtype=dtype)[None, :, None]
    labels = draw_labels(share.expand(-1, -1, 100_000), seeded())
    assert labels.shape == (1, 100_000)
    for k, p in enumerate(share.flatten().tolist()):
        assert abs(float((labels == k).double().mean()) - p) <= STANDARD_ERRORS * (p * (1 - p) / 100_000) ** 0.5
    certain = draw_labels(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], dtype=dtype).repeat(1, 1, 500), seeded())
    assert_close(certain[0], torch.tensor([0, 1]).repeat(500))


@COVARIANCES
def test_record_and_labels_agree_with_the_fit(covariance: str):
    tokens = 3 * draw(2, 20, 2, seed=1)
    found = fit(tokens, PRIORS[covariance], 3, covariance=covariance)
    record, components = found.slot_posterior(), found.components
    for name in ("loc", "responsibilities", "initial_loc", "elbo", "concentration", "loc_strength", "precision_shape"):
        assert_close(getattr(record, name), getattr(found, name), 0.0)
    assert_close(record.weights, found.concentration / found.concentration.sum(1, keepdim=True))
    assert_close(found.elbo_trace[-1], found.elbo, 0.0)
    assert torch.equal(found.labels, record.labels)
    assert torch.equal(found.labels, found.responsibilities.argmax(1))
    full = covariance == "full"
    assert components.full is full
    expected = torch.linalg.inv(components.expected_precision()) if full else 1 / components.expected_precision()
    assert_close(record.var, expected.diagonal(dim1=-2, dim2=-1) if full else expected)
    assert (record.covariance is not None) is full
    if record.covariance is not None:
        assert_close(record.covariance, expected)


@COVARIANCES
def test_point_record_has_the_estimate_and_nothing_of_a_posterior(covariance: str):
    options = FitOptions(estimate="ml", covariance=covariance)
    found = fit_local_mixture(3 * draw(2, 20, 2, seed=1), PRIOR, 3, options=options)
    assert isinstance(found, PointFit)
    record = found.slot_posterior()
    for name in ("weights", "loc", "var", "responsibilities", "initial_loc"):
        assert_close(getattr(record, name), getattr(found, name), 0.0)
    assert (record.covariance is not None) is (covariance == "full")
    assert record.elbo is None
    assert record.concentration is None


@COVARIANCES
@pytest.mark.parametrize("estimate", ["variational", "map", "ml"])
def test_float32_is_computed_as_it_is_and_close_and_lower_precision_in_float32(covariance: str, estimate: str):
    tokens = 2 * draw(2, 30, 2, seed=1)
    tokens[:, :15] += 4
    prior, options = replace(PRIOR, concentration=1.5), FitOptions(estimate=estimate, covariance=covariance)
    half = tokens.bfloat16()
    exact, single, low = (
        fit_local_mixture(given_tokens, prior, 2, num_iterations=10, tol=0.0, options=options)
        for given_tokens in (half.double(), half.float(), half)
    )
    names = [field.name for field in fields(single) if isinstance(getattr(single, field.name), Tensor)]
    for name in names:
        value = getattr(single, name)
        assert value.dtype == torch.float32, name
        assert_close(getattr(low, name), value, ALGEBRA, name)
        assert_close(value, getattr(exact, name), 10 * FLOAT32, name)
    if isinstance(single, LocalMixtureFit):
        assert isinstance(exact, LocalMixtureFit)
        assert_close(single.log_evidence_bound, exact.log_evidence_bound, 10 * FLOAT32)
        assert_close(single.num_occupied(10).sum(1), torch.ones(2), FLOAT32)
