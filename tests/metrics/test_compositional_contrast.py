"""Compositional contrast: by hand, by a loop over pixels, by finite differences, and 0 where it must be."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerances import FLOAT32, assert_close
from torch import Tensor, nn

from psa.metrics.compositional_contrast import compositional_contrast, gradient_norms
from psa.models.decoders import BroadcastDecoder, PatchDecoder


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Scene(nn.Module):
    """A masked decoder's picture of one image's slots."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder.double()

    def forward(self, slots: Tensor) -> Tensor:
        return self.decoder(slots[None]).mean[0]


@pytest.fixture(params=[PatchDecoder, BroadcastDecoder])
def scene(request: pytest.FixtureRequest) -> Scene:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Scene(request.param(3, (8, 8), hidden_dim=8)).eval()


def looped(norms: Tensor) -> tuple[float, float]:
    """(contrast, weighted) of gradient norms (K, N), one pixel and one pair after the other."""
    num_slots, num_pixels = norms.shape
    mean = norms.mean(0)
    contrast = weighted = 0.0
    for n in range(num_pixels):
        together = sum(float(norms[k, n] * norms[j, n]) for k, j in itertools.combinations(range(num_slots), 2))
        contrast += together
        weighted += together * float(mean[n] / mean.max())
    return contrast, weighted


def test_it_is_what_a_loop_over_pixels_with_autograd_finds(scene):
    slots = draw(2, 3, 3)
    found = compositional_contrast(scene, slots)
    expected = []
    for image in slots:
        image = image.clone().requires_grad_()
        gradients = [torch.autograd.grad(pixel, image, retain_graph=True)[0] for pixel in scene(image).flatten()]
        expected.append(looped(torch.stack(gradients, dim=1).norm(dim=2)))
    assert_close(found.per_image, torch.tensor([contrast for contrast, _ in expected], dtype=torch.float64))
    assert_close(found.contrast, sum(contrast for contrast, _ in expected) / 2)
    assert_close(found.weighted, sum(weighted for _, weighted in expected) / 2)


def test_gradient_norms_are_those_of_finite_differences(scene):
    slots, step = draw(3, 3), 1e-6
    found = gradient_norms(scene, slots)
    for k in range(3):
        squares = 0.0
        for d in range(3):
            away = torch.zeros_like(slots)
            away[k, d] = step
            squares = squares + ((scene(slots + away) - scene(slots - away)).flatten() / (2 * step)).square()
        assert_close(found[k], squares.sqrt().detach(), 1e-7)


def test_slots_that_own_disjoint_pixels_have_none_at_all():
    weight = draw(4, 5, 3)

    def decode(slots: Tensor) -> Tensor:
        return torch.einsum("kpd,kd->kp", weight, slots).exp().reshape(2, 10)

    found = compositional_contrast(decode, draw(6, 4, 3, seed=1))
    assert found.contrast == found.weighted == 0.0
    assert float(gradient_norms(decode, draw(4, 3)).max()) > 0


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 8), st.integers(0, 10**6))
def test_of_a_linear_decoder_it_is_the_product_of_its_columns_lengths(slots, features, pixels, seed):
    weight = draw(pixels, slots, features, seed=seed)

    def decode(s: Tensor) -> Tensor:
        return torch.einsum("nkd,kd->n", weight, s)

    found = compositional_contrast(decode, draw(3, slots, features, seed=seed + 1))
    contrast, weighted = looped(weight.norm(dim=2).T)
    assert_close(found.per_image, torch.full((3,), contrast, dtype=torch.float64))
    assert_close(found.weighted, weighted)


def test_by_hand():
    """f = (3 s_1, 4 s_1 + 2 s_2): pixel 2 alone has both slots, 4 times 2; mean norms 1.5 and 3, so its weight is 1."""

    def decode(slots: Tensor) -> Tensor:
        return torch.stack([3 * slots[0, 0], 4 * slots[0, 0] + 2 * slots[1, 0]])

    found = compositional_contrast(decode, draw(1, 2, 1))
    assert (found.contrast, found.weighted) == (8.0, 8.0)
    # a third pixel of larger gradient and no second slot lowers the weight of the shared one to 3 / 6
    found = compositional_contrast(lambda s: torch.cat([decode(s), 12 * s[0, :1]]), draw(1, 2, 1))
    assert (found.contrast, found.weighted) == (8.0, 4.0)


@pytest.mark.parametrize("chunk_size", [1, 2, 7])
def test_it_does_not_depend_on_how_many_directions_at_once(scene, chunk_size):
    slots = draw(2, 4, 3)
    found = compositional_contrast(scene, slots, chunk_size=chunk_size)
    assert_close(found.per_image, compositional_contrast(scene, slots).per_image)


def test_one_slot_and_a_constant_decoder_have_none(scene):
    assert compositional_contrast(scene, draw(2, 1, 3)).contrast == 0.0
    found = compositional_contrast(lambda slots: 0.0 * slots, draw(2, 3, 3))
    assert found.contrast == found.weighted == 0.0


def test_float32_agrees_and_no_gradient_is_left(scene, device):
    slots = draw(2, 3, 3)
    expected = compositional_contrast(scene, slots)
    found = compositional_contrast(scene.float().to(device), slots.float().to(device).requires_grad_())
    assert_close(found.contrast, expected.contrast, FLOAT32)
    assert found.per_image.dtype == torch.float64
    assert not found.per_image.requires_grad
    assert all(parameter.grad is None for parameter in scene.parameters())


def test_no_image_is_an_error():
    with pytest.raises(ValueError, match="slots: expected at least one image, came none"):
        compositional_contrast(lambda slots: slots, torch.zeros(0, 2, 3))
