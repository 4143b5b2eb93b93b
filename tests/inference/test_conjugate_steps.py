"""Variational Bayes against Pyro's TraceEnum_ELBO, enumeration, scipy and torch.distributions."""

import math

import oracles
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from contracts import assert_same, draw
from hypothesis import given
from hypothesis import strategies as st
from pyro.infer import TraceEnum_ELBO
from tolerances import ALGEBRA, assert_close, assert_mean_is
from torch import Tensor

from psa.conjugate import NormalGamma, gaussian_log_density, pack, squared_distances, token_features
from psa.inference.attention import attend, slot_scores
from psa.inference.conjugate_steps import conjugate_update, parameters_of, variational_natural
from psa.inference.em import MixtureState
from psa.inference.variants import build
from psa.models.local_mixture import LocalMixturePrior, local_mixture
from psa.records import SlotPosterior

PRIORS = [
    oracles.Prior(alpha=1.0, loc=0.0, strength=0.01, shape=1.0, rate=1.0),
    oracles.Prior(alpha=0.1, loc=0.7, strength=0.5, shape=2.5, rate=0.3),
]


def prior_of(prior: oracles.Prior) -> LocalMixturePrior:
    return LocalMixturePrior(prior.alpha, prior.loc, prior.strength, prior.shape, prior.rate)


def fit(
    tokens: Tensor, prior: LocalMixturePrior, num_slots: int, mask: Tensor | None = None, **options
) -> SlotPosterior:
    dim = tokens.shape[-1]
    module = build("vb", num_slots=num_slots, input_dim=dim, slot_dim=dim, prior=prior, **options)
    with torch.no_grad():
        return module(tokens, mask)


def guide_of(posterior: SlotPosterior, mask: Tensor | None):
    """q(pi) q(mu, lambda) q(c), c enumerated in the guide, lambda drawn before mu."""
    p = posterior

    def guide(tokens: Tensor, *_: object) -> None:
        batch, num_tokens, _ = tokens.shape
        keep = torch.ones(batch, num_tokens, dtype=torch.bool) if mask is None else mask
        with pyro.plate("images", batch, dim=-2):
            pyro.sample("weights", dist.Dirichlet(p.concentration[:, None]))
            with pyro.plate("slots", p.loc.shape[1], dim=-1):
                precision = pyro.sample(
                    "precision", dist.Gamma(p.precision_shape[..., None], p.precision_rate).to_event(1)
                )
                scale = (p.loc_strength[..., None] * precision).rsqrt()
                pyro.sample("loc", dist.Normal(p.loc, scale).to_event(1))
            with pyro.plate("tokens", num_tokens, dim=-1), pyro.poutine.mask(mask=keep):
                probs = p.responsibilities.transpose(1, 2)
                pyro.sample("assignment", dist.Categorical(probs), infer={"enumerate": "parallel"})

    return guide


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("num_iterations", [1, 4])
@pytest.mark.parametrize("prior", PRIORS)
def test_elbo_equals_every_single_particle_of_pyro(prior: oracles.Prior, num_iterations: int, masked: bool):
    tokens = 2 * draw(2, 7, 3, seed=1) + 5
    mask = torch.arange(7) < torch.tensor([[7], [4]]) if masked else None
    ours = prior_of(prior)
    posterior = fit(tokens, ours, 3, mask, num_iterations=num_iterations)
    assert posterior.elbo is not None
    estimator = TraceEnum_ELBO(max_plate_nesting=2, num_particles=1)
    for seed in range(6):
        pyro.set_rng_seed(seed)
        loss = estimator.loss(local_mixture, guide_of(posterior, mask), tokens, ours, 3, mask)
        assert_close(-loss, posterior.elbo.sum())


def test_tempered_fit_still_reports_the_bound_of_its_posterior():
    tokens, prior = 2 * draw(1, 7, 2, seed=1), prior_of(PRIORS[0])
    for power in (0.3, 1.7):
        posterior = fit(tokens, prior, 2, power=power)
        assert posterior.elbo is not None
        pyro.set_rng_seed(0)
        loss = TraceEnum_ELBO(max_plate_nesting=2).loss(local_mixture, guide_of(posterior, None), tokens, prior, 2)
        assert_close(-loss, posterior.elbo.sum())


@given(
    seed=st.integers(0, 10_000),
    num_tokens=st.integers(1, 10),
    num_slots=st.integers(1, 4),
    prior=st.sampled_from(PRIORS),
    start=st.sampled_from(["farthest", "standard-normal", "kmeans++"]),
)
def test_elbo_never_falls(seed: int, num_tokens: int, num_slots: int, prior: oracles.Prior, start: str):
    tokens = 3 * draw(2, num_tokens, 2, seed=seed) + 1
    initial = build(
        "vb", num_slots=num_slots, input_dim=2, slot_dim=2, initialiser=start, num_iterations=1
    )(tokens, generator=torch.Generator().manual_seed(seed)).initial_loc  # fmt: skip
    module = build("vb", num_slots=num_slots, input_dim=2, slot_dim=2, prior=prior_of(prior))
    elbos = torch.stack([module(tokens, initial=initial, num_iterations=t).elbo for t in range(1, 6)])
    assert bool((elbos[1:] - elbos[:-1] >= -ALGEBRA * (1 + elbos[:-1].abs())).all())


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("seed", range(3))
def test_elbo_is_at_most_the_exact_evidence(prior: oracles.Prior, seed: int):
    tokens = 2 * draw(1, 5, 2, seed=seed)
    exact = oracles.exact_log_evidence(tokens[0], prior, 2)
    for options in ({"num_iterations": 1}, {"num_iterations": 30}, {"num_iterations": 5, "power": 0.3}):
        elbo = fit(tokens, prior_of(prior), 2, **options).elbo
        assert float(elbo) <= exact


def test_elbo_plus_log_two_nearly_reaches_the_evidence_of_two_separated_groups():
    tokens = draw(1, 8, 1, seed=0)
    tokens[0, :4] -= 5
    tokens[0, 4:] += 5
    exact = oracles.exact_log_evidence(tokens[0], PRIORS[0], 2)
    gap = exact - float(fit(tokens, prior_of(PRIORS[0]), 2, num_iterations=50).elbo) - math.log(2)
    assert 0 < gap < 0.03


def test_elbo_of_one_slot_is_the_exact_evidence():
    for prior in PRIORS:
        tokens = 2 * draw(1, 6, 2, seed=3)
        elbo = fit(tokens, prior_of(prior), 1, num_iterations=1).elbo
        # mean field has q(mu, lambda) joint, so with one slot nothing is left out
        assert_close(elbo[0], oracles.exact_log_evidence(tokens[0], prior, 1))


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("weighted", [False, True])
def test_conjugate_update_is_the_textbooks(prior: oracles.Prior, weighted: bool):
    values, scores = 2 * draw(2, 6, 3, seed=1), draw(2, 4, 6, seed=2)
    token_weights = draw(2, 6, seed=3).abs() if weighted else None
    attention = attend(scores, token_weights)
    weighted = attention.responsibilities * (1 if token_weights is None else token_weights[:, None])
    components = prior_of(prior).components(values)
    state = conjugate_update(weighted @ token_features(values, full=False).mT, prior.alpha, components)
    for b in range(2):
        for k in range(4):
            w = attention.responsibilities[b, k] * (1 if token_weights is None else token_weights[b])
            assert_close(state.concentration[b, k], prior.alpha + w.sum())
            for d in range(3):
                expected = oracles.normal_gamma_posterior(values[b, :, d].tolist(), w.tolist(), prior)
                ours = (
                    state.loc,
                    state.loc_strength[..., None],
                    state.precision_shape[..., None],
                    state.precision_rate,
                )
                for one, other in zip(ours, expected, strict=True):
                    assert_close(one[b, k, d if one.shape[-1] > 1 else 0], other)
    assert_close(state.var, state.precision_rate / state.precision_shape[..., None])
    assert_close(state.log_weights.exp(), state.concentration / state.concentration.sum(1, keepdim=True))


def test_slot_without_tokens_returns_to_the_prior():
    prior = LocalMixturePrior(0.3, torch.tensor([1.0, -2.0]).double(), 0.5, 2.0, torch.tensor([0.5, 3.0]).double())
    tokens = draw(1, 6, 2, seed=1)
    start = MixtureState(tokens[:, :2], torch.ones(1, 2, 2).double(), torch.tensor([[0.0, -torch.inf]]).double())
    state = variational_start(start, prior)
    posterior = build("vb", num_slots=2, input_dim=2, slot_dim=2, prior=prior)(tokens, initial=state, num_iterations=1)
    assert_close(posterior.concentration[0, 1], 0.3)
    assert_close(posterior.loc[0, 1], prior.loc)
    assert_close(posterior.loc_strength[0, 1], 0.5)
    assert_close(posterior.precision_shape[0, 1], 2.0)
    assert_close(posterior.precision_rate[0, 1], prior.precision_rate)


def variational_start(state: MixtureState, prior: LocalMixturePrior) -> MixtureState:
    """q whose second slot no token can choose: E[log pi] of a vanishing concentration."""
    concentration = torch.tensor([[6.0, 1e-3]], dtype=torch.float64)
    ones = torch.ones(1, 2, dtype=torch.float64)
    return MixtureState(
        state.loc, state.var, state.log_weights, None, concentration, ones, ones, ones[..., None] * state.var
    )


def normal_gammas(batch: int, num_slots: int, dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(mean, strength, shape, rate)."""
    strength, shape = draw(batch, num_slots, seed=2).exp(), 1 + draw(batch, num_slots, seed=3).exp()
    return draw(batch, num_slots, dim, seed=1), strength, shape, draw(batch, num_slots, dim, seed=4).exp()


def expected_log_density(tokens: Tensor, components: NormalGamma) -> Tensor:
    return pack(*components.expected_natural()) @ token_features(tokens, components.full)


def test_expected_log_density_is_within_six_standard_errors_of_monte_carlo():
    loc, strength, shape, rate = normal_gammas(1, 2, 3)
    tokens = draw(1, 4, 3, seed=5)
    torch.manual_seed(0)
    precision = torch.distributions.Gamma(shape[..., None].expand_as(rate), rate).sample((40_000,))
    mean = torch.distributions.Normal(loc, (strength[..., None] * precision).rsqrt()).sample()
    density = torch.distributions.Normal(mean[:, :, :, None], precision[:, :, :, None].rsqrt())
    samples = density.log_prob(tokens[:, None]).sum(-1)
    assert_mean_is(samples, expected_log_density(tokens, NormalGamma(loc, strength, shape, rate)))


def test_gaussian_log_density_equals_scipy():
    tokens, loc, var = draw(2, 5, 3, seed=1), draw(2, 4, 3, seed=2), draw(2, 4, 3, seed=3).exp()
    ours, distances = gaussian_log_density(tokens, loc, var), squared_distances(tokens, loc, var)
    for b in range(2):
        for k in range(4):
            normal = scipy.stats.multivariate_normal(loc[b, k].numpy(), var[b, k].diag().numpy())
            assert_close(ours[b, k], torch.from_numpy(normal.logpdf(tokens[b].numpy())))
            for n in range(5):
                assert_close(distances[b, k, n], ((tokens[b, n] - loc[b, k]) ** 2 * var[b, k]).sum())


def test_variational_scores_are_expectations_under_the_posterior():
    posterior = fit(2 * draw(1, 7, 2, seed=1), prior_of(PRIORS[1]), 3)
    state = state_of(posterior)
    keys = draw(1, 4, 2, seed=9)
    log_density = expected_log_density(keys, parameters_of(state)[1])
    a = posterior.concentration[0]
    for k in range(3):
        log_weight = scipy.special.digamma(float(a[k])) - scipy.special.digamma(float(a.sum()))
        scores = slot_scores(keys, variational_natural(state, power=0.5))
        assert_close(scores[0, k], log_weight + 0.5 * log_density[0, k])


def test_variational_scores_refuse_a_state_without_parameters():
    state = MixtureState(draw(1, 2, 3, seed=1), torch.ones(1, 2, 3).double(), torch.zeros(1, 2).double())
    with pytest.raises(ValueError, match="variational agreement needs the state of a conjugate update"):
        variational_natural(state)


def state_of(p: SlotPosterior) -> MixtureState:
    parameters = (p.concentration, p.loc_strength, p.precision_shape, p.precision_rate)
    return MixtureState(p.loc, p.var, p.weights.log(), p.covariance, *parameters)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_steps_continue_from_a_posterior(covariance: str):
    tokens = 3 * draw(2, 9, 2, seed=1)
    module = build("vb", num_slots=3, input_dim=2, slot_dim=2, variance_floor=1e-9, covariance=covariance)
    whole, halfway = (module(tokens, num_iterations=t) for t in (5, 2))
    for middle in (halfway, state_of(halfway)):
        rest = module(tokens, initial=middle, num_iterations=3)
        assert_close(rest.elbo, whole.elbo)
        assert_close(rest.loc, whole.loc)
        assert_close(rest.precision_rate, whole.precision_rate)


def test_a_posteriors_parameters_do_not_outlive_a_step_that_does_not_carry_them():
    tokens = 3 * draw(2, 9, 2, seed=1)
    posterior = fit(tokens, prior_of(PRIORS[0]), 3)
    for start in (posterior, state_of(posterior)):
        em = build("em", num_slots=3, input_dim=2, slot_dim=2)(tokens, initial=start)
        assert em.concentration is None
        assert em.precision_rate is None


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_mean_start_counts_as_if_every_slot_owned_its_share(covariance: str):
    tokens = 3 * draw(1, 8, 2, seed=1)
    initial, prior = tokens[:, :2], prior_of(PRIORS[1])
    module = build("vb", num_slots=2, input_dim=2, slot_dim=2, prior=prior, covariance=covariance)
    var, four = tokens.var(1, correction=0)[:, None].expand(1, 2, 2), torch.full((1, 2), 4.0, dtype=torch.float64)
    rate = prior.precision_rate + 0.5 * 4 * var
    rate = rate.diag_embed() if covariance == "full" else rate
    state = MixtureState(
        initial, var, (four / 8).log(), None, prior.concentration + four, prior.loc_strength + four,
        prior.precision_shape + four / 2, rate,
    )  # fmt: skip
    assert_same(module(tokens, initial=initial), module(tokens, initial=state))


def test_prior_axes_act_on_their_own_axis():
    tokens = 2 * draw(1, 9, 2, seed=1)
    loc, rate = torch.tensor([0.5, -1.0]).double(), torch.tensor([0.2, 3.0]).double()
    prior = LocalMixturePrior(1.0, loc, 0.4, 1.2, rate)
    swapped = LocalMixturePrior(1.0, loc.flip(0), 0.4, 1.2, rate.flip(0))
    one, other = fit(tokens, prior, 2), fit(tokens.flip(-1), swapped, 2)
    assert_close(one.loc, other.loc.flip(-1))
    assert_close(one.elbo, other.elbo)
    assert not torch.allclose(one.elbo, fit(tokens, swapped, 2).elbo)


@pytest.mark.parametrize(
    "options",
    [{"projections": "q"}, {"projections": "qkv"}, {"normalise": True}, {"neural": True}],
    ids=["q", "qkv", "norms", "gru"],
)
def test_no_bound_is_reported_where_keys_are_not_the_tokens(options: dict):
    torch.manual_seed(0)
    module = build("vb", num_slots=2, input_dim=3, slot_dim=3, **options).double()
    assert module(draw(1, 6, 3, seed=1)).elbo is None
    assert build("em", num_slots=2, input_dim=3, slot_dim=3)(draw(1, 6, 3, seed=1)).elbo is None
