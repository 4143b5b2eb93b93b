"""Posterior draws of the local model against scipy, draw by draw; what no relabelling changes; ArviZ groups."""

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from contracts import draw
from tolerances import CONVERGED, STANDARD_ERRORS, assert_all_close, assert_close
from torch import Tensor

from psa.inference.draws import MixtureDraws

B, C, S, K, N, D = 2, 2, 3, 4, 5, 3
MASK = torch.tensor([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1]]) > 0
TOKENS = 2 * draw(B, N, D, seed=0)


def some_draws(lead: tuple[int, ...] = (B, C, S), num_slots: int = K, dim: int = D) -> MixtureDraws:
    return MixtureDraws(
        draw(*lead, num_slots, seed=1).log_softmax(-1),
        2 * draw(*lead, num_slots, dim, seed=2),
        draw(*lead, num_slots, dim, seed=3).exp(),
    )


def orders(seed: int = 4) -> Tensor:
    return draw(B, C, S, K, seed=seed).argsort(-1)


def scipy_joint(draws: MixtureDraws, tokens: Tensor, b: int, c: int, s: int) -> np.ndarray:
    """log pi_k Normal(v_n; mu_k, 1 / lambda_k) of one draw, (K, N)."""
    at = (b, c, s)
    normals = [
        scipy.stats.norm(draws.loc[at][k].numpy(), draws.precision[at][k].numpy() ** -0.5).logpdf(tokens[b].numpy())
        for k in range(draws.loc.shape[3])
    ]
    return draws.log_weights[at].numpy()[:, None] + np.stack(normals).sum(-1)


@pytest.mark.parametrize("mask", [None, MASK])
def test_densities_and_responsibilities_equal_scipy(mask):
    draws = some_draws()
    density, responsibilities = draws.token_log_density(TOKENS, mask), draws.responsibilities(TOKENS, mask)
    assert_close(responsibilities.sum(-2), torch.ones(B, C, S, N))
    for b, c, s in np.ndindex(B, C, S):
        joint = scipy_joint(draws, TOKENS, b, c, s)
        expected = torch.from_numpy(scipy.special.logsumexp(joint, 0))
        if mask is not None:
            expected = expected.masked_fill(~mask[b], 0.0)
        assert_close(density[b, c, s], expected)
        keep = slice(None) if mask is None else mask[b]
        assert_close(responsibilities[b, c, s][:, keep], torch.from_numpy(scipy.special.softmax(joint, 0))[:, keep])


def test_padding_may_hold_anything():
    draws, padded = some_draws(), TOKENS.masked_fill(~MASK[..., None], torch.nan)
    assert_close(draws.token_log_density(padded, MASK), draws.token_log_density(TOKENS, MASK))
    assert_close(draws.responsibilities(padded, MASK), draws.responsibilities(TOKENS, MASK))
    assert_all_close(draws.label_free(padded, MASK).values(), draws.label_free(TOKENS, MASK).values())


def test_densities_do_not_cancel_far_from_the_origin():
    grid, shift = 2.0**-10, 2.0**30  # sums and differences of these are exact
    draws, tokens = some_draws(), (TOKENS / grid).round() * grid
    loc = (draws.loc / grid).round() * grid
    near = MixtureDraws(draws.log_weights, loc, draws.precision).token_log_density(tokens)
    far = MixtureDraws(draws.log_weights, loc + shift, draws.precision).token_log_density(tokens + shift)
    assert_close(far, near)


def test_an_order_takes_the_old_slot_it_names():
    draws, order = some_draws(), orders()
    permuted = draws.permuted(order)
    for b, c, s, k in np.ndindex(B, C, S, K):
        old = int(order[b, c, s, k])
        assert torch.equal(permuted.log_weights[b, c, s, k], draws.log_weights[b, c, s, old])
        assert torch.equal(permuted.loc[b, c, s, k], draws.loc[b, c, s, old])
        assert torch.equal(permuted.precision[b, c, s, k], draws.precision[b, c, s, old])


@pytest.mark.parametrize("mask", [None, MASK])
def test_label_free_quantities_survive_relabelling(mask):
    draws = some_draws()
    before, after = draws.label_free(TOKENS, mask), draws.permuted(orders()).label_free(TOKENS, mask)
    assert list(before) == list(after)
    assert_all_close(after.values(), before.values())


def test_label_free_quantities_are_what_they_are_called():
    draws = some_draws()
    found = draws.label_free(TOKENS, MASK)
    assert set(found) == {
        "log_likelihood",
        "weight_entropy",
        "largest_weight",
        *(f"weighted_mean_{d}" for d in range(D)),
    }
    for at in np.ndindex(B, C, S):
        weights = draws.log_weights[at].exp().numpy()
        joint = scipy_joint(draws, TOKENS, *at)
        assert_close(found["log_likelihood"][at], scipy.special.logsumexp(joint, 0)[MASK[at[0]].numpy()].sum())
        assert_close(found["weight_entropy"][at], scipy.stats.entropy(weights))
        assert_close(found["largest_weight"][at], weights.max())
        for d in range(D):
            assert_close(found[f"weighted_mean_{d}"][at], weights @ draws.loc[at][:, d].numpy())


def test_a_weight_of_zero_is_a_slot_that_is_not_there():
    draws = some_draws()
    zero = torch.full_like(draws.log_weights[..., :1], -torch.inf)
    wider = MixtureDraws(
        torch.cat([draws.log_weights, zero], -1),
        torch.cat([draws.loc, draws.loc[..., :1, :]], -2),
        torch.cat([draws.precision, draws.precision[..., :1, :]], -2),
    )
    assert_all_close(wider.label_free(TOKENS).values(), draws.label_free(TOKENS).values())
    assert_close(wider.responsibilities(TOKENS)[..., :K, :], draws.responsibilities(TOKENS))


def test_replicated_tokens_have_the_moments_of_the_mixture():
    draws, num_tokens = some_draws((1, 1, 2)), 20_000
    drawn = draws.replicated(num_tokens, torch.Generator().manual_seed(0))
    assert drawn.shape == (1, 1, 2, num_tokens, D)
    weights = draws.log_weights.exp()[..., None]
    mean = (weights * draws.loc).sum(-2)
    second = (weights * (draws.loc.square() + draws.precision.reciprocal())).sum(-2)
    for moment, expected in ((drawn, mean), (drawn.square(), second)):
        error = moment.std(-2) / num_tokens**0.5
        assert bool(((moment.mean(-2) - expected).abs() < STANDARD_ERRORS * error).all())


def test_replicated_tokens_depend_on_the_generator_alone():
    draws = some_draws()
    one, same, other = (draws.replicated(N, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_inference_data_holds_one_image_with_named_axes():
    draws, generator = some_draws(), torch.Generator().manual_seed(0)
    extra = {"diverging": torch.zeros(C, S, dtype=torch.bool)}
    data = draws.inference_data(TOKENS, image=1, extra_stats=extra, generator=generator)
    posterior, stats = data["posterior"], data["sample_stats"]
    assert posterior["weights"].dims == ("chain", "draw", "slot")
    for name in ("loc", "precision"):
        assert posterior[name].dims == ("chain", "draw", "slot", "feature")
        assert_close(torch.from_numpy(posterior[name].values), getattr(draws, name)[1])
    assert_close(torch.from_numpy(posterior["weights"].values), draws.log_weights[1].exp())
    assert data["posterior_predictive"]["values"].dims == ("chain", "draw", "token", "feature")
    assert data["log_likelihood"]["values"].dims == ("chain", "draw", "token")
    assert_close(torch.from_numpy(data["log_likelihood"]["values"].values), draws.token_log_density(TOKENS)[1])
    assert data["observed_data"]["values"].dims == ("token", "feature")
    assert_close(torch.from_numpy(data["observed_data"]["values"].values), TOKENS[1])
    assert_close(torch.from_numpy(stats["lp"].values), draws.token_log_density(TOKENS)[1].sum(-1))
    assert stats["diverging"].dtype == bool


def test_masked_tokens_are_in_no_group():
    draws, generator = some_draws(), torch.Generator().manual_seed(0)
    padded = TOKENS.masked_fill(~MASK[..., None], torch.nan)
    data = draws.inference_data(padded, mask=MASK, generator=generator)
    kept = int(MASK[0].sum())
    assert data["posterior_predictive"]["values"].shape == (C, S, kept, D)
    assert_close(torch.from_numpy(data["observed_data"]["values"].values), TOKENS[0][MASK[0]])
    found = torch.from_numpy(data["log_likelihood"]["values"].values)
    assert_close(found, draws.token_log_density(TOKENS, MASK)[0][..., MASK[0]], CONVERGED)


def test_densities_build_nothing_with_features_beside_tokens(unchecked):
    """Draws x slots x tokens x features would be D times the responsibilities, which are what is asked for."""
    num_tokens, dim = 40, 60
    draws, tokens = some_draws((1, 2, 50), 3, dim), draw(1, num_tokens, dim, seed=5)
    with torch.profiler.profile(profile_memory=True) as profile:
        draws.token_log_density(tokens)
    wanted = 2 * 50 * 3 * num_tokens * 8
    most = max(event.cpu_memory_usage for event in profile.events())
    assert 0 < most < wanted * dim / 4
