"""Piecewise affine or not, by operations and by bends, on maps of which it is known."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerances import CONVERGED, assert_close
from torch import Tensor, nn
from torch.nn import functional as F

from psa.metrics.affine_pieces import LENGTHS, Operations, operations, straightness
from psa.models.decoders import BroadcastDecoder, JointDecoder, PatchDecoder

SLOTS, FEATURES, PIXELS = 3, 4, 40


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


FIRST, SECOND = draw(SLOTS * FEATURES, 24), draw(24, PIXELS, seed=1)


def through(activation):
    """An MLP of one hidden layer; its output must bend, so it is read off linearly."""
    return lambda slots: activation(slots.flatten()[None] @ FIRST)[0] @ SECOND


class Cube(torch.autograd.Function):
    """s^3 with a gradient of its own: a name that no list has."""

    generate_vmap_rule = True

    @staticmethod
    def forward(slots: Tensor) -> Tensor:
        return slots**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        return 3 * ctx.saved_tensors[0] ** 2 * gradient


def scenes(count: int = 4) -> list[Tensor]:
    return list(draw(count, SLOTS, FEATURES, seed=2))


STRAIGHT = {
    "affine": through(lambda x: 2 * x - x.mean() + 1),
    "relu": through(torch.relu),
    "leaky relu": through(F.leaky_relu),
    "prelu": through(nn.PReLU(dtype=torch.float64).requires_grad_(False)),
    "clamp": through(lambda x: x.clamp(-1, 1)),
    "abs": through(torch.abs),
    "where": through(lambda x: torch.where(x > 0, 2 * x, 3 * x)),
    "max pool": through(lambda x: F.max_pool2d(x.view(1, 1, 4, 6), 2).flatten(1).repeat(1, 4)),
    "batch norm": through(nn.BatchNorm1d(24).double().eval().requires_grad_(False)),
}
CURVED = {
    "tanh": through(torch.tanh),
    "sigmoid": through(torch.sigmoid),
    "gelu": through(F.gelu),
    "silu": through(F.silu),
    "softmax": through(lambda x: x.softmax(1)),
    "layer norm": through(lambda x: F.layer_norm(x, (24,))),
    "square": through(lambda x: x**2),
    "product": through(lambda x: x * x.flip(1)),
    "product of matrices": lambda slots: (slots @ slots.mT).flatten(),
    "quotient": through(lambda x: x / (3.0 + x.relu().sum())),
    "attention": lambda slots: F.scaled_dot_product_attention(*(slots[None],) * 3).flatten(),
}


@pytest.mark.parametrize("name", STRAIGHT)
def test_a_piecewise_affine_map_is_told_by_its_operations_and_by_its_bends(name):
    assert operations(STRAIGHT[name], scenes()[0]).piecewise_affine is True
    assert straightness(STRAIGHT[name], scenes(), torch.Generator().manual_seed(0)).curved <= 0.1


@pytest.mark.parametrize("name", CURVED)
def test_a_curved_map_is_told_by_its_operations_and_by_its_bends(name):
    assert operations(CURVED[name], scenes()[0]).piecewise_affine is False
    found = straightness(CURVED[name], scenes(), torch.Generator().manual_seed(0))
    assert found.curved >= 0.9
    assert found.told > 0.5


def test_what_breaks_it_is_named():
    def decode(slots: Tensor) -> Tensor:
        hidden = F.leaky_relu(slots @ draw(FEATURES, 8))
        return (hidden.softmax(0) * hidden).sum(0)

    found = operations(decode, scenes()[0])
    assert found == Operations(pieces=("leaky relu",), breaking=("product", "softmax"), unknown=())


def test_a_product_with_a_constant_breaks_nothing():
    weight = draw(FEATURES, 6)
    for decode in (lambda s: s @ weight, lambda s: (weight.T @ s.T).T * 3.0 / 2.0, lambda s: F.linear(s, weight.T)):
        assert operations(decode, scenes()[0]) == Operations((), (), ())
    assert operations(lambda s: s.sum(0) @ s.T, scenes()[0]).breaking == ("product",)


def test_an_operation_of_no_list_is_unknown_and_its_bends_tell():
    found = operations(Cube.apply, scenes()[0])
    assert found.piecewise_affine is None
    assert len(found.unknown) == 1
    assert straightness(Cube.apply, scenes(), torch.Generator().manual_seed(0)).curved >= 0.9


def test_what_hides_from_the_operations_shows_in_the_bends():
    def decode(slots: Tensor) -> Tensor:
        return slots + slots.detach() ** 2

    assert operations(decode, scenes()[0]).piecewise_affine is True
    assert straightness(decode, scenes()).curved >= 0.9


def test_an_affine_map_never_bends_at_all():
    found = straightness(STRAIGHT["affine"], scenes(), torch.Generator().manual_seed(0))
    assert found.bent.tolist() == [0.0, 0.0, 0.0]
    assert (found.told, found.curved) == (0.0, 0.0)


def test_of_a_piecewise_affine_map_the_share_that_bends_falls_with_the_length():
    """A kink of |s| lies in a segment of half length h in direction u with probability about h |u| 2 p(0)."""

    def decode(slots: Tensor) -> Tensor:
        return slots.abs()

    found = straightness(decode, list(draw(400, 50, 20, seed=3)), torch.Generator().manual_seed(0))
    # P(|s| < h |u|) = E[2 h |u| phi(0)] to first order in h, with E|u| = sqrt(2 / pi) and phi(0) = 1 / sqrt(2 pi)
    expected = 2 / torch.pi * torch.tensor(LENGTHS)
    count = 400 * 50 * 20 * 4
    assert bool(((found.bent - expected).abs() < 6 * (4 * expected / count).sqrt() + 1e-3 * expected).all())


@given(st.floats(0.1, 10.0), st.integers(0, 10**6))
def test_a_parabola_falls_to_a_hundredth_whatever_its_scale(scale, seed):
    found = straightness(lambda s: scale * s.square(), [draw(2, 3, seed=seed)], torch.Generator().manual_seed(seed))
    assert found.curved * found.told > 0.5


@pytest.mark.parametrize("kind", [PatchDecoder, BroadcastDecoder])
def test_a_masked_decoder_paints_piecewise_affinely_and_composes_otherwise(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder = kind(FEATURES, (8, 8), hidden_dim=16).double().eval().requires_grad_(False)
    paint = operations(decoder.paint, scenes()[0])
    assert paint == Operations(("relu",), (), ())
    assert straightness(decoder.paint, scenes()).curved <= 0.1

    def picture(slots: Tensor) -> Tensor:
        return decoder(slots[None]).mean

    assert operations(picture, scenes()[0]).breaking == ("exp", "log softmax", "product")
    assert straightness(picture, scenes()).curved >= 0.5


def test_the_joint_decoders_picture_is_piecewise_affine():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder = JointDecoder(FEATURES, (8, 8), hidden_dim=16).double().eval().requires_grad_(False)

    def picture(slots: Tensor) -> Tensor:
        return decoder.picture(slots[None])

    assert operations(picture, scenes()[0]) == Operations(("leaky relu",), (), ())
    assert straightness(picture, scenes()).curved <= 0.1


def test_the_same_generator_finds_the_same():
    one, other = (straightness(CURVED["tanh"], scenes(), torch.Generator().manual_seed(5)) for _ in range(2))
    assert_close(one.bent, other.bent, CONVERGED)
    assert one.curved == other.curved
