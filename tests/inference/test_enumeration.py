"""The exact posterior of small images against loops over assignments, and its draws against exact expectations."""

import itertools
import math

import oracles
import pytest
import scipy.special
import scipy.stats
import torch
from contracts import draw
from enumerated import enumerated, label_free
from hypothesis import given
from hypothesis import strategies as st
from tolerances import CONVERGED, assert_close, assert_mean_is
from torch import Tensor

from psa.inference.draws import MixtureDraws
from psa.inference.enumeration import ExactPosterior, enumerate_posterior
from psa.models.local_mixture import LocalMixturePrior

PRIOR = oracles.Prior(alpha=0.6, loc=0.4, strength=0.3, shape=2.5, rate=0.7)
OURS = LocalMixturePrior(PRIOR.alpha, PRIOR.loc, PRIOR.strength, PRIOR.shape, PRIOR.rate)
seeds = st.integers(0, 10_000)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one_cluster() -> Tensor:
    """Eight tokens in one place."""
    return 0.3 * draw(8, 1, seed=0)


@given(num_tokens=st.integers(1, 4), num_slots=st.integers(1, 3), dim=st.integers(1, 3), seed=seeds)
def test_log_joint_of_every_assignment_is_the_urn_times_the_predictions(
    num_tokens: int, num_slots: int, dim: int, seed: int
):
    tokens = 2 * draw(num_tokens, dim, seed=seed)
    posterior = enumerate_posterior(tokens, OURS, num_slots)
    labels = posterior.labels(torch.arange(num_slots**num_tokens))
    assert len({tuple(row) for row in labels.tolist()}) == num_slots**num_tokens
    for row, found in zip(labels.tolist(), posterior.log_joint, strict=True):
        expected = oracles.log_urn(tuple(row), num_slots, PRIOR.alpha)
        for k, d in itertools.product(range(num_slots), range(dim)):
            expected += oracles.log_predictive([float(tokens[n, d]) for n in range(num_tokens) if row[n] == k], PRIOR)
        assert_close(found, expected)


@given(num_tokens=st.integers(1, 5), num_slots=st.integers(1, 3), dim=st.integers(1, 2), seed=seeds)
def test_evidence_equals_the_sum_over_assignments(num_tokens: int, num_slots: int, dim: int, seed: int):
    tokens = 2 * draw(num_tokens, dim, seed=seed)
    found = enumerate_posterior(tokens, OURS, num_slots).log_evidence
    assert_close(found, oracles.exact_log_evidence(tokens, PRIOR, num_slots))
    assert_close(found, enumerated(tokens, PRIOR, num_slots).log_evidence)


def test_evidence_of_one_slot_is_a_product_of_predictions_of_any_number_of_tokens():
    tokens = draw(300, 2, seed=1)
    expected = sum(oracles.log_predictive(tokens[:, d].tolist(), PRIOR) for d in range(2))
    assert_close(enumerate_posterior(tokens, OURS, 1).log_evidence, expected)


@given(num_tokens=st.integers(1, 7), num_slots=st.integers(1, 3), seed=seeds)
def test_evidence_does_not_depend_on_the_order_of_tokens(num_tokens: int, num_slots: int, seed: int):
    tokens = 2 * draw(num_tokens, 2, seed=seed)
    order = torch.randperm(num_tokens, generator=seeded(seed))
    found = enumerate_posterior(tokens[order], OURS, num_slots).log_evidence
    assert_close(found, enumerate_posterior(tokens, OURS, num_slots).log_evidence)


def test_evidence_does_not_depend_on_the_origin():
    tokens, far = 2 * draw(6, 2, seed=2), 1e6
    prior = LocalMixturePrior(PRIOR.alpha, PRIOR.loc + far, PRIOR.strength, PRIOR.shape, PRIOR.rate)
    expected = enumerate_posterior(tokens, OURS, 3).log_evidence
    # tokens far out are stored to 1e-10
    assert_close(enumerate_posterior(tokens + far, prior, 3).log_evidence, expected, CONVERGED)


def test_log_joint_does_not_depend_on_labels():
    posterior = enumerate_posterior(2 * draw(5, 1, seed=3), OURS, 3)
    labels = posterior.labels(torch.arange(3**5))
    place = 3 ** torch.arange(5)
    for order in itertools.permutations(range(3)):
        renamed = (torch.tensor(order)[labels] * place).sum(1)
        assert_close(posterior.log_joint[renamed], posterior.log_joint)


def test_evidence_is_computed_in_float64():
    tokens = draw(5, 2, seed=4).to(torch.float32)
    found = enumerate_posterior(tokens, OURS, 2).log_evidence
    assert found.dtype == torch.float64
    assert_close(found, oracles.exact_log_evidence(tokens.to(torch.float64), PRIOR, 2))


def test_evidence_is_the_same_on_every_device(device: torch.device):
    tokens = draw(5, 2, seed=5)
    for covariance in ("diagonal", "full"):
        found = enumerate_posterior(tokens.to(device), OURS, 3, covariance).log_evidence
        assert found.device.type == device.type
        assert_close(found, enumerate_posterior(tokens, OURS, 3, covariance).log_evidence)


@pytest.mark.parametrize(("num_tokens", "num_slots"), [(21, 2), (13, 3), (11, 4), (3, 128)])
def test_too_many_assignments_are_refused(num_tokens: int, num_slots: int):
    message = rf"num_slots \*\* tokens must be at most 2\^20 for enumeration, got {num_slots} \*\* {num_tokens}; "
    with pytest.raises(ValueError, match=message + "log_evidence estimates it"):
        enumerate_posterior(draw(num_tokens, 1, seed=6), OURS, num_slots)


@pytest.mark.parametrize(("num_tokens", "num_slots"), [(20, 2), (10, 4)])
def test_the_largest_number_of_assignments_is_taken(num_tokens: int, num_slots: int):
    posterior = enumerate_posterior(draw(num_tokens, 1, seed=6), OURS, num_slots)
    assert posterior.log_joint.shape == (1 << 20,)
    assert bool(torch.isfinite(posterior.log_joint).all())


@pytest.mark.parametrize("num_slots", [0, -1])
def test_no_slots_are_refused(num_slots: int):
    with pytest.raises(ValueError, match="num_slots"):
        enumerate_posterior(draw(3, 1, seed=6), OURS, num_slots)


@given(num_tokens=st.integers(1, 6), num_slots=st.integers(1, 3), seed=seeds)
def test_full_covariances_are_the_diagonal_ones_in_one_dimension(num_tokens: int, num_slots: int, seed: int):
    tokens = 2 * draw(num_tokens, 1, seed=seed)
    full = enumerate_posterior(tokens, OURS, num_slots, covariance="full")
    assert_close(full.log_joint, enumerate_posterior(tokens, OURS, num_slots).log_joint)


def student_predictions(tokens: Tensor, prior: LocalMixturePrior) -> float:
    """log p(tokens) of one slot with full covariances: multivariate Student t, one token after another."""
    loc, rate = (torch.as_tensor(part, dtype=torch.float64) for part in (prior.loc, prior.precision_rate))
    strength, shape, total = prior.loc_strength, prior.precision_shape, 0.0
    for token in tokens:
        scale = (strength + 1) / (strength * shape) * rate
        total += float(scipy.stats.multivariate_t(loc.numpy(), scale.numpy(), df=2 * shape).logpdf(token.numpy()))
        away = token - loc
        rate = rate + 0.5 * strength / (strength + 1) * torch.outer(away, away)
        loc, strength, shape = loc + away / (strength + 1), strength + 1, shape + 0.5
    return total


def test_full_covariances_are_multivariate_student_predictions():
    prior = LocalMixturePrior(0.6, torch.tensor([0.4, -0.5]), 0.3, 1.5, torch.tensor([[0.8, 0.3], [0.3, 0.5]]))
    tokens, num_slots = 2 * draw(5, 2, seed=7), 3
    terms = []
    for labels in itertools.product(range(num_slots), repeat=5):
        owned = [tokens[[n for n in range(5) if labels[n] == k]] for k in range(num_slots)]
        predictions = sum(student_predictions(part, prior) for part in owned)
        terms.append(oracles.log_urn(labels, num_slots, prior.concentration) + predictions)
    found = enumerate_posterior(tokens, prior, num_slots, covariance="full").log_evidence
    assert_close(found, float(scipy.special.logsumexp(terms)), 1e-9)  # scipy's t inverts its scale by eigenvalues


def mass_of_best_partition(posterior: ExactPosterior) -> tuple[float, int]:
    """By grouping all assignments by the partition that they make."""
    labels = posterior.labels(torch.arange(len(posterior.log_joint))).tolist()
    probability = posterior.log_joint.softmax(0).tolist()
    mass: dict[tuple[int, ...], float] = {}
    for row, p in zip(labels, probability, strict=True):
        names = {label: i for i, label in enumerate(dict.fromkeys(row))}
        partition = tuple(names[label] for label in row)
        mass[partition] = mass.get(partition, 0.0) + p
    best = labels[probability.index(max(probability))]
    names = {label: i for i, label in enumerate(dict.fromkeys(best))}
    return mass[tuple(names[label] for label in best)], len(names)


@given(num_tokens=st.integers(1, 5), num_slots=st.integers(1, 4), seed=seeds)
def test_best_partition_has_the_mass_of_all_its_relabellings(num_tokens: int, num_slots: int, seed: int):
    posterior = enumerate_posterior(2 * draw(num_tokens, 1, seed=seed), OURS, num_slots)
    mass, used = posterior.best_partition_mass()
    expected, expected_used = mass_of_best_partition(posterior)
    assert used == expected_used
    assert_close(mass, expected)


def test_best_partition_of_one_cluster_uses_one_slot():
    posterior = enumerate_posterior(one_cluster(), LocalMixturePrior(0.1, 0.0, 0.3, 2.0, 0.5), 3)
    mass, used = posterior.best_partition_mass()
    assert used == 1
    assert_close(mass, 3 * float((posterior.log_joint[0] - posterior.log_evidence).exp()))


def sampled(draws: MixtureDraws) -> tuple[Tensor, Tensor, Tensor]:
    """(S, K), (S, K, D), (S, K, D) of one chain of one image."""
    return draws.log_weights[0, 0], draws.loc[0, 0], draws.precision[0, 0]


@pytest.mark.parametrize(("num_slots", "dim"), [(1, 2), (2, 1), (3, 2)])
def test_draws_have_the_exact_expectations(num_slots: int, dim: int):
    tokens = 1.5 * draw(5, dim, seed=8)
    draws = enumerate_posterior(tokens, OURS, num_slots).draws(40_000, seeded())
    expected = enumerated(tokens, PRIOR, num_slots).expected
    for name, values in label_free(*sampled(draws)).items():
        if num_slots == 1 and name == "sum of squared weights":
            assert_close(values, torch.ones_like(values))
        else:
            assert_mean_is(values, expected[name])


def test_draws_come_in_every_labelling_alike():
    tokens, num_slots = 4 * draw(5, 1, seed=9), 3
    log_weights, loc, precision = sampled(enumerate_posterior(tokens, OURS, num_slots).draws(20_000, seeded()))
    weights = log_weights.exp()
    assert_mean_is(weights, 1 / num_slots)
    expected = enumerated(tokens, PRIOR, num_slots).expected
    assert_mean_is(weights * loc[..., 0], float(expected["weighted mean"]) / num_slots)
    assert_mean_is(weights * precision[..., 0], float(expected["weighted precision"]) / num_slots)


def test_draws_are_on_the_simplex_and_repeat_by_their_generator():
    posterior = enumerate_posterior(draw(4, 2, seed=10), OURS, 3)
    before = torch.get_rng_state()
    first, second, other = (posterior.draws(50, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.loc.shape == first.precision.shape == (1, 1, 50, 3, 2)
    assert_close(first.log_weights.logsumexp(-1), torch.zeros(1, 1, 50))
    assert bool((first.precision > 0).all())
    for one, same, another in zip(sampled(first), sampled(second), sampled(other), strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, another)


def test_draws_of_a_sparse_prior_keep_their_logarithms():
    posterior = enumerate_posterior(one_cluster(), LocalMixturePrior(1e-3, 0.0, 0.3, 2.0, 0.5), 2)
    log_weights, _, _ = sampled(posterior.draws(2000, seeded()))
    assert bool(torch.isfinite(log_weights).all())
    assert float(log_weights.min()) < math.log(torch.finfo(torch.float64).tiny), "no weight would have underflowed"


def test_draws_with_full_covariances_are_refused():
    posterior = enumerate_posterior(draw(4, 2, seed=11), OURS, 2, covariance="full")
    with pytest.raises(ValueError, match="covariance"):
        posterior.draws(10, seeded())
