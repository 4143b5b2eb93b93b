"""The Gaussian members against scikit-learn, plain loops and the likelihood that exact EM raises."""

import warnings

import oracles
import pytest
import torch
from contracts import Problem, assert_same, draw, parameters_of, problems, scrambled
from hypothesis import given
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from tolerances import ALGEBRA, CONVERGED, assert_close
from torch import Tensor

from psa.inference.attention import attend, exp_or_zero, slot_scores
from psa.inference.em import MixtureState, mixture_natural, moments_update, variance_about
from psa.inference.slot_inference import SlotInference
from psa.inference.slot_moments import dense_moments
from psa.inference.variants import build
from psa.models.local_mixture import mixture_log_likelihood
from psa.records import SlotPosterior


def clusters(batch: int, num_tokens: int, dim: int, num_groups: int, seed: int, apart: float = 3.0) -> Tensor:
    """Normal groups of scale 1 whose means have scale ``apart``, about the origin."""
    centres = apart * draw(batch, num_groups, dim, seed=seed)
    index = torch.randint(num_groups, (batch, num_tokens), generator=torch.Generator().manual_seed(seed))
    tokens = centres.gather(1, index[..., None].expand(-1, -1, dim)) + draw(batch, num_tokens, dim, seed=seed + 1)
    return tokens - tokens.mean(1, keepdim=True)


def a_state(batch: int, num_slots: int, dim: int, seed: int) -> MixtureState:
    """Means, variances about 1 and weights, all different."""
    log_weights = (0.5 * draw(batch, num_slots, seed=seed)).log_softmax(1)
    var = (0.3 * draw(batch, num_slots, dim, seed=seed + 1)).exp()
    return MixtureState(3 * draw(batch, num_slots, dim, seed=seed + 2), var, log_weights)


def with_identity_projections(module: SlotInference) -> SlotInference:
    """W = I, no bias."""
    with torch.no_grad():
        for layer in (module.projections.query, module.projections.key, module.projections.value):
            if layer is not None:
                layer.weight.copy_(torch.eye(len(layer.weight)))
    return module


@pytest.mark.parametrize("seed", range(4))
def test_em_equals_scikit_learn_step_by_step(seed: int):
    num_slots, dim = 3, 2
    tokens = clusters(1, 60, dim, num_slots, seed)
    start = a_state(1, num_slots, dim, seed + 50)
    module = build("em", num_slots=num_slots, input_dim=dim, slot_dim=dim, variance_floor=0.0)
    before = None
    for steps in range(1, 9):
        reference = GaussianMixture(
            num_slots,
            covariance_type="diag",
            tol=0.0,
            reg_covar=0.0,
            max_iter=steps,
            init_params="random",
            means_init=start.loc[0].numpy(),
            weights_init=start.log_weights[0].exp().numpy(),
            precisions_init=start.var[0].reciprocal().numpy(),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            reference.fit(tokens[0].numpy())
        posterior = module(tokens, initial=start, num_iterations=steps)
        assert reference.n_iter_ == steps
        assert_close(posterior.loc[0], torch.from_numpy(reference.means_))
        assert_close(posterior.var[0], torch.from_numpy(reference.covariances_))
        assert_close(posterior.weights[0], torch.from_numpy(reference.weights_))
        if before is not None:  # the last E-step's: under the parameters one step earlier
            assert_close(posterior.responsibilities[0], torch.from_numpy(before.predict_proba(tokens[0].numpy())).T)
        before = reference


def likelihoods(module: SlotInference, tokens: Tensor, values: Tensor, initial: object, num_steps: int) -> Tensor:
    """(steps, B): the values' log likelihood after each number of steps."""
    posteriors = [module(tokens, initial=initial, num_iterations=t) for t in range(1, num_steps + 1)]
    return torch.stack([mixture_log_likelihood(values, p.weights, p.loc, p.var) for p in posteriors])


def worst_fall(trace: Tensor) -> float:
    """The most negative change, relative to 1 + |L|; 0 if it only rises."""
    change = trace[1:] - trace[:-1]
    return float((change / (1 + trace[:-1].abs())).clamp(max=0).min())


# A slot on one token takes the floor as its variance, where the expanded square rounds to about eps |v|^2 / floor:
# with the default floor of 1e-4 that alone is 1e-10 of the likelihood.
FLOOR = 1e-4
starts = st.builds(lambda seed: a_state(2, 3, 2, seed), st.integers(0, 10_000))


@given(start=starts, seed=st.integers(0, 10_000), num_tokens=st.integers(1, 12), floor=st.sampled_from([FLOOR, 0.05]))
def test_em_never_lowers_the_likelihood(start: MixtureState, seed: int, num_tokens: int, floor: float):
    tokens = clusters(2, num_tokens, 2, 3, seed)
    module = build("em", num_slots=3, input_dim=2, slot_dim=2, variance_floor=floor)
    trace = likelihoods(module, tokens, tokens, start, 6)
    first = mixture_log_likelihood(tokens, start.log_weights.exp(), start.loc, start.var)
    assert worst_fall(torch.cat([first[None], trace])) >= -ALGEBRA


@given(start=starts, seed=st.integers(0, 10_000), num_tokens=st.integers(1, 12))
def test_psa_proj_with_identity_queries_and_equal_keys_and_values_never_lowers_it(
    start: MixtureState, seed: int, num_tokens: int
):
    tokens, matrix = clusters(2, num_tokens, 4, 3, seed), draw(2, 4, seed=seed)
    module = build("psa-proj", num_slots=3, input_dim=4, slot_dim=2, variance_floor=FLOOR).double()
    with torch.no_grad():
        module.projections.query.weight.copy_(torch.eye(2))
        module.projections.key.weight.copy_(matrix)
        module.projections.value.weight.copy_(matrix)
        values = tokens @ matrix.T
        trace = likelihoods(module, tokens, values, start, 6)
    first = mixture_log_likelihood(values, start.log_weights.exp(), start.loc, start.var)
    assert worst_fall(torch.cat([first[None], trace])) >= -ALGEBRA


@pytest.mark.parametrize("name", ["psa", "psa-proj", "smm", "sa"])
def test_members_that_are_not_exact_em_do_lower_it_somewhere(name: str):
    torch.manual_seed(0)
    module = build(name, num_slots=3, input_dim=2, slot_dim=2).double()
    if name == "psa":  # orthogonal W_q: a quarter turn
        module.projections.query.weight.data = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    if name == "psa-proj":  # away from where it starts, which is exact EM
        for matrix in (module.projections.query, module.projections.key, module.projections.value):
            torch.nn.init.xavier_uniform_(matrix.weight)
    if name == "sa":  # soft k-means under a neural update
        module = build(name, num_slots=3, input_dim=2, slot_dim=2, projections="none", normalise=False).double()
    falls = []
    with torch.no_grad():
        for seed in range(5):
            tokens = clusters(2, 12, 2, 3, seed)
            values = module.projections.tokens(tokens, None)
            values = values.values + values.value_origin
            falls.append(worst_fall(likelihoods(module, tokens, values, draw(2, 3, 2, seed=seed), 6)))
    assert min(falls) < -1e-3


@given(start=starts, seed=st.integers(0, 10_000), num_tokens=st.integers(1, 12), power=st.sampled_from([0.3, 0.8, 1.5]))
def test_tempered_e_step_raises_the_tempered_likelihood(start: MixtureState, seed: int, num_tokens: int, power: float):
    tokens = clusters(2, num_tokens, 2, 3, seed)
    module = build("em", num_slots=3, input_dim=2, slot_dim=2, power=power, variance_floor=FLOOR)
    for b in range(2):
        trace = [oracles.power_log_likelihood(tokens[b], start.log_weights[b].exp(), start.loc[b], start.var[b], power)]
        for steps in range(1, 6):
            p = module(tokens, initial=start, num_iterations=steps)
            trace.append(oracles.power_log_likelihood(tokens[b], p.weights[b], p.loc[b], p.var[b], power))
        assert worst_fall(torch.tensor(trace, dtype=torch.float64)[:, None]) >= -ALGEBRA


def test_tempering_does_not_raise_the_plain_likelihood():
    tokens, start = clusters(2, 12, 2, 3, 1), a_state(2, 3, 2, 2)
    module = build("em", num_slots=3, input_dim=2, slot_dim=2, power=0.3)
    assert worst_fall(likelihoods(module, tokens, tokens, start, 8)) < -1e-6


def test_em_converges_to_a_stationary_point_of_the_likelihood():
    tokens = clusters(1, 40, 2, 2, 5)
    posterior = build("em", num_slots=2, input_dim=2, slot_dim=2, num_iterations=500)(tokens)
    free = [value.clone().requires_grad_() for value in (posterior.loc, posterior.var.log(), posterior.weights.log())]
    likelihood = mixture_log_likelihood(tokens, free[2].softmax(1), free[0], free[1].exp())
    for gradient in torch.autograd.grad(likelihood.sum(), free):
        assert_close(gradient, torch.zeros_like(gradient), CONVERGED)


def state_of(posterior: SlotPosterior) -> MixtureState:
    return MixtureState(posterior.loc, posterior.var, posterior.weights.log())


@given(problem=problems(least_tokens=2), power=st.sampled_from([1.0, 0.5]))
def test_psa_proj_with_identity_projections_equals_em(problem: Problem, power: float):
    dim, num_slots = problem.tokens.shape[-1], problem.num_slots
    start = a_state(len(problem.tokens), num_slots, dim, problem.seed)
    sizes = {"num_slots": num_slots, "input_dim": dim, "slot_dim": dim, "power": power, "variance_floor": 1e-3}
    expected = build("em", **sizes)(problem.tokens, initial=start)
    identity = with_identity_projections(build("psa-proj", **sizes).double())
    assert_same(identity(problem.tokens, initial=start), expected)
    assert_same(build("psa-proj", projections="none", **sizes)(problem.tokens, initial=start), expected)
    assert_same(with_identity_projections(build("psa", **sizes).double())(problem.tokens, initial=start), expected)


@pytest.mark.parametrize("name", ["psa", "psa-proj", "smm"])
@pytest.mark.parametrize("num_iterations", [1, 3])
@pytest.mark.parametrize("power", [1.0, 0.4])
def test_member_equals_its_transcription_in_values_and_gradients(name: str, num_iterations: int, power: float):
    torch.manual_seed(0)
    input_dim = 4 if name == "psa" else 3
    module = scrambled(
        build(
            name, num_slots=3, input_dim=input_dim, slot_dim=4, num_iterations=num_iterations, hidden_dim=6,
            power=power, variance_floor=1e-3,
        ).double()
    )  # fmt: skip
    tokens = draw(2, 6, input_dim, seed=1).requires_grad_()
    initial = draw(2, 3, 4, seed=2).requires_grad_()
    posterior, parameters = module(tokens, initial=initial), parameters_of(module)
    expected = oracles.gaussian_mixture(tokens, initial, parameters, num_iterations, 1e-3, power)
    losses = []
    for record in (posterior, expected):
        parts = (record.loc, record.var.log(), record.weights, record.responsibilities)
        losses.append(sum((part * draw(*part.shape, seed=9)).sum() for part in parts))
    for part in ("loc", "var", "weights", "responsibilities"):
        assert_close(getattr(posterior, part), getattr(expected, part), message=part)
    inputs = {"tokens": tokens, "initial": initial} | parameters
    ours, theirs = (torch.autograd.grad(loss, list(inputs.values())) for loss in losses)
    for label, one, other in zip(inputs, ours, theirs, strict=True):
        assert_close(one, other, message=label)


@torch.no_grad()
def test_smm_variance_is_about_the_mean_after_the_neural_part():
    torch.manual_seed(0)
    module = scrambled(build("smm", num_slots=2, input_dim=3, slot_dim=3, num_iterations=2).double())
    tokens, initial = draw(1, 8, 3, seed=1), draw(1, 2, 3, seed=2)
    posterior, parameters = module(tokens, initial=initial), parameters_of(module)
    values = [oracles.linear(oracles.layer_norm(z, parameters, "norm_tokens"), parameters, "value") for z in tokens[0]]
    for k in range(2):
        share = posterior.responsibilities[0, k] / posterior.responsibilities[0, k].sum()
        mean = sum(share[n] * values[n] for n in range(8))
        assert float((posterior.loc[0, k] - mean).abs().max()) > 0.01  # the neural part moved it
        var = sum(share[n] * (values[n] - posterior.loc[0, k]) ** 2 for n in range(8))
        assert_close(posterior.var[0, k], var)


def test_slot_without_mass_keeps_its_mean_takes_the_floor_and_weight_zero():
    tokens = clusters(1, 20, 2, 2, 1)
    start = a_state(1, 3, 2, 2)
    start.log_weights[0, 1] = -torch.inf
    posterior = build("em", num_slots=3, input_dim=2, slot_dim=2, variance_floor=0.02)(tokens, initial=start)
    assert_close(posterior.loc[0, 1], start.loc[0, 1])
    assert_close(posterior.var[0, 1], torch.full((2,), 0.02, dtype=torch.float64))
    assert float(posterior.weights[0, 1]) == 0.0
    assert not bool(posterior.responsibilities[0, 1].any())
    others = [0, 2]
    without = MixtureState(start.loc[:, others], start.var[:, others], start.log_weights[:, others])
    expected = build("em", num_slots=2, input_dim=2, slot_dim=2, variance_floor=0.02)(tokens, initial=without)
    assert_close(posterior.loc[:, others], expected.loc)
    assert_close(posterior.weights[:, others], expected.weights)


def test_slot_of_tiny_mass_still_goes_to_the_exact_mean_of_its_tokens():
    scores = torch.zeros(1, 2, 4, dtype=torch.float64)
    scores[0, 1] = torch.tensor([-300.0, -301.0, -300.0, -302.0])
    values = draw(1, 4, 3, seed=1)
    previous = a_state(1, 2, 3, 2)
    moments = dense_moments(attend(scores), values)
    state = moments_update(moments, previous, 0.0, torch.full((1,), 4.0, dtype=torch.float64))
    share = scores[0, 1].softmax(0)
    assert_close(state.loc[0, 1], share @ values[0])
    assert_close(state.log_weights[0, 1], scores[0, 1].logsumexp(0) - torch.tensor(4.0).log().double(), CONVERGED)


def test_em_starts_from_the_tokens_variance_and_the_others_from_one():
    tokens = clusters(1, 20, 2, 2, 1)
    for name, var in (("em", tokens[0].var(0, correction=0)), ("psa", torch.ones(2)), ("psa-proj", torch.ones(2))):
        initial, uniform = tokens[:, :2], torch.full((1, 2), 0.5, dtype=torch.float64)
        module = build(name, num_slots=2, input_dim=2, slot_dim=2).double()
        state = MixtureState(initial, var.double().expand(1, 2, 2), uniform.log())
        assert_same(module(tokens, initial=initial), module(tokens, initial=state))


@pytest.mark.parametrize("name", ["em", "psa", "psa-proj", "smm"])
def test_steps_continue_from_a_posterior(name: str):
    torch.manual_seed(0)
    module = build(name, num_slots=3, input_dim=2, slot_dim=2).double()
    tokens, start = clusters(2, 15, 2, 3, 1), a_state(2, 3, 2, 2)
    halfway = module(tokens, initial=start, num_iterations=2)
    whole = module(tokens, initial=start, num_iterations=5)
    for middle in (halfway, state_of(halfway)):
        rest = module(tokens, initial=middle, num_iterations=3)
        assert_close(rest.loc, whole.loc)
        assert_close(rest.var, whole.var)
        assert_close(rest.responsibilities, whole.responsibilities)


def test_gaussian_scores_are_the_log_joint():
    keys, state = draw(1, 5, 3, seed=1), a_state(1, 2, 3, 2)
    scores = slot_scores(keys, mixture_natural(state, power=0.7))
    for k in range(2):
        for n in range(5):
            density = torch.distributions.Normal(state.loc[0, k], state.var[0, k].sqrt()).log_prob(keys[0, n]).sum()
            assert_close(scores[0, k, n], state.log_weights[0, k] + 0.7 * density)


def test_token_weights_count_in_sums_and_never_inside_responsibilities():
    scores, values = draw(1, 3, 6, seed=1), draw(1, 6, 2, seed=2)
    weights = torch.tensor([[1.0, 2.0, 0.0, 1.0, 3.0, 0.0]], dtype=torch.float64)
    for epsilon in (0.0, 0.1):
        weighted, plain = attend(scores, weights, epsilon), attend(scores, epsilon=epsilon)
        assert_close(weighted.responsibilities, plain.responsibilities)
        repeats = weights[0].long()
        repeated = attend(scores.repeat_interleave(repeats, 2), epsilon=epsilon)
        assert_close(weighted.log_mass, repeated.log_mass)
        many = values.repeat_interleave(repeats, 1)
        mean = repeated.attention @ many
        assert_close(weighted.attention @ values, mean)
        assert_close(weighted.attention.sum(-1), torch.ones(1, 3))
        found, expected = dense_moments(weighted, values), dense_moments(repeated, many)
        assert_close(variance_about(found, mean), variance_about(expected, mean))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exp_or_zero_is_exp_or_exactly_zero(dtype: torch.dtype):
    log_p = torch.linspace(-2000, 0, 4001, dtype=dtype)
    p = exp_or_zero(log_p)
    kept = p > 0
    assert bool((p[kept] == log_p[kept].exp()).all())
    assert float(p[kept].min()) ** 3 >= torch.finfo(dtype).tiny
    assert float(p[~kept].max()) == 0.0
    assert float(log_p[~kept].max()) < -29
    gradient = torch.autograd.functional.jacobian(lambda x: exp_or_zero(x).sum(), log_p)
    assert_close(gradient, p)
