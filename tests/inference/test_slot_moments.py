"""Moments of an E-step against plain loops, and their hand-written gradients against autograd's of the dense form."""

from collections.abc import Iterator

import pytest
import torch
from contracts import draw
from tolerances import assert_all_close, assert_close
from torch import Tensor

from psa.inference import slot_moments as module
from psa.inference import token_chunks
from psa.inference.attention import attend, slot_scores
from psa.inference.slot_moments import SlotMoments, dense_moments, open_tokens, slot_moments


def by_loops(keys: Tensor, values: Tensor, natural: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """One slot and one token at a time, of one image; exact for slots of any mass."""
    num_features, (num_slots, num_tokens) = keys.shape[1], (len(natural), len(keys))
    second, first, constant = natural.split([num_features, num_features, 1], dim=-1)
    log_joint = torch.stack([(second * key.square() + first * key).sum(-1) + constant[:, 0] for key in keys], dim=1)
    log_a = torch.stack([log_joint[:, n] - log_joint[:, n].logsumexp(0) for n in range(num_tokens)], dim=1)
    found: dict[str, list[Tensor]] = {"log_mass": [], "mean": [], "second": []}
    for k in range(num_slots):
        log_share = log_a[k] + weights.log()
        share = log_share.softmax(0)
        found["log_mass"].append(log_share.logsumexp(0))
        found["mean"].append(sum(share[n] * values[n] for n in range(num_tokens)))
        found["second"].append(sum(share[n] * values[n].square() for n in range(num_tokens)))
    return {name: torch.stack(parts) for name, parts in found.items()} | {"responsibilities": log_a.exp()}


WEIGHTS = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0, 1.0, 0.0, 3.0, 1.0], dtype=torch.float64).expand(2, -1)
CHUNKS = {"one chunk": 1 << 20, "an image a chunk": 9 * 3 * 8, "two tokens a chunk": 2 * 3 * 8}


@pytest.fixture(params=CHUNKS.values(), ids=CHUNKS.keys())
def _chunked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(token_chunks, "CACHED_BYTES", request.param)
    return


def problem(tiny: float = -300.0) -> tuple[Tensor, Tensor, Tensor]:
    """Two images of nine tokens, four slots, one of them of tiny mass."""
    natural = draw(2, 4, 7, seed=3)
    natural[0, 1, -1] += tiny
    return draw(2, 9, 3, seed=1), draw(2, 9, 3, seed=2), natural


@pytest.mark.usefixtures("_chunked")
@pytest.mark.parametrize("squares", [0, 1 << 20])
def test_moments_are_those_of_plain_loops(squares: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "SQUARES_BYTES", squares)
    keys, values, natural = problem()
    for given in (WEIGHTS, None):
        moments = slot_moments(keys, values, natural, given, keep_responsibilities=True)
        for b in range(2):
            expected = by_loops(keys[b], values[b], natural[b], torch.ones(9) if given is None else given[b])
            for name, value in expected.items():
                assert_close(getattr(moments, name)[b], value, message=name)


@pytest.mark.usefixtures("_chunked")
def test_a_slot_of_no_mass_is_empty_and_has_no_moments():
    keys, values, natural = problem(-torch.inf)
    moments = slot_moments(keys, values, natural.requires_grad_())
    assert moments.empty[0].flatten().tolist() == [False, True, False, False]
    assert float(moments.log_mass[0, 1]) == -torch.inf
    assert not bool(moments.mean[0, 1].any() or moments.second[0, 1].any())
    (moments.mean.sum() + moments.log_mass.exp().sum()).backward()
    assert bool(natural.grad[0, [0, 2, 3]].any())
    assert not bool(natural.grad[0, 1].any())


def dense(keys: Tensor, values: Tensor, natural: Tensor, weights: Tensor | None) -> SlotMoments:
    return dense_moments(attend(slot_scores(keys, natural), weights), values)


def loss_of(moments: SlotMoments, parts: tuple[str, ...]) -> Tensor:
    """A weighted sum of these parts."""
    losses = []
    for seed, name in enumerate(parts):
        value = getattr(moments, name)
        losses.append((value * draw(*value.shape, seed=seed + 20)).sum())
    return torch.stack(losses).sum()


PARTS = [
    ("log_mass", "mean", "second", "responsibilities"),
    ("log_mass",),
    ("mean",),
    ("second",),
    ("responsibilities",),
]


@pytest.mark.usefixtures("_chunked")
@pytest.mark.parametrize("parts", PARTS, ids=lambda parts: "+".join(parts))
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_are_those_of_the_dense_form(parts: tuple[str, ...], weighted: bool):
    inputs = [tensor.requires_grad_() for tensor in problem()]
    weights = WEIGHTS if weighted else None
    ours = slot_moments(*inputs, weights, keep_responsibilities=True)
    assert_all_close(
        torch.autograd.grad(loss_of(ours, parts), inputs, materialize_grads=True),
        torch.autograd.grad(loss_of(dense(*inputs, weights), parts), inputs, materialize_grads=True),
    )


@pytest.mark.usefixtures("_chunked")
@pytest.mark.parametrize("second", [True, False])
@pytest.mark.parametrize("linear", [False, True])
def test_steps_that_share_tokens_give_the_gradient_of_all_of_them(second: bool, linear: bool):
    """Their placeholders are used once each, and a backward pass that leaves the tokens out spoils no other."""
    keys, values, natural = (tensor.requires_grad_() for tensor in problem())
    given = natural[..., 3:] if linear else natural
    parts = ("mean", "second") if second else ("mean",)
    opened = open_tokens(keys, values, WEIGHTS, 4, num_steps=3)
    moments = [opened.moments(factor * given, second=second or factor == 1.0) for factor in (1.0, 0.5, -1.0)]
    assert second or moments[1].second is None
    ours = sum(loss_of(found, parts) for found in moments)
    expected = sum(loss_of(dense(keys, values, f * given, WEIGHTS), parts) for f in (1.0, 0.5, -1.0))
    torch.autograd.grad(ours, natural, retain_graph=True)
    for _ in range(2):
        assert_all_close(
            torch.autograd.grad(ours, (keys, values, natural), retain_graph=True),
            torch.autograd.grad(expected, (keys, values, natural), retain_graph=True),
        )


def test_tokens_that_are_keys_and_values_get_both_gradients():
    tokens, _, natural = problem()
    tokens.requires_grad_()
    for form in (slot_moments, dense):
        tokens.grad = None
        loss_of(form(tokens, tokens, natural, None), ("mean", "second")).backward()
        expected = tokens.grad if form is slot_moments else expected
    assert_close(expected, tokens.grad)


@pytest.mark.parametrize("size", [(1, 1, 1, 1), (2, 1, 3, 2), (1, 5, 1, 3), (2, 7, 3, 2)], ids=str)
def test_gradients_pass_gradcheck_to_the_second_order(size: tuple[int, int, int, int]):
    batch, num_tokens, num_slots, dim = size
    tokens = [draw(batch, num_tokens, dim, seed=seed).requires_grad_() for seed in (1, 2)]
    natural = draw(batch, num_slots, 2 * dim + 1, seed=3).requires_grad_()

    def function(*inputs: Tensor) -> tuple[Tensor, ...]:
        found = slot_moments(*inputs, keep_responsibilities=True)
        assert found.second is not None
        assert found.responsibilities is not None
        return found.log_mass, found.mean, found.second, found.responsibilities

    assert torch.autograd.gradcheck(function, (*tokens, natural))
    assert torch.autograd.gradgradcheck(function, (*tokens, natural))


def test_a_backward_pass_under_autocast_is_computed_in_full_precision():
    inputs = [tensor.float().requires_grad_() for tensor in problem()]
    found = []
    for enabled in (False, True):
        loss = loss_of(slot_moments(*inputs), ("mean", "second"))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            found.append(torch.autograd.grad(loss, inputs))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_an_infinite_gradient_to_a_responsibility_of_exactly_zero_does_not_spread():
    keys, values, natural = (tensor.requires_grad_() for tensor in problem(-3000.0))
    responsibilities = slot_moments(keys, values, natural, keep_responsibilities=True).responsibilities
    assert bool((responsibilities == 0).any())
    torch.xlogy(responsibilities, responsibilities).sum().backward()
    assert bool(keys.grad.isfinite().all())
    assert bool(natural.grad.isfinite().all())


def test_epsilon_is_added_to_every_token_of_every_slot():
    keys, values, natural = problem()
    for weights in (WEIGHTS, None):
        everything = slot_moments(keys, values, torch.zeros(2, 1, 7).double(), weights)
        ours = slot_moments(keys, values, natural, weights).with_epsilon(0.3, everything)
        expected = dense_moments(attend(slot_scores(keys, natural), weights, 0.3), values)
        for name in ("log_mass", "mean", "second"):
            assert_close(getattr(ours, name), getattr(expected, name), message=name)
        assert not bool(ours.empty.any())
