"""Distances against numerical integrals; merged duplicates, collapsed and missing components by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from tolerances import CONVERGED, assert_close
from torch import Tensor

from psa.metrics.component_separation import bhattacharyya, component_separation
from psa.models.aggregate import AggregatePrior


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixture(components: int = 3, features: int = 2, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Far apart, of unequal weights."""
    weights = (draw(components, seed=seed)).softmax(0)
    loc = 20.0 * torch.arange(components, dtype=torch.float64)[:, None] + draw(components, features, seed=seed + 1)
    return weights, loc, draw(components, features, seed=seed + 2).exp()


@pytest.mark.parametrize(("mean", "variance"), [(0.0, 1.0), (1.5, 1.0), (0.0, 4.0), (-2.0, 0.3)])
def test_the_distance_is_minus_the_log_of_the_overlap(mean, variance):
    one, other = stats.norm(0.5, 1.0), stats.norm(mean, math.sqrt(variance))
    overlap, _ = integrate.quad(lambda x: math.sqrt(one.pdf(x) * other.pdf(x)), -15, 15)
    loc, var = torch.tensor([[0.5], [mean]]).double(), torch.tensor([[1.0], [variance]]).double()
    assert_close(bhattacharyya(loc, var)[0, 1], -math.log(overlap), CONVERGED)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 10**6))
def test_distances_are_symmetric_add_over_features_and_are_0_to_oneself(components, features, seed):
    _, loc, var = mixture(components, features, seed)
    found = bhattacharyya(loc, var)
    assert_close(found, found.T)
    assert_close(found.diagonal(), torch.zeros(components).double())
    assert_close(found, sum(bhattacharyya(loc[:, [d]], var[:, [d]]) for d in range(features)))


def test_a_component_written_twice_counts_once():
    weights, loc, var = mixture()
    found = component_separation(weights, loc, var)
    again = component_separation(
        torch.cat([weights[:1] / 2, weights[1:], weights[:1] / 2]), loc[[0, 1, 2, 0]], var[[0, 1, 2, 0]]
    )
    assert (found.duplicates, again.duplicates) == (0, 1)
    assert_close(again.effective, found.effective)
    assert_close(found.effective, math.exp(stats.entropy(weights.numpy())))
    assert_close(again.nearest, found.nearest[[0, 1, 2, 0]])


def test_components_that_differ_by_a_hair_are_the_same_and_by_a_deviation_are_not():
    weights, var = torch.full((2,), 0.5).double(), torch.ones(2, 2).double()
    near, far = (torch.tensor([[0.0, 0.0], [away, 0.0]]).double() for away in (0.1, 1.0))
    assert component_separation(weights, near, var).effective == 1.0
    assert bool(component_separation(weights, near, var).nearest.isinf().all())
    found = component_separation(weights, far, var)
    assert_close(found.effective, 2.0)
    assert_close(found.nearest, torch.full((2,), 1 / 8).double())


def test_components_of_equal_means_and_other_variances_are_different():
    loc, var = torch.zeros(2, 2).double(), torch.tensor([[1.0, 1.0], [9.0, 9.0]]).double()
    assert component_separation(torch.full((2,), 0.5).double(), loc, var).duplicates == 0


def test_a_collapsed_component_shows_in_units_of_the_mixture():
    weights, loc, var = mixture()
    var[1, 0] = 1e-12
    found = component_separation(weights, loc, var)
    mean_var = AggregatePrior(weights, loc, var).variance.mean()
    assert_close(found.smallest, var.amin(1) / mean_var, CONVERGED)
    assert found.smallest.argmin() == 1
    assert float(found.condition[1]) == pytest.approx(float(var[1, 1]) / 1e-12)


@given(st.floats(0.01, 100.0), st.integers(0, 10**6))
def test_units_and_origin_of_the_slots_say_nothing(scale, seed):
    weights, loc, var = mixture(4, 3, seed)
    one, other = component_separation(weights, loc, var), component_separation(weights, scale * loc + 5, scale**2 * var)
    for name in ("smallest", "condition", "nearest", "effective"):
        assert_close(getattr(one, name), getattr(other, name), CONVERGED)


def test_the_overall_condition_is_that_of_the_mixtures_covariance():
    weights, loc, var = mixture(4, 3)
    expected = np.linalg.cond(AggregatePrior(weights, loc, var).covariance_matrix.numpy())
    assert_close(component_separation(weights, loc, var).overall_condition, float(expected), CONVERGED)


def test_components_of_weight_0_are_left_out():
    weights, loc, var = mixture()
    padded = component_separation(
        torch.cat([weights, torch.zeros(1).double()]), torch.cat([loc, loc[:1]]), torch.cat([var, 1e-9 * var[:1]])
    )
    found = component_separation(weights, loc, var)
    assert_close(padded.smallest, found.smallest)
    assert padded.duplicates == 0


def test_one_component_stands_alone():
    found = component_separation(torch.ones(1), torch.zeros(1, 2), torch.ones(1, 2))
    assert (found.effective, found.duplicates, float(found.nearest)) == (1.0, 0, math.inf)
