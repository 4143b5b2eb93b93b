"""The local model's programs: densities against scipy, masks, and what the prior refuses."""

import re
from dataclasses import replace

import jaxtyping
import oracles
import pyro
import pytest
import scipy.stats
import torch
from contracts import draw
from tolerances import CONVERGED, assert_close, assert_mean_is
from torch import Tensor

from psa.inference import em
from psa.models.local_mixture import (
    LocalMixturePrior,
    draw_components,
    likelihood_mixture,
    local_mixture,
    mixture_log_likelihood,
)

PRIOR = LocalMixturePrior(0.6, torch.tensor([0.5, -1.0, 0.0]), 0.3, 1.4, torch.tensor([0.5, 1.0, 2.0]))
CORRELATED = torch.tensor([[1.0, 0.4, 0.0], [0.4, 0.5, -0.3], [0.0, -0.3, 2.0]], dtype=torch.float64)
COVARIANCES = pytest.mark.parametrize("covariance", ["diagonal", "full"])


def prior_of(covariance: str) -> LocalMixturePrior:
    return PRIOR if covariance == "diagonal" else replace(PRIOR, precision_rate=CORRELATED)


def latents(batch: int, num_tokens: int, num_slots: int, dim: int, covariance: str = "diagonal") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    precision = draw(batch, num_slots, dim, seed=2).exp()
    if covariance == "full":
        factor = draw(batch, num_slots, dim, dim, seed=2)
        precision = precision.diag_embed() + factor @ factor.mT
    return {
        "weights": draw(batch, 1, num_slots, seed=1).softmax(-1),
        "precision": precision,
        "loc": draw(batch, num_slots, dim, seed=3),
        "assignment": torch.randint(num_slots, (batch, num_tokens), generator=generator),
    }


def trace_of(tokens: Tensor, values: dict[str, Tensor], mask: Tensor | None = None) -> pyro.poutine.Trace:
    program = pyro.poutine.condition(local_mixture, values)
    covariance = "full" if values["precision"].ndim == 4 else "diagonal"
    trace = pyro.poutine.trace(program).get_trace(
        tokens, prior_of(covariance), values["loc"].shape[1], mask, covariance
    )
    trace.compute_log_prob()
    return trace


def scipy_token(tokens: Tensor, values: dict[str, Tensor], b: int, n: int) -> float:
    """log p(c_bn) + log p(v_bn | c_bn)."""
    k = int(values["assignment"][b, n])
    precision = values["precision"][b, k]
    covariance = torch.linalg.inv(precision.diag() if precision.ndim == 1 else precision).numpy()
    density = scipy.stats.multivariate_normal(values["loc"][b, k].numpy(), covariance).logpdf(tokens[b, n].numpy())
    return float(values["weights"][b, 0, k].log()) + float(density)


def scipy_parameters(values: dict[str, Tensor]) -> float:
    """log p(pi) + log p(lambda) + log p(mu | lambda)."""
    total = 0.0
    loc0, rate0 = PRIOR.loc.double().numpy(), PRIOR.precision_rate.double().numpy()
    for b in range(len(values["loc"])):
        weights = values["weights"][b, 0].numpy()
        total += float(scipy.stats.dirichlet([PRIOR.concentration] * len(weights)).logpdf(weights))
        for k in range(values["loc"].shape[1]):
            precision, loc = values["precision"][b, k].numpy(), values["loc"][b, k].numpy()
            if precision.ndim == 2:
                wishart = scipy.stats.wishart(2 * PRIOR.precision_shape + 2, torch.linalg.inv(2 * CORRELATED).numpy())
                covariance = torch.linalg.inv(PRIOR.loc_strength * values["precision"][b, k]).numpy()
                total += wishart.logpdf(precision) + scipy.stats.multivariate_normal(loc0, covariance).logpdf(loc)
                continue
            total += scipy.stats.gamma(PRIOR.precision_shape, scale=1 / rate0).logpdf(precision).sum()
            total += scipy.stats.norm(loc0, (PRIOR.loc_strength * precision) ** -0.5).logpdf(loc).sum()
    return total


def test_rooms_are_checked_by_the_import_hook():
    with pytest.raises(jaxtyping.TypeCheckError, match="dot_natural"):
        em.dot_natural(torch.zeros(2, 3, 4), torch.zeros(2, 1, 5))
    with pytest.raises(jaxtyping.TypeCheckError, match="local_mixture"):
        local_mixture(torch.zeros(2, 3), LocalMixturePrior(), 2)


@COVARIANCES
def test_log_joint_equals_scipy(covariance: str):
    tokens, values = 2 * draw(2, 5, 3, seed=4), latents(2, 5, 4, 3, covariance)
    expected = scipy_parameters(values) + sum(scipy_token(tokens, values, b, n) for b in range(2) for n in range(5))
    assert_close(trace_of(tokens, values).log_prob_sum(), expected)


@COVARIANCES
def test_mask_multiplies_the_whole_factor_of_a_token(covariance: str):
    tokens, values = 2 * draw(2, 5, 3, seed=4), latents(2, 5, 4, 3, covariance)
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1]]) > 0
    trace = trace_of(tokens, values, mask)
    kept = [(b, n) for b in range(2) for n in range(5) if mask[b, n]]
    assert_close(
        trace.log_prob_sum(), scipy_parameters(values) + sum(scipy_token(tokens, values, b, n) for b, n in kept)
    )
    for site in ("assignment", "values"):
        log_prob = trace.nodes[site]["log_prob"]
        assert not bool(log_prob[~mask].any())
        assert bool((log_prob[mask] != 0).all())
    with_padding = torch.where(mask[..., None], tokens, torch.full_like(tokens, torch.nan))
    assert_close(trace_of(with_padding, values, mask).log_prob_sum(), trace.log_prob_sum())


@COVARIANCES
def test_weights_multiply_the_whole_factor_of_a_token(covariance: str):
    tokens, values = 2 * draw(2, 5, 3, seed=4), latents(2, 5, 4, 3, covariance)
    weights = torch.tensor([[0.5, 2.0, 0.0, 1e-3, 1.0], [0.0, 0.3, 1.7, 1.0, 0.0]], dtype=torch.float64)
    kept = [(b, n) for b in range(2) for n in range(5) if weights[b, n] > 0]
    expected = sum(weights[b, n] * scipy_token(tokens, values, b, n) for b, n in kept)
    nothing = torch.where((weights > 0)[..., None], tokens, torch.full_like(tokens, torch.nan))
    for given in (tokens, nothing):
        trace = trace_of(given, values, weights)
        assert_close(trace.log_prob_sum(), scipy_parameters(values) + expected)
        ours = trace.nodes["assignment"]["log_prob"] + trace.nodes["values"]["log_prob"]
        for b, n in kept:
            assert_close(ours[b, n], weights[b, n] * scipy_token(tokens, values, b, n))
    ones = (weights > 0).double()
    assert_close(trace_of(tokens, values, ones).log_prob_sum(), trace_of(tokens, values, ones > 0).log_prob_sum())


def test_tiny_weights_are_not_rounded_up():
    tokens, values = 2 * draw(1, 3, 3, seed=4), latents(1, 3, 2, 3)
    values["weights"] = torch.tensor([[[1 - 1e-30, 1e-30]]], dtype=torch.float64)
    values["assignment"] = torch.ones(1, 3, dtype=torch.int64)
    log_prob = trace_of(tokens, values).nodes["assignment"]["log_prob"]
    assert_close(log_prob, torch.full((1, 3), 1e-30, dtype=torch.float64).log())


def test_sites_have_the_documented_shapes_and_plates():
    trace = pyro.poutine.trace(local_mixture).get_trace(draw(2, 5, 3, seed=1), PRIOR, 4)
    shapes = {"weights": (2, 1, 4), "precision": (2, 4, 3), "loc": (2, 4, 3), "assignment": (2, 5), "values": (2, 5, 3)}
    for site, shape in shapes.items():
        assert trace.nodes[site]["value"].shape == shape
    assert {"images", "slots", "tokens"} <= set(trace.nodes)


def test_full_covariances_add_an_axis_to_the_precision_alone():
    arguments = (draw(2, 5, 3, seed=1), prior_of("full"), 4, None, "full")
    trace = pyro.poutine.trace(local_mixture).get_trace(*arguments)
    shapes = {"weights": (2, 1, 4), "precision": (2, 4, 3, 3), "loc": (2, 4, 3), "assignment": (2, 5)}
    for site, shape in shapes.items():
        assert trace.nodes[site]["value"].shape == shape


@COVARIANCES
def test_components_draw_the_precision_before_the_loc(covariance: str):
    components = prior_of(covariance).components(draw(1, 3, seed=1), covariance)
    with pyro.plate("draws", 2):
        trace = pyro.poutine.trace(draw_components).get_trace(components)
    sites = [name for name, node in trace.nodes.items() if node["type"] == "sample" and name != "draws"]
    assert sites == ["precision", "loc"]
    assert trace.nodes["_RETURN"]["value"] == tuple(trace.nodes[site]["value"] for site in sites)


def test_full_prior_draws_have_the_priors_moments():
    pyro.set_rng_seed(0)
    components = prior_of("full").components(draw(1, 3, seed=1), "full")
    with pyro.plate("draws", 20_000):
        precision, loc = draw_components(components)
    assert_mean_is(precision, components.expected_precision())
    assert_mean_is(precision.logdet(), components.expected_log_det())
    away = loc - components.loc
    assert_mean_is(away, 0.0)
    standardised = PRIOR.loc_strength * torch.einsum("sd,sde,se->s", away, precision, away)
    assert_mean_is(standardised, 3.0)


def test_prior_draws_have_the_priors_moments():
    pyro.set_rng_seed(0)
    trace = pyro.poutine.trace(local_mixture).get_trace(torch.zeros(20_000, 1, 3).double(), PRIOR, 2)
    precision, weights = trace.nodes["precision"]["value"], trace.nodes["weights"]["value"]
    assert_mean_is(precision[:, 0], PRIOR.precision_shape / PRIOR.precision_rate.double())
    assert_mean_is(weights[:, 0, 0], 0.5)
    standardised = (trace.nodes["loc"]["value"] - PRIOR.loc) * (PRIOR.loc_strength * precision).sqrt()
    assert_mean_is(standardised[:, 0], 0.0)
    assert_mean_is(standardised[:, 0] ** 2, 1.0)
    first = (trace.nodes["assignment"]["value"][:, 0] == 0).double()
    assert_mean_is(first - weights[:, 0, 0], 0.0)


@pytest.mark.parametrize("masked", [False, True])
def test_likelihood_mixture_and_its_log_likelihood_equal_scipy(masked: bool):
    tokens, loc, var = 2 * draw(2, 7, 3, seed=1), draw(2, 4, 3, seed=2), draw(2, 4, 3, seed=3).exp()
    weights = draw(2, 4, seed=4).softmax(1)
    mask = torch.arange(7) < torch.tensor([[7], [4]]) if masked else None
    tokens_in = tokens if mask is None else torch.where(mask[..., None], tokens, torch.full_like(tokens, torch.nan))
    ours = mixture_log_likelihood(tokens_in, weights, loc, var, mask)
    trace = pyro.poutine.trace(likelihood_mixture).get_trace(tokens_in, weights, loc, var, mask)
    assert_close(trace.log_prob_sum(), ours.sum())
    for b in range(2):
        kept = tokens[b] if mask is None else tokens[b, mask[b]]
        assert_close(ours[b], oracles.power_log_likelihood(kept, weights[b], loc[b], var[b]))


def test_log_likelihood_allows_empty_slots_and_far_origins():
    tokens, loc, var = 2 * draw(1, 7, 3, seed=1), draw(1, 3, 3, seed=2), draw(1, 3, 3, seed=3).exp()
    weights = torch.tensor([[0.4, 0.6, 0.0]], dtype=torch.float64)
    expected = mixture_log_likelihood(tokens, weights[:, :2], loc[:, :2], var[:, :2])
    assert_close(mixture_log_likelihood(tokens, weights, loc, var), expected)
    assert_close(mixture_log_likelihood(tokens + 1e6, weights, loc + 1e6, var), expected, CONVERGED)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"concentration": 0.0}, "concentration must be a positive number, got 0.0"),
        ({"concentration": float("inf")}, "concentration must be a positive number, got inf"),
        ({"loc_strength": -1.0}, "loc_strength must be a positive number, got -1.0"),
        ({"precision_shape": float("nan")}, "precision_shape must be a positive number, got nan"),
        ({"precision_rate": 0.0}, "precision_rate must be positive: a number"),
        ({"precision_rate": torch.tensor([1.0, -1.0])}, "precision_rate must be positive: a number"),
        ({"precision_rate": torch.ones(2, 2)}, "precision_rate must be positive: a number"),
        ({"precision_rate": torch.ones(2, 3)}, "precision_rate must be positive: a number"),
        ({"precision_rate": torch.ones(2, 2, 2)}, "precision_rate must be positive: a number"),
        ({"precision_rate": torch.tensor([[1.0, 0.5], [0.0, 1.0]])}, "a positive definite matrix, got tensor"),
        ({"precision_rate": float("inf")}, "precision_rate must be positive: a number"),
        ({"loc": float("nan")}, "loc must be finite, a number or"),
        ({"loc": torch.zeros(2, 2)}, "loc must be finite, a number or"),
    ],
)
def test_prior_refuses_values_outside_its_support(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        LocalMixturePrior(**options)


@pytest.mark.parametrize("name", ["loc", "precision_rate"])
def test_prior_refuses_another_number_of_axes(name: str):
    prior = LocalMixturePrior(**{name: torch.ones(2)})
    with pytest.raises(ValueError, match=f"{name} has 2 axes, the tokens have 3"):
        prior.components(torch.zeros(4, 3))


def test_prior_axes_follow_the_tokens_dtype():
    prior = LocalMixturePrior(loc=0.5, precision_rate=torch.tensor([1.0, 2.0])).components(draw(4, 2, seed=1))
    assert prior.loc.dtype == prior.rate.dtype == prior.shape.dtype == torch.float64
    assert prior.loc.tolist() == [0.5, 0.5]
    assert prior.rate.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("rate", [0.7, torch.tensor([0.5, 2.0]), torch.tensor([[1.0, 0.3], [0.3, 0.5]])])
def test_full_components_have_the_rate_as_a_matrix(rate: float | Tensor):
    components = LocalMixturePrior(precision_rate=rate).components(draw(4, 2, seed=1), "full")
    given = torch.as_tensor(rate, dtype=torch.float64)
    assert_close(components.rate, given if given.ndim == 2 else given * torch.eye(2, dtype=torch.float64))
    assert components.full
    assert components.rate.dtype == torch.float64


@pytest.mark.parametrize(
    ("rate", "covariance", "message"),
    [
        (1.0, "spherical", "covariance must be one of diagonal, full, got 'spherical'"),
        (torch.eye(3), "diagonal", "precision_rate must be a number or (D,) where covariances are diagonal, got a"),
        (torch.eye(2), "full", "precision_rate has 2 axes, the tokens have 3"),
        (torch.ones(2), "full", "precision_rate has 2 axes, the tokens have 3"),
    ],
)
def test_components_refuse_a_rate_that_does_not_fit(rate: float | Tensor, covariance: str, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        LocalMixturePrior(precision_rate=rate).components(torch.zeros(4, 3), covariance)
