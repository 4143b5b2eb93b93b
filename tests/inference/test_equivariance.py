"""What holds exactly (model.md section 2), the initial state, prior and floor transformed with the tokens."""

from dataclasses import replace

import pytest
import torch
from contracts import draw
from hypothesis import assume, given
from hypothesis import strategies as st
from tolerances import CONVERGED, assert_close
from torch import Tensor

from psa.inference.em import MixtureState
from psa.inference.slot_inference import SlotInference
from psa.inference.variants import build
from psa.inference.variational import FitOptions, fit_local_mixture
from psa.models.local_mixture import LocalMixturePrior
from psa.records import SlotPosterior

DIM = 3
MEMBERS = ["em", "vb", "psa", "psa-proj"]
seeds = st.integers(0, 10_000)


def identity_member(name: str, prior: LocalMixturePrior | None = None, covariance: str = "diagonal") -> SlotInference:
    options = {"covariance": covariance} if prior is None else {"prior": prior, "covariance": covariance}
    return build(
        name, num_slots=3, input_dim=DIM, slot_dim=DIM, projections="none", variance_floor=0.0, **options
    ).double()


def problem(seed: int) -> tuple[Tensor, MixtureState, LocalMixturePrior]:
    tokens = 2 * draw(2, 12, DIM, seed=seed)
    log_weights = draw(2, 3, seed=seed + 1).log_softmax(1)
    state = MixtureState(draw(2, 3, DIM, seed=seed + 2), 1 + draw(2, 3, DIM, seed=seed + 3).exp(), log_weights)
    rate = draw(DIM, seed=seed + 5).exp()
    return tokens, state, LocalMixturePrior(0.5, draw(DIM, seed=seed + 4), 0.2, 1.5, rate)


def check(name: str, seed: int, scale: Tensor, shift: Tensor, order: Tensor) -> None:
    """Inference of x -> (scale x + shift)[order] is the map of the inference of x."""
    tokens, state, prior = problem(seed)

    def moved(x: Tensor) -> Tensor:
        return (scale * x + shift)[..., order]

    def stretched(var: Tensor) -> Tensor:
        return (scale**2 * var)[..., order]

    other_prior = replace(prior, loc=moved(prior.loc), precision_rate=stretched(prior.precision_rate))
    if name == "vb":  # the start's rate carries the prior's, which is stretched with it
        module, other = identity_member(name, prior), identity_member(name, other_prior)
    else:
        module, other = identity_member(name), identity_member(name)
    ours = module(tokens, initial=state)
    assume(bool((ours.var > 1e-3).all()))  # a slot that collapsed on one token has no variance, and there is no floor
    theirs = other(moved(tokens), initial=replace(state, loc=moved(state.loc), var=stretched(state.var)))
    compare(theirs, ours, moved(ours.loc), stretched(ours.var))
    if ours.elbo is not None:  # a density of the tokens: it shifts by -N log |det|
        assert_close(theirs.elbo, ours.elbo - tokens.shape[1] * scale.abs().log().sum())
        assert_close(theirs.precision_rate, stretched(ours.precision_rate))


def compare(theirs: SlotPosterior, ours: SlotPosterior, loc: Tensor, var: Tensor | None) -> None:
    assert_close(theirs.responsibilities, ours.responsibilities)
    assert_close(theirs.weights, ours.weights)
    assert_close(theirs.loc, loc)
    if var is not None:
        assert_close(theirs.var, var)


def ones() -> Tensor:
    return torch.ones(DIM, dtype=torch.float64)


SAME = torch.arange(DIM)


@pytest.mark.parametrize("name", MEMBERS)
@given(seed=seeds)
def test_translation(name: str, seed: int):
    check(name, seed, ones(), 10 * draw(DIM, seed=seed + 10), SAME)


@pytest.mark.parametrize("name", MEMBERS)
@given(seed=seeds)
def test_axis_scaling(name: str, seed: int):
    check(name, seed, draw(DIM, seed=seed + 10).exp(), 0 * ones(), SAME)


@pytest.mark.parametrize("name", MEMBERS)
@given(seed=seeds)
def test_signs(name: str, seed: int):
    check(name, seed, draw(DIM, seed=seed + 10).sign(), 0 * ones(), SAME)


@pytest.mark.parametrize("name", MEMBERS)
@given(seed=seeds)
def test_axis_order(name: str, seed: int):
    check(name, seed, ones(), 0 * ones(), torch.randperm(DIM, generator=torch.Generator().manual_seed(seed)))


def rotation(seed: int) -> Tensor:
    return torch.linalg.qr(draw(DIM, DIM, seed=seed)).Q


def dot_member() -> SlotInference:
    return build(
        "sa", num_slots=3, input_dim=DIM, slot_dim=DIM, projections="none", normalise=False, neural=False
    ).double()


@given(seed=seeds)
def test_dot_with_identity_projections_under_orthogonal_maps(seed: int):
    tokens, state, _ = problem(seed)
    turn = rotation(seed + 20)
    ours = dot_member()(tokens, initial=state.loc)
    theirs = dot_member()(tokens @ turn, initial=state.loc @ turn)
    compare(theirs, ours, ours.loc @ turn, None)


def test_dot_is_not_translated_and_diagonal_em_is_not_turned():
    tokens, state, _ = problem(1)
    ours = dot_member()(tokens, initial=state.loc)
    theirs = dot_member()(tokens + 1, initial=state.loc + 1)
    assert not torch.allclose(theirs.responsibilities, ours.responsibilities, atol=1e-3)
    turn = rotation(2)
    em = identity_member("em")
    ours = em(tokens, initial=state.loc)
    theirs = em(tokens @ turn, initial=state.loc @ turn)
    assert not torch.allclose(theirs.responsibilities, ours.responsibilities, atol=1e-3)


def affine_map(seed: int) -> Tensor:
    """Invertible, its singular values from 1/3 to 3, half of them mirrored."""
    stretch = draw(DIM, seed=seed + 1).sigmoid() * (3 - 1 / 3) + 1 / 3
    return rotation(seed) @ (stretch * draw(DIM, seed=seed + 2).sign()).diag() @ rotation(seed + 3)


def full_problem(seed: int) -> tuple[Tensor, MixtureState, LocalMixturePrior]:
    """Enough tokens that no slot collapses on a few, wide correlated slots, a correlated prior."""
    tokens = 2 * draw(2, 60, DIM, seed=seed)
    factor = draw(2, 3, DIM, DIM, seed=seed + 1)
    covariance = factor @ factor.mT + 2 * torch.eye(DIM, dtype=torch.float64)
    log_weights, loc = draw(2, 3, seed=seed + 2).log_softmax(1), draw(2, 3, DIM, seed=seed + 3)
    state = MixtureState(loc, covariance.diagonal(dim1=-2, dim2=-1), log_weights, covariance)
    return tokens, state, LocalMixturePrior(1.2, draw(DIM, seed=seed + 4), 0.2, 1.5, covariance[0, 0])


def mapped(
    state: MixtureState, prior: LocalMixturePrior, matrix: Tensor, shift: Tensor
) -> tuple[MixtureState, LocalMixturePrior]:
    """Where a start and a prior with full covariances go under x -> matrix x + shift."""
    assert state.covariance is not None
    covariance = matrix @ state.covariance @ matrix.T
    var, rate = covariance.diagonal(dim1=-2, dim2=-1), torch.as_tensor(prior.precision_rate)
    loc = torch.as_tensor(prior.loc) @ matrix.T + shift
    return (
        MixtureState(state.loc @ matrix.T + shift, var, state.log_weights, covariance),
        replace(prior, loc=loc, precision_rate=0.5 * (matrix @ rate @ matrix.T + (matrix @ rate @ matrix.T).T)),
    )


@pytest.mark.parametrize("name", ["em", "vb"])
@given(seed=seeds)
def test_full_covariances_under_any_invertible_affine_map(name: str, seed: int):
    tokens, state, prior = full_problem(seed)
    matrix, shift = affine_map(seed + 20), 10 * draw(DIM, seed=seed + 10)
    other_state, other_prior = mapped(state, prior, matrix, shift)
    ours = identity_member(name, prior, "full")(tokens, initial=state)
    theirs = identity_member(name, other_prior, "full")(tokens @ matrix.T + shift, initial=other_state)
    compare(theirs, ours, ours.loc @ matrix.T + shift, None)
    assert ours.covariance is not None
    assert theirs.covariance is not None
    assert_close(theirs.covariance, matrix @ ours.covariance @ matrix.T)
    assert_close(theirs.var, theirs.covariance.diagonal(dim1=-2, dim2=-1))
    if ours.elbo is not None:
        assert ours.precision_rate is not None
        assert_close(theirs.elbo, ours.elbo - tokens.shape[1] * torch.linalg.slogdet(matrix).logabsdet)
        assert_close(theirs.precision_rate, matrix @ ours.precision_rate @ matrix.T)


@pytest.mark.parametrize("estimate", ["variational", "map", "ml"])
@given(seed=seeds)
def test_full_fits_under_any_invertible_affine_map(estimate: str, seed: int):
    tokens, state, prior = full_problem(seed)
    matrix, shift = affine_map(seed + 20), 10 * draw(DIM, seed=seed + 10)
    fits = []
    for moved, (start, transformed) in (
        (tokens, (state, prior)),
        (tokens @ matrix.T + shift, mapped(state, prior, matrix, shift)),
    ):
        options = FitOptions(start, estimate=estimate, covariance="full", variance_floor=1e-9)
        fits.append(fit_local_mixture(moved, transformed, 3, num_iterations=5, tol=0.0, options=options))
    ours, theirs = fits
    assert_close(theirs.responsibilities, ours.responsibilities, CONVERGED)
    assert_close(theirs.loc, ours.loc @ matrix.T + shift, CONVERGED)
    log_det = torch.linalg.slogdet(matrix).logabsdet
    # under map also the density of every slot's mean, and of its precision, symmetric with D (D + 1) / 2 entries
    shifts = tokens.shape[1] + 3 * (1 - (DIM + 1) if estimate == "map" else 0)
    traces = [fit.ascent.objective_trace for fit in fits]
    assert_close(traces[1], traces[0] - shifts * log_det, CONVERGED)


@pytest.mark.parametrize("name", ["em", "vb"])
def test_diagonal_covariances_are_not_sheared(name: str):
    tokens, state, prior = full_problem(1)
    state = replace(state, covariance=None)
    shear = torch.eye(DIM, dtype=torch.float64)
    shear[0, 1] = 2.0
    prior = replace(prior, precision_rate=torch.ones(DIM, dtype=torch.float64))
    other_prior = replace(prior, loc=torch.as_tensor(prior.loc) @ shear.T)
    ours = identity_member(name, prior)(tokens, initial=state)
    theirs = identity_member(name, other_prior)(tokens @ shear.T, initial=replace(state, loc=state.loc @ shear.T))
    assert not torch.allclose(theirs.responsibilities, ours.responsibilities, atol=1e-3)
    full = identity_member(name, prior, "full")(tokens, initial=state)
    assert not torch.allclose(full.responsibilities, ours.responsibilities, atol=1e-3)
