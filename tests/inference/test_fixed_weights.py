"""The update that gives slots variances and leaves the weights of the E-step where they started."""

import pytest
import torch
from contracts import draw
from hypothesis import given
from hypothesis import strategies as st
from tolerances import ALGEBRA, assert_close

from psa.inference.em import MixtureState
from psa.inference.variants import build
from psa.models.local_mixture import mixture_log_likelihood


def start_of(weights: torch.Tensor, seed: int) -> MixtureState:
    """Means and variances of three slots of two images in two dimensions, under the weights (B, K)."""
    var = (0.3 * draw(2, 3, 2, seed=seed + 1)).exp()
    return MixtureState(2 * draw(2, 3, 2, seed=seed), var, weights.log())


@given(seed=st.integers(0, 10_000), num_tokens=st.integers(1, 12))
def test_the_likelihood_under_the_starting_weights_never_falls(seed: int, num_tokens: int):
    tokens, weights = 3 * draw(2, num_tokens, 2, seed=seed), (0.5 * draw(2, 3, seed=seed + 2)).softmax(1)
    start = start_of(weights, seed)
    module = build("em", num_slots=3, input_dim=2, slot_dim=2, update="moments-uniform")
    before = mixture_log_likelihood(tokens, weights, start.loc, start.var)
    for steps in range(1, 6):
        posterior = module(tokens, initial=start, num_iterations=steps)
        after = mixture_log_likelihood(tokens, weights, posterior.loc, posterior.var)
        assert bool((after - before >= -ALGEBRA * (1 + before.abs())).all())
        before = after


def test_a_step_equals_plain_loops_and_later_ones_keep_the_starting_weights():
    tokens, weights = 3 * draw(2, 7, 2, seed=5), torch.tensor([[0.5, 0.3, 0.2]] * 2).double()
    state, floor = start_of(weights, 6), 1e-3
    module = build("em", num_slots=3, input_dim=2, slot_dim=2, update="moments-uniform", variance_floor=floor)
    posterior = module(tokens, initial=state, num_iterations=2)
    for b in range(2):
        loc, var = state.loc[b], state.var[b]
        for _ in range(2):
            density = torch.distributions.Normal(loc[:, None], var[:, None].sqrt()).log_prob(tokens[b]).sum(-1)
            owned = (weights[b].log()[:, None] + density).softmax(0)  # (K, N), under the same weights every time
            share = owned / owned.sum(1, keepdim=True)
            loc = share @ tokens[b]
            var = (share[..., None] * (tokens[b] - loc[:, None]).square()).sum(1).clamp(min=floor)
        assert_close(posterior.responsibilities[b], owned)
        assert_close(posterior.loc[b], loc)
        assert_close(posterior.var[b], var)
        assert_close(posterior.weights[b], owned.mean(1))  # the record's are of the last E-step, as every member's


@pytest.mark.parametrize("num_iterations", [1, 3])
def test_it_differs_from_moments_only_from_the_second_step_on(num_iterations: int):
    tokens = 3 * draw(2, 9, 2, seed=1)
    start = start_of(torch.full((2, 3), 1 / 3).double(), 2)
    one, other = (
        build("em", num_slots=3, input_dim=2, slot_dim=2, update=update)(
            tokens, initial=start, num_iterations=num_iterations
        )
        for update in ("moments", "moments-uniform")
    )
    same = bool(torch.allclose(one.loc, other.loc, rtol=0, atol=ALGEBRA))
    assert same == (num_iterations == 1)


def test_the_variance_is_about_the_mean_after_the_neural_part():
    torch.manual_seed(0)
    module = build("smm", num_slots=3, input_dim=2, slot_dim=2, update="moments-uniform", projections="none").double()
    tokens = 3 * draw(2, 9, 2, seed=1)
    posterior = module(tokens, initial=draw(2, 3, 2, seed=2), num_iterations=1)
    values = torch.nn.functional.layer_norm(tokens, (2,))
    share = posterior.responsibilities / posterior.responsibilities.sum(-1, keepdim=True)
    about = (share[..., None] * (values[:, None] - posterior.loc[:, :, None]).square()).sum(2)
    assert_close(posterior.var, about.clamp(min=1e-4))
