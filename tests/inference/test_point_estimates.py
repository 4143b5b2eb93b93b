"""MAP and maximum likelihood: objectives by scipy, stationary points, never a fall, scikit-learn's steps."""

import math
import warnings
from dataclasses import replace
from typing import Any

import oracles
import pytest
import scipy.stats
import torch
from contracts import assert_same, draw
from hypothesis import given
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits
from tolerances import ALGEBRA, CONVERGED, assert_close
from torch import Tensor

from psa.inference.em import MixtureState
from psa.inference.fits import PointFit
from psa.inference.starts import STARTS
from psa.inference.variants import build
from psa.inference.variational import FitOptions, fit_local_mixture
from psa.models.local_mixture import LocalMixturePrior, mixture_log_likelihood

DIAGONAL = LocalMixturePrior(1.6, torch.tensor([0.7, -0.2]), 0.3, 1.5, torch.tensor([0.8, 1.0]))
PRIORS = {"diagonal": DIAGONAL, "full": replace(DIAGONAL, precision_rate=torch.tensor([[0.8, 0.5], [0.5, 1.0]]))}
COVARIANCES = pytest.mark.parametrize("covariance", PRIORS)
ESTIMATES = pytest.mark.parametrize("estimate", ["map", "ml"])
FLOOR = 1e-3
seeds = st.integers(0, 10_000)


def mask_of(kind: str, batch: int, num_tokens: int, seed: int) -> Tensor | None:
    weights = (draw(batch, num_tokens, seed=seed) + 0.6).clamp(min=0.0)
    weights[:, 0] = 0.7
    return {"none": None, "bool": weights > 0, "weights": weights}[kind]


def fit(tokens: Tensor, num_slots: int, estimate: str, covariance: str = "diagonal", **settings: Any) -> PointFit:
    """Settings of the fit and of its options alike."""
    chosen = {"estimate": estimate, "covariance": covariance, "variance_floor": FLOOR}
    for name in ("start", "power", "coarsening", "variance_floor"):
        if name in settings:
            chosen[name] = settings.pop(name)
    settings = {"prior": PRIORS[covariance], "generator": torch.Generator().manual_seed(0)} | settings
    found = fit_local_mixture(tokens, num_slots=num_slots, options=FitOptions(**chosen), **settings)
    assert isinstance(found, PointFit)
    return found


def two_groups(batch: int, num_tokens: int, seed: int = 1) -> Tensor:
    tokens = draw(batch, num_tokens, 2, seed=seed)
    tokens[:, : num_tokens // 2] += torch.tensor([3.0, 2.0])
    return tokens


def covariances_of(found: PointFit) -> Tensor:
    return found.var.diag_embed() if found.covariance is None else found.covariance


def log_joint(tokens: Tensor, weights: Tensor, loc: Tensor, covariance: Tensor) -> Tensor:
    """log pi_k + log Normal(v_n; mu_k, Sigma_k) of an image, (N, K), by torch.distributions."""
    density = torch.distributions.MultivariateNormal(loc, covariance)
    return weights.log() + density.log_prob(tokens[:, None])


def scipy_log_prior(found: PointFit, b: int, prior: LocalMixturePrior) -> float:
    """log p(pi) + log p(lambda) + log p(mu | lambda)."""
    loc0, rate0 = (torch.as_tensor(x, dtype=torch.float64).numpy() for x in (prior.loc, prior.precision_rate))
    weights = found.weights[b].numpy()
    total = float(scipy.stats.dirichlet([prior.concentration] * len(weights)).logpdf(weights))
    for k, loc in enumerate(found.loc[b].numpy()):
        if found.covariance is None:
            precision = 1 / found.var[b, k].numpy()
            total += scipy.stats.gamma(prior.precision_shape, scale=1 / rate0).logpdf(precision).sum()
            total += scipy.stats.norm(loc0, (prior.loc_strength * precision) ** -0.5).logpdf(loc).sum()
            continue
        covariance = found.covariance[b, k].numpy()
        scale = torch.linalg.inv(2 * torch.from_numpy(rate0)).numpy()
        precision = torch.linalg.inv(found.covariance[b, k]).numpy()
        total += scipy.stats.wishart(2 * prior.precision_shape + 1, scale).logpdf(precision)
        total += scipy.stats.multivariate_normal(loc0, covariance / prior.loc_strength).logpdf(loc)
    return float(total)


@COVARIANCES
@ESTIMATES
@pytest.mark.parametrize("kind", ["none", "bool", "weights"])
@pytest.mark.parametrize("num_iterations", [1, 4])
def test_objective_and_responsibilities_are_those_of_the_estimate(
    covariance: str, estimate: str, kind: str, num_iterations: int
):
    tokens, mask = two_groups(2, 12), mask_of(kind, 2, 12, 2)
    found = fit(tokens, 3, estimate, covariance, mask=mask, num_iterations=num_iterations, tol=0.0)
    for b in range(2):
        scores = log_joint(tokens[b], found.weights[b], found.loc[b], covariances_of(found)[b])
        weights = torch.ones(12).double() if mask is None else mask[b].double()
        expected = (weights * scores.logsumexp(1)).sum()
        if estimate == "map":
            expected = expected + scipy_log_prior(found, b, PRIORS[covariance])
        assert_close(found.objective[b], expected)
        assert_close(found.responsibilities[b, :, weights > 0], scores.softmax(1).T[:, weights > 0])
    assert_close(found.weights.sum(1), torch.ones(2))
    assert_close(found.ascent.objective_trace[-1], found.objective, 0.0)


def test_likelihood_is_that_of_the_program():
    tokens, mask = two_groups(2, 12), mask_of("bool", 2, 12, 2)
    found = fit(tokens, 3, "ml", mask=mask)
    assert_close(found.objective, mixture_log_likelihood(tokens, found.weights, found.loc, found.var, mask))


@COVARIANCES
@ESTIMATES
@given(
    seed=seeds,
    num_tokens=st.integers(1, 30),
    num_slots=st.integers(1, 4),
    kind=st.sampled_from(["none", "bool", "weights"]),
    start=st.sampled_from(list(STARTS)),
    factor=st.sampled_from([1.0, 0.4, 2.0]),
    floor=st.sampled_from([1e-4, 0.3]),
)
def test_objective_never_falls(
    covariance: str, estimate: str, seed: int, num_tokens: int, num_slots: int, kind: str, start: str, factor: float,
    floor: float,
):  # fmt: skip
    tokens, mask = 3 * draw(2, num_tokens, 2, seed=seed), mask_of(kind, 2, num_tokens, seed + 1)
    tempering = {"coarsening": factor} if estimate == "map" else {"power": factor, "variance_floor": floor}
    settings = {"start": start, "mask": mask, "num_iterations": 15, "tol": 0.0, "num_restarts": 2}
    trace = fit(tokens, num_slots, estimate, covariance, **settings, **tempering).ascent.objective_trace
    assert bool((trace[1:] - trace[:-1] >= -ALGEBRA * (1 + trace[:-1].abs())).all())


def map_objective(free: list[Tensor], tokens: Tensor, prior: LocalMixturePrior) -> Tensor:
    """log p(v | theta) + log p(theta) of logits, means, and logarithms of precisions or Cholesky factors."""
    logits, loc, factor = free
    weights = logits.softmax(0)
    loc0, rate = (torch.as_tensor(x, dtype=torch.float64) for x in (prior.loc, prior.precision_rate))
    total = torch.distributions.Dirichlet(torch.full_like(weights, prior.concentration)).log_prob(weights)
    if factor.ndim == 2:
        precision = factor.exp().diag_embed()
        total = total + torch.distributions.Gamma(prior.precision_shape, rate).log_prob(factor.exp()).sum()
    else:
        precision = factor @ factor.mT
        wishart = torch.distributions.Wishart(2.0 * prior.precision_shape + 1.0, precision_matrix=2.0 * rate)
        total = total + wishart.log_prob(precision).sum()
    prior_of_loc = torch.distributions.MultivariateNormal(loc0, precision_matrix=prior.loc_strength * precision)
    total = total + prior_of_loc.log_prob(loc).sum()
    return total + log_joint(tokens, weights, loc, torch.linalg.inv(precision)).logsumexp(1).sum()


@COVARIANCES
def test_map_is_a_local_maximum(covariance: str):
    tokens = two_groups(1, 20)
    found = fit(tokens, 2, "map", covariance, num_iterations=300, tol=0.0)
    precision = 1 / found.var[0] if found.covariance is None else torch.linalg.inv(found.covariance[0])
    factor = precision.log() if found.covariance is None else torch.linalg.cholesky(precision)
    free = [part.clone().requires_grad_() for part in (found.weights[0].log(), found.loc[0], factor)]
    objective = map_objective(free, tokens[0], PRIORS[covariance])
    assert_close(objective, found.objective[0])
    for gradient in torch.autograd.grad(objective, free):
        assert_close(gradient, torch.zeros_like(gradient), CONVERGED)
    for seed in range(20):
        away = [part.detach() + 0.02 * draw(*part.shape, seed=seed) for part in free]
        away[2] = away[2] if covariance == "diagonal" else away[2].tril()
        assert float(map_objective(away, tokens[0], PRIORS[covariance])) < float(found.objective[0])


@COVARIANCES
def test_coarsened_map_counts_every_token_so_often(covariance: str):
    tokens, weights = two_groups(2, 12), mask_of("weights", 2, 12, 2)
    assert weights is not None
    settings = {"tol": 0.0, "num_iterations": 6}
    coarse = fit(tokens, 3, "map", covariance, mask=weights, coarsening=2.0, **settings)
    often = fit(tokens, 3, "map", covariance, mask=2 * weights, **settings)
    assert_same(coarse.slot_posterior(), often.slot_posterior(), CONVERGED)
    assert_close(coarse.ascent.objective_trace, often.ascent.objective_trace, CONVERGED)


def test_tempered_likelihood_is_the_powered_densities():
    tokens = two_groups(2, 12)
    for power in (0.4, 1.7):
        found = fit(tokens, 3, "ml", power=power)
        for b in range(2):
            expected = oracles.power_log_likelihood(tokens[b], found.weights[b], found.loc[b], found.var[b], power)
            assert_close(found.objective[b], expected)


@COVARIANCES
def test_likelihood_keeps_its_floor(covariance: str):
    tokens = draw(2, 5, 2, seed=1).repeat(1, 3, 1)  # five points, three times each: slots collapse on them
    found = fit(tokens, 5, "ml", covariance, variance_floor=0.01)
    eigenvalues = torch.linalg.eigvalsh(covariances_of(found))
    assert_close(eigenvalues.amin((1, 2)), torch.full((2,), 0.01, dtype=torch.float64))
    assert bool((found.var >= 0.01 - 1e-12).all())


@COVARIANCES
def test_likelihood_steps_as_the_amortised_member(covariance: str):
    tokens, mask = two_groups(2, 12), mask_of("bool", 2, 12, 2)
    options = {"num_slots": 3, "input_dim": 2, "slot_dim": 2, "variance_floor": FLOOR, "covariance": covariance}
    module = build("em", **options)
    start = module(tokens, mask, initial=tokens[:, 2:5], num_iterations=1)
    for steps in (1, 2, 7):
        expected = module(tokens, mask, initial=start, num_iterations=steps)
        ours = fit(tokens, 3, "ml", covariance, mask=mask, start=start, num_iterations=steps, tol=0.0)
        for name in ("weights", "loc", "var", "initial_loc"):
            assert_close(getattr(ours, name), getattr(expected, name), ALGEBRA, name)
        if expected.covariance is not None:
            assert_close(covariances_of(ours), expected.covariance)


@COVARIANCES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_slot_without_tokens_keeps_its_mean_takes_the_floor_and_weight_0(covariance: str, dtype: torch.dtype):
    tokens = draw(1, 200, 2, seed=1, dtype=dtype)
    tokens[0, 0] = 50.0
    start = tokens[:, [1, 1, 1]]  # of equal means the first takes all
    for steps in (1, 2, 50):
        found = fit(tokens, 3, "ml", covariance, start=start, num_iterations=steps, tol=0.0)
        assert found.weights.tolist() == [[1.0, 0.0, 0.0]]
        assert_close(found.loc[:, 1:], start[:, 1:], CONVERGED)
        assert_close(found.var[:, 1:], torch.full((1, 2, 2), FLOOR), CONVERGED)


@ESTIMATES
def test_an_image_that_converged_keeps_its_value(estimate: str):
    found = fit(two_groups(3, 30), 2, estimate, tol=1e-3, num_iterations=100)
    assert bool(found.ascent.converged.all())
    for b in range(3):
        taken = int(found.ascent.num_iterations[b])
        assert taken < 100
        assert_close(found.ascent.objective_trace[taken - 1 :, b], found.objective[b].expand(101 - taken), 0.0)
        stopped = fit(two_groups(3, 30), 2, estimate, tol=0.0, num_iterations=taken)
        assert_close(stopped.objective[b], found.objective[b])
        assert not bool(stopped.ascent.converged[b])


@pytest.mark.parametrize(("covariance", "dim"), [("diagonal", 1), ("diagonal", 3), ("full", 2), ("full", 3)])
def test_every_step_of_likelihood_is_that_of_scikit_learn(covariance: str, dim: int):
    tokens = 2 * draw(2, 100, dim, seed=1)
    tokens[:, :40] += 3
    full, weights = covariance == "full", draw(2, 3, seed=2).softmax(1)
    var, eye = torch.full((2, 3, dim), 2.0, dtype=torch.float64), torch.eye(dim, dtype=torch.float64)
    start = MixtureState(tokens[:, :3], var, weights.log(), var.diag_embed() if full else None)
    settings = {"prior": LocalMixturePrior(), "start": start, "tol": 0.0, "variance_floor": 1e-9}
    for steps in (1, 2, 20):
        found = fit(tokens, 3, "ml", covariance, num_iterations=steps, **settings)
        for b in range(2):
            model = GaussianMixture(
                3, covariance_type="full" if full else "diag", tol=0.0, reg_covar=0.0, max_iter=steps,
                weights_init=weights[b].numpy(), means_init=tokens[b, :3].numpy(),
                precisions_init=(0.5 * eye.expand(3, dim, dim) if full else 1 / var[b]).numpy(),
            )  # fmt: skip
            with warnings.catch_warnings(), threadpool_limits(1):
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.fit(tokens[b].numpy())
            assert_close(found.weights[b], torch.from_numpy(model.weights_), CONVERGED)
            assert_close(found.loc[b], torch.from_numpy(model.means_), CONVERGED)
            expected = torch.from_numpy(model.covariances_)
            assert_close(covariances_of(found)[b] if full else found.var[b], expected, CONVERGED)
            assert_close(found.objective[b], 100 * model.score(tokens[b].numpy()), CONVERGED)


@COVARIANCES
def test_map_of_a_flat_prior_is_maximum_likelihood(covariance: str):
    flat = LocalMixturePrior(1.0, 0.0, 1e-9, 0.5 + 1e-9, 1e-9)
    tokens = two_groups(1, 30)
    ours = fit(tokens, 2, "map", covariance, prior=flat, num_iterations=5, tol=0.0)
    expected = fit(tokens, 2, "ml", covariance, num_iterations=5, tol=0.0)
    for name in ("weights", "loc", "var"):
        assert_close(getattr(ours, name), getattr(expected, name), CONVERGED, name)
    assert math.isfinite(float(ours.objective))
