"""Gaussian, Normal-Gamma, Normal-Wishart and Dirichlet algebra: Bayes' rule, derivatives of normalisers, scipy."""

import numpy as np
import oracles
import pytest
import scipy.stats
import torch
from contracts import draw
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_close, assert_mean_is
from torch import Tensor

from psa.conjugate import (
    LOG_2PI,
    Moments,
    NormalGamma,
    dirichlet_log_normaliser,
    expected_log_weights,
    natural_parameters,
    pack,
    token_features,
    unpack,
)

COVARIANCES = pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
seeds = st.integers(0, 10_000)


def positive_definite(*shape: int, dim: int, seed: int) -> Tensor:
    factor = draw(*shape, dim, dim, seed=seed)
    return factor @ factor.mT + 0.5 * torch.eye(dim, dtype=torch.float64)


def some_components(*shape: int, dim: int, full: bool, seed: int = 0) -> NormalGamma:
    rate = positive_definite(*shape, dim=dim, seed=seed + 4) if full else draw(*shape, dim, seed=seed + 4).exp()
    strength, a = (draw(*shape, 1, seed=seed + place)[..., 0].exp() for place in (2, 3))
    return NormalGamma(draw(*shape, dim, seed=seed + 1), strength, 0.6 + a, rate, full)


def moments_of(values: Tensor, weights: Tensor, full: bool) -> Moments:
    """Of the tokens (N, D), weighted (K, N)."""
    return unpack(weights @ token_features(values[None], full)[0].T, values.shape[-1], full)


def sum_of_log_densities(values: Tensor, weights: Tensor, loc: Tensor, precision: Tensor, full: bool) -> float:
    covariance = torch.linalg.inv(precision if full else precision.diag())
    density = scipy.stats.multivariate_normal(loc.numpy(), covariance.numpy()).logpdf(values.numpy())
    return float((weights * torch.as_tensor(density)).sum())


@COVARIANCES
def test_natural_parameters_and_features_give_the_quadratic_form(full: bool):
    tokens, loc, constant = draw(2, 5, 3, seed=1), draw(2, 4, 3, seed=2), draw(2, 4, seed=3)
    precision = positive_definite(2, 4, dim=3, seed=4) if full else draw(2, 4, 3, seed=4).exp()
    scores = pack(*natural_parameters(loc, precision, constant)) @ token_features(tokens, full)
    matrix = precision if full else precision.diag_embed()
    for b in range(2):
        for k in range(4):
            for n in range(5):
                away = tokens[b, n] - loc[b, k]
                assert_close(scores[b, k, n], constant[b, k] - 0.5 * away @ matrix[b, k] @ away)


@COVARIANCES
@given(seed=seeds, num_tokens=st.integers(1, 8), dim=st.integers(1, 4))
def test_moments_are_the_weighted_count_mean_and_scatter(full: bool, seed: int, num_tokens: int, dim: int):
    values, weights = draw(num_tokens, dim, seed=seed), draw(3, num_tokens, seed=seed + 1).abs()
    weights[1] = 0
    moments = moments_of(values, weights, full)
    for k in (0, 2):
        mean = sum(w * v for w, v in zip(weights[k], values, strict=True)) / weights[k].sum()
        scatter = sum(w * torch.outer(v - mean, v - mean) for w, v in zip(weights[k], values, strict=True))
        assert_close(moments.count[k], weights[k].sum())
        assert_close(moments.mean[k], mean)
        assert_close(moments.scatter[k], scatter if full else scatter.diagonal())
    for part in (moments.count, moments.mean, moments.scatter):
        assert not bool(part[1].any())


@COVARIANCES
def test_scaled_moments_count_every_token_so_often(full: bool):
    values, weights = draw(6, 2, seed=1), draw(3, 6, seed=2).abs()
    moments = moments_of(values, weights, full)
    factors = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)
    for factor, each in ((2.0, 2 * weights), (factors, factors[:, None] * weights)):
        ours, expected = moments.scaled(factor), moments_of(values, each, full)
        assert_close(ours.count, expected.count)
        assert_close(ours.mean, expected.mean)
        assert_close(ours.scatter, expected.scatter)


@COVARIANCES
@given(seed=seeds, num_tokens=st.integers(0, 6), dim=st.integers(1, 3))
def test_posterior_obeys_bayes_rule_at_every_parameter(full: bool, seed: int, num_tokens: int, dim: int):
    prior = some_components(dim=dim, full=full, seed=seed)
    values, weights = 2 * draw(num_tokens, dim, seed=seed + 5), draw(num_tokens, seed=seed + 6).abs()
    posterior = prior.posterior(moments_of(values, weights, full)) if num_tokens else prior
    evidence = posterior.log_normaliser() - prior.log_normaliser() - 0.5 * LOG_2PI * dim * weights.sum()
    for other in range(3):
        loc = 2 * draw(dim, seed=seed + 7 + other)
        precision = (
            positive_definite(dim=dim, seed=seed + 17 + other) if full else draw(dim, seed=seed + 17 + other).exp()
        )
        likelihood = sum_of_log_densities(values, weights, loc, precision, full) if num_tokens else 0.0
        log_prior, log_posterior = prior.log_density(loc, precision), posterior.log_density(loc, precision)
        assert_close(log_prior + likelihood - log_posterior, evidence)


def sequential_log_evidence(values: Tensor, prior: NormalGamma) -> float:
    """One token after another, each a multivariate Student t given those before it (full covariances)."""
    loc, strength, shape, rate = prior.loc, float(prior.strength), float(prior.shape), prior.rate
    total = 0.0
    for value in values:
        scale = rate * (strength + 1) / (shape * strength)
        total += float(scipy.stats.multivariate_t(loc.numpy(), scale.numpy(), 2 * shape).logpdf(value.numpy()))
        away = value - loc
        rate = rate + 0.5 * strength / (strength + 1) * torch.outer(away, away)
        loc, strength, shape = loc + away / (strength + 1), strength + 1, shape + 0.5
    return total


@COVARIANCES
@given(seed=seeds, num_tokens=st.integers(1, 6), dim=st.integers(1, 3))
def test_difference_of_normalisers_is_the_log_evidence_of_the_tokens(full: bool, seed: int, num_tokens: int, dim: int):
    values, prior = 2 * draw(num_tokens, dim, seed=seed + 9), some_components(dim=dim, full=full, seed=seed)
    posterior = prior.posterior(moments_of(values, torch.ones(num_tokens, dtype=torch.float64), full))
    ours = posterior.log_normaliser() - prior.log_normaliser() - 0.5 * LOG_2PI * dim * num_tokens
    if full:
        expected = sequential_log_evidence(values, prior)
    else:
        strength, shape = float(prior.strength), float(prior.shape)
        axes = [
            oracles.Prior(1.0, float(m), strength, shape, float(b)) for m, b in zip(prior.loc, prior.rate, strict=True)
        ]
        expected = sum(oracles.log_predictive(values[:, d].tolist(), axis) for d, axis in enumerate(axes))
    assert_close(ours, expected)


def test_log_density_equals_scipy():
    loc = draw(3, seed=8)
    diagonal, precision = some_components(dim=3, full=False), draw(3, seed=9).exp()
    expected = scipy.stats.gamma(float(diagonal.shape), scale=1 / diagonal.rate.numpy()).logpdf(precision.numpy())
    scale = (diagonal.strength * precision).rsqrt().numpy()
    expected = expected + scipy.stats.norm(diagonal.loc.numpy(), scale).logpdf(loc.numpy())
    assert_close(diagonal.log_density(loc, precision), expected.sum())
    full, precision = some_components(dim=3, full=True), positive_definite(dim=3, seed=9)
    wishart = scipy.stats.wishart(2 * float(full.shape) + 2, torch.linalg.inv(2 * full.rate).numpy())
    covariance = torch.linalg.inv(full.strength * precision).numpy()
    normal = scipy.stats.multivariate_normal(full.loc.numpy(), covariance)
    assert_close(full.log_density(loc, precision), wishart.logpdf(precision.numpy()) + normal.logpdf(loc.numpy()))


def test_full_covariances_in_one_dimension_are_the_diagonal_model():
    one = some_components(2, 3, dim=1, full=False)
    full = NormalGamma(one.loc, one.strength, one.shape, one.rate[..., None], True)
    values, weights = draw(5, 1, seed=5), draw(3, 5, seed=6).abs()
    assert_close(full.log_normaliser(), one.log_normaliser())
    assert_close(full.expected_log_det(), one.expected_log_det())
    assert_close(full.expected_precision()[..., 0], one.expected_precision())
    assert_close(full.covariance()[..., 0], one.covariance())
    loc, precision = draw(2, 3, 1, seed=7), draw(2, 3, 1, seed=8).exp()
    assert_close(full.log_density(loc, precision[..., None]), one.log_density(loc, precision))
    ours = full.posterior(moments_of(values, weights, full=True))
    assert_close(ours.rate[..., 0], one.posterior(moments_of(values, weights, full=False)).rate)


@COVARIANCES
def test_expectations_are_the_derivatives_of_the_log_normaliser(full: bool):
    components = some_components(4, dim=3, full=full)
    shape, rate = components.shape.clone().requires_grad_(), components.rate.clone().requires_grad_()
    NormalGamma(components.loc, components.strength, shape, rate, full).log_normaliser().sum().backward()
    assert shape.grad is not None
    assert rate.grad is not None
    assert_close(components.expected_log_det(), shape.grad)
    expected = -0.5 * (rate.grad + rate.grad.mT) if full else -rate.grad
    assert_close(components.expected_precision(), expected)
    if full:
        eye = torch.eye(3, dtype=torch.float64).expand(4, 3, 3)
        assert_close(components.covariance() @ components.expected_precision(), eye)
    else:
        assert_close(components.covariance() * components.expected_precision(), torch.ones(4, 3))


def draws_of(components: NormalGamma, num_draws: int) -> tuple[Tensor, Tensor]:
    """Precisions and means of one component, by scipy."""
    rng, a = np.random.default_rng(0), float(components.shape)
    dim = len(components.loc)
    if components.full:
        wishart = scipy.stats.wishart(2 * a + dim - 1, torch.linalg.inv(2 * components.rate).numpy())
        precision = torch.from_numpy(wishart.rvs(num_draws, random_state=rng))
    else:
        gamma = scipy.stats.gamma(a, scale=1 / components.rate.numpy())
        precision = torch.from_numpy(gamma.rvs((num_draws, dim), random_state=rng))
    matrix = components.strength * (precision if components.full else precision.diag_embed())
    noise = torch.from_numpy(rng.standard_normal((num_draws, dim, 1)))
    # L' x = noise gives x the precision L L'
    away = torch.linalg.solve_triangular(torch.linalg.cholesky(matrix).mT, noise, upper=True)
    return precision, components.loc + away[..., 0]


@COVARIANCES
def test_expectations_are_within_six_standard_errors_of_monte_carlo(full: bool):
    components, tokens = some_components(dim=3, full=full), draw(4, 3, seed=5)
    precision, loc = draws_of(components, 20_000)
    matrix = precision if full else precision.diag_embed()
    assert_mean_is(precision, components.expected_precision())
    assert_mean_is(matrix.logdet(), components.expected_log_det())
    assert_mean_is(loc, components.loc)
    away = tokens - loc[:, None]
    quadratic = torch.einsum("snd,sde,sne->sn", away, matrix, away)
    samples = 0.5 * (matrix.logdet()[:, None] - 3 * LOG_2PI - quadratic)
    natural = pack(*(part[None, None] for part in components.expected_natural()))
    assert_mean_is(samples, (natural @ token_features(tokens[None], full))[0, 0])


def test_a_variance_has_the_same_marginal_under_full_and_diagonal_covariances():
    full = some_components(dim=3, full=True)
    rate = full.rate.diagonal()
    diagonal = NormalGamma(full.loc, full.strength, full.shape, rate, False)
    var = torch.linalg.inv(draws_of(full, 20_000)[0]).diagonal(dim1=-2, dim2=-1)
    assert_mean_is(1 / var, diagonal.expected_precision())
    assert_mean_is(-var.log(), full.shape.digamma() - rate.log())
    for d in range(3):
        marginal = scipy.stats.invgamma(float(full.shape), scale=float(rate[d]))
        assert scipy.stats.kstest(var[:, d].numpy(), marginal.cdf).pvalue > 1e-3
        drawn = 1 / draws_of(diagonal, 20_000)[0][:, d]
        assert scipy.stats.kstest(drawn.numpy(), marginal.cdf).pvalue > 1e-3


@COVARIANCES
def test_shifting_the_origin_shifts_the_means_alone(full: bool):
    components, origin = some_components(dim=3, full=full), draw(3, seed=7)
    moved = components.shifted(-origin)
    assert_close(moved.loc, components.loc - origin)
    assert moved.rate is components.rate
    assert moved.full is full
    precision, loc = draws_of(components, 5)
    assert_close(moved.log_density(loc - origin, precision), components.log_density(loc, precision))


def test_dirichlet_normaliser_and_expected_logarithms_equal_scipy_and_its_derivative():
    concentration = draw(2, 4, seed=1).exp().requires_grad_()
    weights = draw(2, 4, seed=2).softmax(-1)
    ours = dirichlet_log_normaliser(concentration)
    for b in range(2):
        density = scipy.stats.dirichlet(concentration[b].detach().numpy()).logpdf(weights[b].numpy())
        assert_close(((concentration[b] - 1) * weights[b].log()).sum() - ours[b], float(density))
    ours.sum().backward()
    assert concentration.grad is not None
    assert_close(expected_log_weights(concentration.detach()), concentration.grad)
