"""Divergences between mapped densities, against closed forms, quadrature, and 0."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerances import STANDARD_ERRORS, assert_close
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from psa.metrics import smcc
from psa.metrics.aggregate_distance import aggregate_distance
from psa.models.aggregate import AggregatePrior


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(size: int, seed: int) -> Tensor:
    root = draw(size, size, seed=seed)
    return root @ root.mT + torch.eye(size, dtype=torch.float64)


def mixture(seed: int) -> AggregatePrior:
    spread = torch.stack([0.1 * covariance(2, seed + g) for g in range(3)])
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    return AggregatePrior(weights, 2 * draw(3, 2, seed=seed), covariance=spread)


def mapped(prior: AggregatePrior, matrix: Tensor, offset: Tensor) -> AggregatePrior:
    return AggregatePrior(prior.weights, prior.loc @ matrix + offset, covariance=matrix.mT @ prior.covariance @ matrix)


@pytest.fixture(autouse=True)
def apart():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@given(st.integers(1, 4), st.integers(0, 10**6))
def test_between_gaussians_it_is_the_closed_form(size, seed):
    torch.manual_seed(seed)
    first = MultivariateNormal(draw(size, seed=seed), covariance(size, seed + 1))
    second = MultivariateNormal(draw(size, seed=seed + 2), covariance(size, seed + 3))
    matrix, offset = covariance(size, seed + 4), draw(size, seed=seed + 5)
    image = MultivariateNormal(first.loc @ matrix + offset, matrix.mT @ first.covariance_matrix @ matrix)
    found = aggregate_distance(first, second, (matrix, offset), 2000)
    for value, error, expected in (
        (found.kl, found.kl_stderr, kl_divergence(image, second)),
        (found.kl_reverse, found.kl_reverse_stderr, kl_divergence(second, image)),
    ):
        assert abs(value - float(expected)) <= STANDARD_ERRORS * error
        assert error > 0


def test_a_mixture_and_its_image_are_at_distance_zero_under_the_map_and_not_without_it():
    first, matrix, offset = mixture(0), draw(2, 2, seed=5), draw(2, seed=6)
    second = mapped(first, matrix, offset)
    found = aggregate_distance(first, second, (matrix, offset), 500)
    assert_close(torch.tensor([found.kl, found.kl_stderr, found.kl_reverse, found.kl_reverse_stderr]), torch.zeros(4))
    without = aggregate_distance(first, second, (torch.eye(2, dtype=torch.float64), torch.zeros(2)), 500)
    assert min(without.kl - 6 * without.kl_stderr, without.kl_reverse - 6 * without.kl_reverse_stderr) > 0


def test_the_map_of_paired_slots_undoes_the_difference_between_runs():
    first, matrix, offset = mixture(1), draw(2, 2, seed=5), draw(2, seed=6)
    a = first.sample((200, 3))
    found = smcc(a, a @ matrix + offset, generator=torch.Generator().manual_seed(0))
    distance = aggregate_distance(first, mapped(first, matrix, offset), found.affine, 500)
    assert_close(torch.tensor([distance.kl, distance.kl_reverse]), torch.zeros(2))
    assert_close(distance.affine.matrix, matrix)


def test_standard_errors_are_the_spread_of_repetitions():
    first, second = Normal(torch.zeros(1), 1.0), Normal(torch.ones(1), 2.0)
    first, second = (torch.distributions.Independent(side, 1) for side in (first, second))
    affine = (torch.eye(1), torch.zeros(1))
    runs = [aggregate_distance(first, second, affine, 400) for _ in range(200)]
    for value, error in (("kl", "kl_stderr"), ("kl_reverse", "kl_reverse_stderr")):
        spread = torch.tensor([getattr(run, value) for run in runs]).std()
        stated = torch.tensor([getattr(run, error) for run in runs]).mean()
        assert 0.75 < float(stated / spread) < 1.33


@pytest.mark.parametrize(
    ("affine", "num_samples", "message"),
    [
        ((torch.zeros(2, 2), torch.zeros(2)), 10, "affine: expected an invertible matrix"),
        ((torch.eye(2), torch.zeros(2)), 1, "num_samples: expected at least 2, came 1"),
    ],
)
def test_wrong_arguments_are_named(affine, num_samples, message):
    with pytest.raises(ValueError, match=message):
        aggregate_distance(mixture(0), mixture(1), affine, num_samples)


@pytest.mark.usefixtures("unchecked")
def test_a_map_between_slots_of_different_sizes_is_an_error():
    with pytest.raises(ValueError, match=r"affine: expected a square matrix, came shape \(2, 3\)"):
        aggregate_distance(mixture(0), mixture(1), (torch.ones(2, 3), torch.zeros(3)))
