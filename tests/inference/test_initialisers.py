"""Where slots start."""

import math

import pytest
import torch
from contracts import draw
from tolerances import assert_close, assert_mean_is
from torch import Tensor

from psa.inference.initialisers import INITIALISERS, TokenView
from psa.inference.variants import build


def start(name: str, tokens: Tensor, num_slots: int, weights: Tensor | None = None, seed: int = 0) -> Tensor:
    initialiser = INITIALISERS[name](num_slots, tokens.shape[-1])
    return initialiser(TokenView(tokens, weights), num_slots, torch.Generator().manual_seed(seed))


def test_farthest_points_are_each_the_farthest_from_those_before():
    tokens = draw(3, 12, 2, seed=1)
    chosen = start("farthest", tokens, 5)
    for b in range(3):
        before = [tokens[b].mean(0)]
        for k in range(5):
            distance = torch.stack([(tokens[b] - other).norm(dim=-1) for other in before]).amin(0)
            assert_close((chosen[b, k] - torch.stack(before)).norm(dim=-1).min(), distance.max())
            before = [*(before if k > 0 else []), chosen[b, k]]  # the mean counts for the first alone


@pytest.mark.parametrize("seed", range(5))
def test_farthest_points_ignore_padding_and_the_order_of_tokens(seed: int):
    tokens, filler = draw(2, 9, 2, seed=seed), 50 * draw(2, 2, 2, seed=seed + 100)
    weights = (torch.arange(11) < 9).double().expand(2, -1)
    assert_close(start("farthest", torch.cat([tokens, filler], 1), 4, weights), start("farthest", tokens, 4))
    assert_close(start("farthest", tokens.flip(1), 4), start("farthest", tokens, 4))


def test_farthest_points_translate_with_the_tokens():
    tokens = draw(2, 9, 2, seed=1)
    assert_close(start("farthest", tokens + 7, 4), start("farthest", tokens, 4) + 7)


@pytest.mark.parametrize("name", ["farthest", "kmeans++"])
def test_more_slots_than_distinct_tokens_repeat_some(name: str):
    tokens = draw(2, 2, 3, seed=1).repeat(1, 3, 1)
    chosen = start(name, tokens, 5)
    for b in range(2):
        assert all(any(torch.equal(slot, token) for token in tokens[b]) for slot in chosen[b])
        assert len({tuple(slot.tolist()) for slot in chosen[b]}) == 2


def test_kmeans_plus_plus_takes_distinct_valid_tokens():
    tokens = draw(2, 9, 2, seed=1)
    weights = torch.ones(2, 9).double()
    weights[:, 6:] = 0
    for seed in range(20):
        chosen = start("kmeans++", tokens, 4, weights, seed)
        for b in range(2):
            index = [(tokens[b] == slot).all(-1).nonzero().item() for slot in chosen[b]]
            assert len(set(index)) == 4
            assert max(index) < 6


def test_kmeans_plus_plus_draws_by_squared_distance():
    points = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    tokens = points[:, None].expand(20_000, -1, -1)
    first, second = start("kmeans++", tokens, 2).squeeze(-1).unbind(1)
    for point in points:
        assert_mean_is((first == point).double(), 1 / 3)
        others = points[points != point]
        squared = (others - point) ** 2
        for other, share in zip(others, squared / squared.sum(), strict=True):
            assert_mean_is((second[first == point] == other).double(), share)


@pytest.mark.parametrize("name", ["standard-normal", "learned-gaussian"])
def test_normal_starts_have_their_moments(name: str):
    initialiser = INITIALISERS[name](4, 2).double()
    view = TokenView(draw(5000, 1, 2, seed=1), None)
    samples = initialiser(view, 4, torch.Generator().manual_seed(0)).detach().flatten(0, 1)
    loc, scale = torch.zeros(2).double(), torch.ones(2).double()
    if name == "learned-gaussian":
        loc, scale = initialiser.loc.detach().flatten(), initialiser.log_scale.detach().exp().flatten()
    assert_mean_is(samples, loc)
    assert_mean_is((samples - loc) ** 2, scale**2)


def test_learned_gaussian_is_reparameterised():
    initialiser = INITIALISERS["learned-gaussian"](3, 2).double()
    view = TokenView(draw(2, 5, 2, seed=1), None)
    noise = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = draw(2, 3, 2, seed=2)
    (initialiser(view, 3, torch.Generator().manual_seed(0)) * weights).sum().backward()
    assert_close(initialiser.loc.grad.flatten(), weights.sum((0, 1)))
    expected = (weights * noise * initialiser.log_scale.detach().exp()).sum((0, 1))
    assert_close(initialiser.log_scale.grad.flatten(), expected)


def test_query_noise_is_in_training_alone_and_annealed_by_a_cosine():
    module = build("bo-qsa", num_slots=3, input_dim=2, slot_dim=2).double()
    tokens, queries = draw(4000, 1, 2, seed=1), module.get_parameter("initialiser.queries").detach()

    def noise() -> Tensor:
        return (module(tokens, generator=torch.Generator().manual_seed(0)).initial_loc.detach() - queries).flatten()

    for progress in (0.0, 0.25, 0.5, 0.9):
        module.train().anneal(progress)
        assert_mean_is(noise(), 0.0)
        assert_mean_is(noise() ** 2, 0.5 * (1 + math.cos(math.pi * progress)))
        module.eval()
        assert_close(noise(), torch.zeros(4000 * 6))
    module.train().anneal(1.0)
    assert_close(noise(), torch.zeros(4000 * 6))


def test_annealing_is_saved_with_the_weights():
    module, other = (build("bo-qsa", num_slots=3, input_dim=2, slot_dim=2) for _ in range(2))
    module.anneal(0.5)
    other.load_state_dict(module.state_dict())
    assert_close(other.initialiser.sigma, 0.5)


def test_annealing_leaves_other_members_alone():
    module = build("sa", num_slots=3, input_dim=2, slot_dim=2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.anneal(0.5)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_given_starts_must_be_given():
    module = build("em", num_slots=3, input_dim=2, slot_dim=2, initialiser="given")
    tokens = draw(2, 5, 2, seed=1)
    assert_close(module(tokens, initial=tokens[:, :3]).initial_loc, tokens[:, :3])
    with pytest.raises(ValueError, match="initial must be passed in: this member's initialiser is 'given'"):
        module(tokens)
