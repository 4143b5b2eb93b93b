"""Permanents, and what is made of them, against sums over all permutations."""

import itertools
import math

import pytest
import torch
from contracts import draw
from hypothesis import given
from hypothesis import strategies as st
from tolerances import ALGEBRA, assert_close
from torch import Tensor

from psa.inference import evidence_bounds
from psa.inference.evidence_bounds import relabelling_ratio
from psa.permanent import MAX_SIZE, log_permanent

INF = float("inf")
seeds = st.integers(0, 10_000)


def matrices(*batch: int, size: int, seed: int, scale: float = 3.0, empty: float = 0.0) -> Tensor:
    """Normal log entries, a share of them minus infinity."""
    entries = scale * draw(*batch, size, size, seed=seed)
    chance = torch.rand(entries.shape, generator=torch.Generator().manual_seed(seed))
    return entries.masked_fill(chance < empty, -INF)


def by_permutations(log_matrix: Tensor) -> Tensor:
    """log sum over permutations of the product, term by term."""
    size = log_matrix.shape[-1]
    terms = [sum(log_matrix[..., k, order[k]] for k in range(size)) for order in itertools.permutations(range(size))]
    return torch.stack(terms).logsumexp(0)


@given(
    size=st.integers(1, 6),
    batch=st.sampled_from([(), (3,), (2, 3)]),
    empty=st.sampled_from([0.0, 0.3, 0.7]),
    seed=seeds,
)
def test_log_permanent_equals_the_sum_over_permutations(size: int, batch: tuple[int, ...], empty: float, seed: int):
    log_matrix = matrices(*batch, size=size, seed=seed, empty=empty)
    assert_close(log_permanent(log_matrix), by_permutations(log_matrix))


def test_log_permanent_without_a_matching_is_minus_infinity():
    log_matrix = torch.zeros(4, 4, dtype=torch.float64)
    log_matrix[:2, 1:] = -INF  # two rows want one column
    assert float(log_permanent(log_matrix)) == -INF


def test_log_permanent_of_the_largest_size_counts_matchings():
    ones = torch.zeros(MAX_SIZE, MAX_SIZE, dtype=torch.float64)
    assert_close(log_permanent(ones), math.lgamma(MAX_SIZE + 1))
    derangements = sum((-1) ** i * math.factorial(MAX_SIZE) // math.factorial(i) for i in range(MAX_SIZE + 1))
    assert_close(log_permanent(ones.fill_diagonal_(-INF)), math.log(derangements))


@given(size=st.integers(1, 7), seed=seeds, scale=st.sampled_from([1.0, 1e3]))
def test_log_permanent_takes_factors_of_rows_and_columns_out(size: int, seed: int, scale: float):
    log_matrix = matrices(size=size, seed=seed)
    rows, columns = scale * draw(size, 1, seed=seed + 1), scale * draw(1, size, seed=seed + 2)
    expected = log_permanent(log_matrix) + rows.sum() + columns.sum()
    # against the size of what cancels
    assert abs(log_permanent(log_matrix + rows + columns) - expected) <= ALGEBRA * (1.0 + size * scale)


@given(size=st.integers(1, 7), seed=seeds)
def test_log_permanent_does_not_depend_on_the_order_of_rows_and_columns(size: int, seed: int):
    log_matrix = matrices(size=size, seed=seed)
    rows, columns = (torch.randperm(size, generator=torch.Generator().manual_seed(seed + i)) for i in (0, 1))
    assert_close(log_permanent(log_matrix[rows][:, columns]), log_permanent(log_matrix))
    assert_close(log_permanent(log_matrix.T), log_permanent(log_matrix))


def test_log_permanent_runs_on_every_device(device: torch.device):
    log_matrix = matrices(2, size=5, seed=0)
    found = log_permanent(log_matrix.to(device))
    assert found.device.type == device.type
    assert_close(found, by_permutations(log_matrix))


@pytest.mark.parametrize("shape", [(2, 3), (15, 15), (0, 0), (4, 16, 16)])
def test_log_permanent_refuses_other_shapes(shape: tuple[int, ...], unchecked: None):
    with pytest.raises(ValueError, match=rf"log_matrix must be square with 1 to 14 rows, got \({shape[0]}, "):
        log_permanent(torch.zeros(shape))


@given(size=st.integers(1, 5), seed=seeds)
def test_relabelling_ratio_is_the_sum_over_permutations_against_the_identity(size: int, seed: int):
    match = matrices(2, 3, size=size, seed=seed)
    own = match.diagonal(dim1=-2, dim2=-1).sum(-1)
    assert_close(relabelling_ratio(match), by_permutations(match) - own)
    assert bool((relabelling_ratio(match) >= -ALGEBRA).all()), "the identity alone contributes 1"


@pytest.mark.parametrize("size", [3, 14, 15, 20])
def test_relabelling_ratio_is_nothing_where_slots_are_told_apart(size: int):
    match = torch.full((1, 2, size, size), -1e3, dtype=torch.float64)
    match.diagonal(dim1=-2, dim2=-1).copy_(draw(1, 2, size, seed=0))
    assert_close(relabelling_ratio(match), torch.zeros(1, 2))


def test_relabelling_ratio_of_equal_slots_is_the_number_of_relabellings():
    match = draw(1, 1, 1, 6, seed=0).expand(1, 1, 6, 6)
    assert_close(relabelling_ratio(match), torch.full((1, 1), math.lgamma(7), dtype=torch.float64))


@given(size=st.integers(1, 7), seed=seeds, scale=st.sampled_from([0.1, 3.0, 20.0]))
def test_relabelling_ratio_above_the_largest_size_is_a_bound_from_above(size: int, seed: int, scale: float):
    match = matrices(2, 5, size=size, seed=seed, scale=scale)
    exact = relabelling_ratio(match)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence_bounds, "MAX_SIZE", 0)
        bound = relabelling_ratio(match)
    assert bool((bound >= exact - ALGEBRA * (1.0 + exact.abs())).all())
    own = match.diagonal(dim1=-2, dim2=-1).sum(-1)
    for axis in (-1, -2):
        assert bool((bound <= match.logsumexp(axis).sum(-1) - own + ALGEBRA * (1.0 + own.abs())).all())


def test_relabelling_ratio_of_fifteen_slots_is_above_the_permanent_of_blocks():
    match = torch.full((1, 2, 15, 15), -INF, dtype=torch.float64)
    blocks = matrices(1, 2, size=7, seed=0), matrices(1, 2, size=8, seed=1)
    match[..., :7, :7], match[..., 7:, 7:] = blocks
    exact = sum(relabelling_ratio(block) for block in blocks)
    assert bool((relabelling_ratio(match) >= exact - ALGEBRA).all())
    assert bool(torch.isfinite(relabelling_ratio(match)).all())
