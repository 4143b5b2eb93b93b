"""Where coordinate ascent starts: points of the image, in units that do not matter, some slots left empty."""

import pytest
import torch
from contracts import draw
from hypothesis import given
from hypothesis import strategies as st
from tolerances import STANDARD_ERRORS, assert_close
from torch import Tensor

from psa.inference.coordinates import centre
from psa.inference.initialisers import FarthestPoints, TokenView
from psa.inference.starts import STARTS, nearest, start_means, token_scale

NAMES = pytest.mark.parametrize("name", STARTS)
seeds = st.integers(0, 10_000)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_weights(batch: int, num_tokens: int, seed: int) -> Tensor:
    """Non-negative, a third of them 0, the first token's never."""
    weights = (draw(batch, num_tokens, seed=seed) + 0.4).clamp(min=0.0)
    weights[:, 0] = 0.5
    return weights


def is_token(means: Tensor, values: Tensor, weights: Tensor | None) -> bool:
    """Whether every mean (B, ..., D) is one of the image's tokens that count."""
    same = (means.flatten(1, -2)[:, :, None] - values[:, None]).abs().amax(-1) < 1e-12
    return bool((same if weights is None else same & (weights > 0)[:, None]).any(-1).all())


@NAMES
@given(seed=seeds, num_tokens=st.integers(1, 30), num_slots=st.integers(1, 5), weighted=st.booleans())
def test_means_are_points_of_the_image_that_count(
    name: str, seed: int, num_tokens: int, num_slots: int, weighted: bool
):
    tokens = draw(2, num_tokens, 3, seed=seed)
    values, weights, _ = centre(tokens, some_weights(2, num_tokens, seed + 1) if weighted else None)
    means = start_means(name, values, weights, num_slots, 4, seeded(seed))
    assert means.shape == (2, 4, num_slots, 3)
    assert is_token(means, values, weights)


@NAMES
@given(seed=seeds, weighted=st.booleans())
def test_units_and_origin_do_not_matter(name: str, seed: int, weighted: bool):
    tokens, scale, shift = draw(2, 30, 3, seed=seed), draw(3, seed=seed + 1).exp(), 10 * draw(3, seed=seed + 2)
    mask = some_weights(2, 30, seed + 3) if weighted else None
    starts, shares = [], []
    for given_tokens in (tokens, tokens * scale + shift):
        values, weights, origin = centre(given_tokens, mask)
        means = start_means(name, values, weights, 4, 3, seeded(seed))
        starts.append(means + origin[:, None])
        shares.append(nearest(values, weights, means[:, 0]))
    assert_close(starts[1], starts[0] * scale + shift)
    assert_close(shares[1], shares[0])


def test_farthest_draws_nothing_first_and_is_kmeans_then():
    values, weights, _ = centre(draw(2, 30, 3, seed=1), None)
    one, other = (start_means("farthest", values, weights, 3, 4, seeded(seed)) for seed in (0, 1))
    scale = token_scale(values, weights)
    assert_close(one[:, 0], FarthestPoints(3, 0)(TokenView(values / scale, None), 3) * scale)
    assert_close(one[:, 0], other[:, 0])
    assert not torch.equal(one[:, 3], other[:, 3])
    drawn = seeded()
    expected = [STARTS["kmeans++"](TokenView(values / scale, None), 3, drawn) * scale for _ in range(3)]
    assert_close(one[:, 3], expected[2])


@NAMES
def test_restart_r_leaves_r_mod_k_slots_with_the_first_mean(name: str):
    values, weights, _ = centre(draw(2, 30, 3, seed=1), None)
    means = start_means(name, values, weights, 3, 7, seeded())
    for restart in range(7):
        distinct = 3 - restart % 3
        for b in range(2):
            assert len(means[b, restart].unique(dim=0)) == distinct
            assert_close(means[b, restart, distinct:], means[b, restart, :1].expand(3 - distinct, -1))


@given(
    seed=seeds,
    num_tokens=st.integers(1, 400),
    num_slots=st.integers(2, 8),
    dim=st.integers(1, 20),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_of_equal_means_the_first_takes_all(seed: int, num_tokens: int, num_slots: int, dim: int, dtype: torch.dtype):
    values, weights, _ = centre(draw(2, num_tokens, dim, seed=seed, dtype=dtype), None)
    means = start_means("random", values, weights, num_slots, num_slots, seeded(seed))
    for restart in range(num_slots):
        share = nearest(values, weights, means[:, restart])
        assert bool((share.sum(1) == 1).all())
        assert not bool(share[:, num_slots - restart :].any())


@given(seed=seeds, num_tokens=st.integers(1, 40), weighted=st.booleans())
def test_tokens_go_to_the_nearest_mean_in_standard_deviations(seed: int, num_tokens: int, weighted: bool):
    tokens = draw(2, num_tokens, 2, seed=seed) * torch.tensor([100.0, 0.01])
    values, weights, _ = centre(tokens, some_weights(2, num_tokens, seed + 1) if weighted else None)
    means = draw(2, 4, 2, seed=seed + 2) * torch.tensor([100.0, 0.01])
    share, scale = nearest(values, weights, means), token_scale(values, weights)
    assert bool(((share == 0) | (share == 1)).all())
    for b in range(2):
        for n in range(num_tokens):
            distances = [float((((values[b, n] - mean) / scale[b, 0]) ** 2).sum()) for mean in means[b]]
            assert int(share[b, :, n].argmax()) == min(range(4), key=distances.__getitem__)


@given(seed=seeds, weighted=st.booleans())
def test_scale_is_the_weighted_standard_deviation(seed: int, weighted: bool):
    tokens = draw(2, 9, 3, seed=seed)
    values, weights, origin = centre(tokens, some_weights(2, 9, seed + 1) if weighted else None)
    share = torch.ones(2, 9).double() if weights is None else weights
    for b in range(2):
        covariance = torch.cov(tokens[b].T, correction=0, aweights=share[b])
        assert_close(token_scale(values, weights)[b, 0], covariance.diagonal().sqrt())
        assert_close(origin[b, 0], (share[b] @ tokens[b]) / share[b].sum())


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6 / 3])
@pytest.mark.parametrize("num_tokens", [1, 7, 30])
def test_scale_of_an_axis_that_does_not_vary_is_one(num_tokens: int, constant: float):
    tokens = draw(2, num_tokens, 3, seed=1)
    tokens[..., 1] = constant
    values, weights, _ = centre(tokens, None)
    assert_close(token_scale(values, weights)[..., 1], torch.ones(2, 1))


def test_random_tokens_are_distinct_while_there_are_any():
    values = draw(3, 6, 2, seed=1)
    weights = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 0, 0.1, 0, 2, 0], [0, 0, 0, 0, 0, 3]], dtype=torch.float64)
    means = start_means("random", values, weights, 5, 1, seeded())[:, 0]
    assert [len(image.unique(dim=0)) for image in means] == [5, 3, 1]


def test_random_tokens_are_drawn_in_proportion_to_their_weights():
    weights = torch.tensor([0.0, 0.5, 2.0, 0.1, 1.4], dtype=torch.float64).expand(20_000, -1)
    values = torch.arange(5, dtype=torch.float64)[None, :, None].expand(20_000, -1, -1)
    drawn = STARTS["random"](TokenView(values, weights), 1, seeded())[:, 0, 0]
    for token, share in enumerate((weights[0] / weights[0].sum()).tolist()):
        error = (share * (1 - share) / 20_000) ** 0.5
        assert abs(float((drawn == token).double().mean()) - share) <= STANDARD_ERRORS * error
