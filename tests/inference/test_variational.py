"""fit_local_mixture, variational: monotone, step by step as the member and as scikit-learn, images by themselves."""

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from contracts import assert_same, draw
from hypothesis import given
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import BayesianGaussianMixture
from threadpoolctl import threadpool_limits
from tolerances import ALGEBRA, CONVERGED, assert_close
from torch import Tensor

from psa.inference import restarts
from psa.inference.coordinates import centre
from psa.inference.fits import LocalMixtureFit
from psa.inference.starts import STARTS, nearest, start_means
from psa.inference.variants import build
from psa.inference.variational import FitOptions, fit_local_mixture
from psa.models.local_mixture import LocalMixturePrior

DIAGONAL = LocalMixturePrior(0.4, torch.tensor([0.7, -0.2]), 0.3, 1.5, torch.tensor([0.8, 1.0]))
FULL = replace(DIAGONAL, precision_rate=torch.tensor([[0.8, 0.5], [0.5, 1.0]]))
PRIORS = {"diagonal": DIAGONAL, "full": FULL}
COVARIANCES = pytest.mark.parametrize("covariance", PRIORS)
MASKS = ("none", "bool", "weights")
seeds = st.integers(0, 10_000)


def mask_of(kind: str, batch: int, num_tokens: int, seed: int) -> Tensor | None:
    """No mask, a bool mask, or weights; the first token of every image counts."""
    weights = (draw(batch, num_tokens, seed=seed) + 0.6).clamp(min=0.0)
    weights[:, 0] = 0.7
    return {"none": None, "bool": weights > 0, "weights": weights}[kind]


def fit(
    tokens: Tensor, num_slots: int, covariance: str = "diagonal", seed: int = 0, **settings: Any
) -> LocalMixtureFit:
    """Settings of the fit and of its options alike."""
    names = ("start", "power", "coarsening", "variance_floor")
    options = FitOptions(covariance=covariance, **{name: settings.pop(name) for name in names if name in settings})
    settings = {"prior": PRIORS[covariance], "generator": torch.Generator().manual_seed(seed)} | settings
    found = fit_local_mixture(tokens, num_slots=num_slots, options=options, **settings)
    assert isinstance(found, LocalMixtureFit)
    return found


def assert_same_fit(ours: LocalMixtureFit, theirs: LocalMixtureFit, tolerance: float = CONVERGED) -> None:
    assert_same(ours.slot_posterior(), theirs.slot_posterior(), tolerance)
    assert_close(ours.elbo_trace, theirs.elbo_trace, tolerance)
    assert_close(ours.ascent.restart_objectives, theirs.ascent.restart_objectives, tolerance)
    assert torch.equal(ours.ascent.num_iterations, theirs.ascent.num_iterations)
    assert torch.equal(ours.ascent.converged, theirs.ascent.converged)


def image(found: LocalMixtureFit, *index: int) -> LocalMixtureFit:
    """The fit of some images alone."""
    chosen, ascent = list(index), found.ascent
    names = ("tokens", "elbo", "concentration", "loc", "loc_strength", "precision_shape", "precision_rate")
    parts = {name: getattr(found, name)[chosen] for name in (*names, "responsibilities", "initial_loc")}
    of_ascent = ("objective_trace", "num_iterations", "converged", "restart_objectives")
    picked = replace(ascent, **{name: getattr(ascent, name)[..., chosen] for name in of_ascent})
    return replace(found, ascent=picked, mask=None if found.mask is None else found.mask[chosen], **parts)


@COVARIANCES
@given(
    seed=seeds,
    num_tokens=st.integers(1, 30),
    num_slots=st.integers(1, 4),
    kind=st.sampled_from(MASKS),
    start=st.sampled_from(list(STARTS)),
    coarsening=st.sampled_from([1.0, 0.3, 2.0]),
    shift=st.sampled_from([0.0, 1e3]),
)
def test_elbo_never_falls(
    covariance: str, seed: int, num_tokens: int, num_slots: int, kind: str, start: str, coarsening: float, shift: float
):
    tokens, mask = 3 * draw(2, num_tokens, 2, seed=seed) + shift, mask_of(kind, 2, num_tokens, seed + 1)
    settings = {"start": start, "coarsening": coarsening, "mask": mask, "tol": 0.0, "num_iterations": 15}
    trace = fit(tokens, num_slots, covariance, seed, num_restarts=2, **settings).elbo_trace
    assert bool((trace[1:] - trace[:-1] >= -ALGEBRA * (1 + trace[:-1].abs())).all())


@COVARIANCES
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("power", [1.0, 0.4])
def test_a_given_state_steps_as_the_amortised_member(covariance: str, masked: bool, power: float):
    tokens, mask = 3 * draw(2, 9, 2, seed=1) + 4, mask_of("bool" if masked else "none", 2, 9, 2)
    columns = {"covariance": covariance, "prior": PRIORS[covariance], "power": power, "variance_floor": 1e-12}
    module = build("vb", num_slots=3, input_dim=2, slot_dim=2, **columns)
    start = module(tokens, mask, initial=tokens[:, 2:5], num_iterations=1)
    for steps in (1, 2, 7):
        expected = module(tokens, mask, initial=start, num_iterations=steps)
        settings = {"mask": mask, "num_iterations": steps, "tol": 0.0, "power": power}
        assert_same(fit(tokens, 3, covariance, start=start, **settings).slot_posterior(), expected)


@COVARIANCES
def test_a_mixture_without_counts_starts_as_in_the_amortised_member(covariance: str):
    tokens = 3 * draw(2, 9, 2, seed=1)
    options = {"num_slots": 3, "input_dim": 2, "slot_dim": 2, "variance_floor": 1e-12, "covariance": covariance}
    start = build("em", **options)(tokens, initial=tokens[:, 2:5])
    expected = build("vb", prior=PRIORS[covariance], **options)(tokens, initial=start)
    assert_same(fit(tokens, 3, covariance, start=start, num_iterations=3, tol=0.0).slot_posterior(), expected)


@COVARIANCES
@given(
    seed=seeds,
    num_tokens=st.integers(2, 40),
    kind=st.sampled_from(MASKS),
    chosen=st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True),
)
def test_an_image_does_not_depend_on_its_batch_mates(
    covariance: str, seed: int, num_tokens: int, kind: str, chosen: list[int]
):
    tokens, mask = 3 * draw(5, num_tokens, 2, seed=seed), mask_of(kind, 5, num_tokens, seed + 1)
    settings = {"tol": 1e-3, "num_iterations": 20}
    together = fit(tokens, 3, covariance, mask=mask, **settings)
    alone = fit(tokens[chosen], 3, covariance, mask=None if mask is None else mask[chosen], **settings)
    assert_same_fit(image(together, *chosen), alone)


@COVARIANCES
@pytest.mark.parametrize("kind", ["none", "weights"])
def test_chunks_that_fit_the_cache_change_nothing(covariance: str, kind: str, monkeypatch: pytest.MonkeyPatch):
    tokens, mask = 3 * draw(4, 30, 2, seed=1), mask_of(kind, 4, 30, 2)
    settings = {"mask": mask, "tol": 1e-4, "num_iterations": 12}
    several = {"num_restarts": 3, "start": "kmeans++", **settings}
    one, best = fit(tokens, 3, covariance, **settings), fit(tokens, 3, covariance, **several)
    on = fit(tokens, 3, covariance, start=one.slot_posterior(), **settings)
    for size in (1, 3 * 30 * 8 * 3):  # one image; three, or one with its restarts
        monkeypatch.setattr(restarts, "CACHED_BYTES", size)
        assert_same_fit(fit(tokens, 3, covariance, **settings), one)
        assert_same_fit(fit(tokens, 3, covariance, start=one.slot_posterior(), **settings), on)
        again = fit(tokens, 3, covariance, **several)  # equal restarts may change places: nothing else of them
        assert_close(again.ascent.restart_objectives, best.ascent.restart_objectives, CONVERGED)
        assert_close(again.elbo, best.elbo, CONVERGED)


@COVARIANCES
@pytest.mark.parametrize("kind", MASKS)
def test_an_image_stops_when_its_elbo_changes_by_less_than_tol_a_token(covariance: str, kind: str):
    tokens, mask = 2 * draw(6, 30, 2, seed=1), mask_of(kind, 6, 30, 2)
    tokens[:3, :15] += 7
    whole = fit(tokens, 3, covariance, mask=mask, tol=0.0, num_iterations=40)
    assert whole.ascent.num_iterations.tolist() == [40] * 6
    assert not bool(whole.ascent.converged.any())
    least = 1e-3 * (torch.full((6,), 30.0) if mask is None else mask.double().sum(1))
    found = fit(tokens, 3, covariance, mask=mask, tol=1e-3, num_iterations=20)
    for b in range(6):
        trace, taken = whole.elbo_trace[:, b], int(found.ascent.num_iterations[b])
        small = [t for t in range(1, 20) if abs(float(trace[t] - trace[t - 1])) < float(least[b])]
        assert taken == (small[0] + 1 if small else 20)
        assert bool(found.ascent.converged[b]) is bool(small)
        assert_close(found.elbo_trace[:taken, b], trace[:taken])
        assert bool((found.elbo_trace[taken - 1 :, b] == found.elbo[b]).all())
        stopped = fit(tokens, 3, covariance, mask=mask, tol=0.0, num_iterations=taken)
        assert_same(image(found, b).slot_posterior(), image(stopped, b).slot_posterior())
    assert len(set(found.ascent.num_iterations.tolist())) > 2


@COVARIANCES
@pytest.mark.parametrize("start", STARTS)
def test_the_best_restart_is_kept_and_all_objectives_reported(covariance: str, start: str):
    tokens, mask = 3 * draw(4, 20, 2, seed=1) + 5, mask_of("weights", 4, 20, 2)
    settings = {"mask": mask, "tol": 1e-4, "num_iterations": 30}
    found = fit(tokens, 3, covariance, start=start, num_restarts=5, **settings)
    values, weights, origin = centre(tokens, mask)
    means = start_means(start, values, weights, 3, 5, torch.Generator().manual_seed(0))
    each = [fit(tokens, 3, covariance, start=means[:, r] + origin, **settings) for r in range(5)]
    objectives = torch.stack([one.elbo for one in each])
    assert_close(found.ascent.restart_objectives, objectives, CONVERGED)
    assert_close(found.elbo, objectives.amax(0), CONVERGED)
    best, first = objectives.argmax(0).tolist(), objectives.sort(0, descending=True).values
    assert len(set(best)) > 1
    for b, r in enumerate(best):
        if float(first[0, b] - first[1, b]) < CONVERGED:
            continue  # the same maximum with its slots in another order
        assert_same(image(found, b).slot_posterior(), image(each[r], b).slot_posterior(), CONVERGED)
        assert_close(found.elbo_trace[:, b], each[r].elbo_trace[:, b], CONVERGED)
        assert int(found.ascent.num_iterations[b]) == int(each[r].ascent.num_iterations[b])


@COVARIANCES
@pytest.mark.parametrize("kind", ["bool", "weights"])
@pytest.mark.parametrize("filler", [float("nan"), float("inf"), 1e30])
def test_tokens_left_out_may_hold_anything(covariance: str, kind: str, filler: float):
    tokens, mask = 3 * draw(1, 30, 2, seed=1), mask_of(kind, 1, 30, 2)
    assert mask is not None
    keep = mask[0] > 0
    tokens[:, ~keep] = filler
    found = fit(tokens, 3, covariance, mask=mask, num_iterations=10)
    alone = fit(tokens[:, keep], 3, covariance, mask=mask[:, keep], num_iterations=10)
    assert_close(found.elbo, alone.elbo, CONVERGED)
    assert_close(found.log_evidence_bound, alone.log_evidence_bound, CONVERGED)
    assert_close(found.precision_rate, alone.precision_rate, CONVERGED)
    assert bool(found.responsibilities.isfinite().all())


@COVARIANCES
@pytest.mark.parametrize("start", STARTS)
@given(seed=seeds, kind=st.sampled_from(MASKS))
def test_units_do_not_matter_start_included(covariance: str, start: str, seed: int, kind: str):
    tokens, mask = 3 * draw(2, 20, 2, seed=seed), mask_of(kind, 2, 20, seed + 1)
    scale, shift, prior = draw(2, seed=seed + 2).exp(), 10 * draw(2, seed=seed + 3), PRIORS[covariance]
    stretch = scale**2 if covariance == "diagonal" else torch.outer(scale, scale)
    moved = replace(prior, loc=scale * prior.loc + shift, precision_rate=stretch * prior.precision_rate)
    settings = {"start": start, "mask": mask, "num_iterations": 6, "tol": 0.0}
    ours = fit(tokens, 3, covariance, **settings)
    theirs = fit(scale * tokens + shift, 3, covariance, prior=moved, **settings)
    assert_close(theirs.responsibilities, ours.responsibilities, CONVERGED)
    assert_close(theirs.initial_loc, scale * ours.initial_loc + shift, CONVERGED)
    assert_close(theirs.loc, scale * ours.loc + shift, CONVERGED)
    assert_close(theirs.precision_rate, stretch * ours.precision_rate, CONVERGED)
    num_tokens = 20.0 if mask is None else mask.double().sum(1)
    assert_close(theirs.elbo, ours.elbo - num_tokens * scale.log().sum(), CONVERGED)


@COVARIANCES
@pytest.mark.parametrize("kind", MASKS)
def test_coarsening_counts_every_token_so_often(covariance: str, kind: str):
    tokens, mask = 3 * draw(2, 20, 2, seed=1), mask_of(kind, 2, 20, 2)
    weights = torch.ones(2, 20).double() if mask is None else mask.double()
    for factor in (0.5, 2.0):
        coarse = fit(tokens, 3, covariance, mask=mask, coarsening=factor, tol=0.0, num_iterations=10)
        often = fit(tokens, 3, covariance, mask=factor * weights, tol=0.0, num_iterations=10)
        assert_same_fit(coarse, often)
        assert coarse.coarsening == factor


@COVARIANCES
def test_one_dimension_needs_no_other_covariances(covariance: str):
    tokens = 3 * draw(2, 12, 1, seed=1)
    prior = LocalMixturePrior(0.4, 0.7, 0.3, 1.5, 0.8)
    ours, diagonal = fit(tokens, 3, covariance, prior=prior), fit(tokens, 3, prior=prior)
    assert_close(ours.elbo, diagonal.elbo)
    assert_close(ours.precision_rate.flatten(2), diagonal.precision_rate)


class FromResponsibilities(BayesianGaussianMixture):
    """scikit-learn's, its first M-step from given responsibilities."""

    def _initialize_parameters(self, X: np.ndarray, *_: object, **__: object) -> None:
        self._initialize(X, self.given)


def reference(tokens: Tensor, given_to: Tensor, covariance: str, prior: LocalMixturePrior, steps: int) -> Any:
    """BayesianGaussianMixture after these steps on an image (N, D)."""
    rate = torch.as_tensor(prior.precision_rate, dtype=torch.float64)
    model = FromResponsibilities(
        n_components=len(given_to),
        covariance_type="diag" if covariance == "diagonal" else "full",
        tol=0.0,
        reg_covar=0.0,
        max_iter=steps,
        weight_concentration_prior_type="dirichlet_distribution",
        weight_concentration_prior=prior.concentration,
        mean_precision_prior=prior.loc_strength,
        mean_prior=torch.as_tensor(prior.loc, dtype=torch.float64).expand(tokens.shape[1]).numpy(),
        degrees_of_freedom_prior=2 * prior.precision_shape + tokens.shape[1] - 1,
        covariance_prior=(2 * rate).numpy(),
    )
    model.given = given_to.T.numpy()
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(tokens.numpy())


@pytest.mark.parametrize(("covariance", "dim"), [("diagonal", 1), ("full", 2), ("full", 3)])
def test_every_step_is_that_of_scikit_learn(covariance: str, dim: int):
    tokens = 2 * draw(2, 40, dim, seed=1)
    tokens[:, :15] += 3
    rate = torch.tensor([0.8]) if covariance == "diagonal" else torch.eye(dim) + 0.3
    prior, gaps = LocalMixturePrior(0.4, 0.7, 0.3, 1.5, rate), []
    for steps in (1, 2, 20):
        found = fit(tokens, 3, covariance, prior=prior, start=tokens[:, :3], num_iterations=steps, tol=0.0)
        values, _, origin = centre(tokens, None)
        for b in range(2):
            given_to = nearest(values, None, tokens[:, :3] - origin)[b]
            model = reference(tokens[b], given_to, covariance, prior, steps)
            assert_close(found.concentration[b], torch.from_numpy(model.weight_concentration_))
            assert_close(found.loc_strength[b], torch.from_numpy(model.mean_precision_))
            assert_close(found.loc[b], torch.from_numpy(model.means_), CONVERGED)
            assert_close(2 * found.precision_shape[b] + dim - 1, torch.from_numpy(model.degrees_of_freedom_))
            expected = torch.from_numpy(model.covariances_)
            covariances = found.slot_posterior().var if dim == 1 else found.slot_posterior().covariance
            assert covariances is not None
            assert_close(covariances[b], expected, CONVERGED)
            gaps.append(float(found.elbo[b]) - model.lower_bound_)
    assert_close(torch.tensor(gaps), torch.full((6,), gaps[0]), CONVERGED)  # their bound leaves out constants
