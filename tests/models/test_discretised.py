import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from tolerances import ALGEBRA, CONVERGED, assert_close
from torch import Tensor

from psa.models.discretised import ENDS, bits_per_dimension, discretised_log_prob, log_bin_mass
from psa.models.scene import LIKELIHOODS, PixelMixture
from psa.records import DecodedScene

LEVELS = torch.arange(256, dtype=torch.uint8)
SIGMA = 0.3


def means(value: float) -> Tensor:
    return torch.full((256,), value, dtype=torch.float64)


def scene(batch: int = 2, num_slots: int = 3, size: tuple[int, int] = (2, 3)) -> DecodedScene:
    generator = torch.Generator().manual_seed(0)
    rgb = torch.rand(batch, num_slots, 3, *size, dtype=torch.float64, generator=generator)
    logits = torch.randn(batch, num_slots, *size, dtype=torch.float64, generator=generator)
    return DecodedScene(rgb, torch.log_softmax(logits, 1))


def images(batch: int = 2, size: tuple[int, int] = (2, 3)) -> Tensor:
    drawn = torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    drawn[:, 0, 0, :2] = torch.tensor([0, 255], dtype=torch.uint8)  # both ends are there
    return drawn


@given(loc=st.floats(-1.0, 2.0), scale=st.floats(1e-3, 5.0))
def test_the_256_masses_sum_to_one_with_open_ends(loc, scale):
    assert_close(log_bin_mass(LEVELS, means(loc), scale, "open").exp().sum(), 1.0)


@given(loc=st.floats(-1.0, 2.0), scale=st.floats(1e-2, 0.5))
def test_with_closed_ends_the_masses_of_all_integers_sum_to_one(loc, scale):
    """A bin's mass depends on v - 255 m alone, so a mean moved by 256 levels stands for levels below 0 or above 255."""
    turns = [means(loc + 256 / 255 * turn) for turn in range(-8, 9)]
    assert_close(sum(log_bin_mass(LEVELS, mean, scale).exp().sum() for mean in turns), 1.0)


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("scale", [0.01, 0.3, 2.0])
def test_masses_are_scipys_differences(ends, scale):
    for loc in (-0.2, 0.0, 0.4, 1.0, 1.3):
        edges = (np.arange(257) - 0.5) / 255
        if ends == "open":
            edges[[0, -1]] = -np.inf, np.inf
        # both tails, each from its own side
        expected = np.where(
            LEVELS.numpy() / 255 < loc,
            norm.cdf(edges[1:], loc, scale) - norm.cdf(edges[:-1], loc, scale),
            norm.sf(edges[:-1], loc, scale) - norm.sf(edges[1:], loc, scale),
        )
        assert_close(log_bin_mass(LEVELS, means(loc), scale, ends).exp(), torch.from_numpy(expected))


@pytest.mark.parametrize("distance", [0.0, 10.0, 1e3, 1e5])
def test_far_tails_keep_their_digits(distance):
    """Against sixty digits."""
    scale, levels = 1e-2, LEVELS[[0, 1, 77, 254, 255]]
    for loc in (0.5 + distance * scale, 0.5 - distance * scale):
        found = log_bin_mass(levels, means(loc)[:5], scale)
        for level, value in zip(levels.tolist(), found.tolist(), strict=True):
            with mpmath.workdps(60):
                edges = [((mpmath.mpf(level) + half) / 255 - loc) / scale for half in (-0.5, 0.5)]
                tails = [mpmath.erfc(abs(edge) / mpmath.sqrt(2)) / 2 for edge in edges]
                inside = edges[0] < 0 < edges[1]
                mass = 1 - tails[0] - tails[1] if inside else abs(tails[0] - tails[1])
                expected = float(mpmath.log(mass))
            assert_close(value, expected, CONVERGED)


@pytest.mark.parametrize("ends", ENDS)
def test_gradients_are_those_of_differences_everywhere(ends):
    loc = torch.linspace(-30.0, 30.0, 32, dtype=torch.float64).requires_grad_()
    levels = LEVELS[torch.arange(32) * 17 % 256].clone()
    levels[-1] = 255
    assert torch.autograd.gradcheck(lambda m: log_bin_mass(levels, m, 0.5, ends), loc)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("ends", ENDS)
def test_it_is_a_sum_over_pixels_channels_and_assignments(likelihood, ends):
    decoded, x = scene(), images()
    expected = torch.zeros(2, dtype=torch.float64)

    def mass(level: int, loc: float) -> float:
        low, high = (level - 0.5) / 255, (level + 0.5) / 255
        if ends == "open":
            low, high = (-np.inf if level == 0 else low), (np.inf if level == 255 else high)
        return float(norm.cdf(high, loc, SIGMA) - norm.cdf(low, loc, SIGMA))

    for b, row, column in itertools.product(range(2), range(2), range(3)):
        at = (slice(None), row, column)
        masks, rgb, level = decoded.masks[b][at], decoded.rgb[b][:, :, row, column], x[b][at]
        if likelihood == "mixture":
            products = [math.prod(mass(int(level[c]), float(rgb[k, c])) for c in range(3)) for k in range(3)]
            expected[b] += math.log(sum(float(masks[k]) * products[k] for k in range(3)))
        else:
            expected[b] += sum(math.log(mass(int(level[c]), float(masks @ rgb[:, c]))) for c in range(3))
    assert_close(discretised_log_prob(decoded, x, likelihood, SIGMA, ends), expected)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_closed_bins_become_the_density_times_their_width(likelihood):
    """At a wide sigma: the midpoint rule is off by about (1 / 255 sigma)^2 / 24 a channel."""
    decoded, x = scene(), images()
    floats = x.double() / 255
    density = PixelMixture(decoded, 1.0).log_prob(floats)
    if likelihood == "normal":
        density = torch.distributions.Normal(decoded.mean, 1.0).log_prob(floats).sum((1, 2, 3))
    assert_close(discretised_log_prob(decoded, x, likelihood, 1.0), density - 18 * math.log(255), CONVERGED)


def test_float32_scenes_are_computed_in_float64():
    decoded = scene()
    single = DecodedScene(decoded.rgb.float(), decoded.log_masks.float())
    found = discretised_log_prob(single, images(), "mixture", SIGMA)
    assert found.dtype == torch.float64
    assert_close(found, discretised_log_prob(decoded, images(), "mixture", SIGMA), CONVERGED)


def test_a_uniform_guess_costs_eight_bits():
    assert_close(bits_per_dimension(-12 * math.log(256), 12), 8.0, ALGEBRA)


def test_values_outside_their_support_are_named():
    with pytest.raises(ValueError, match="likelihood must be one of normal, mixture, got 'laplace'"):
        discretised_log_prob(scene(), images(), "laplace", SIGMA)
    with pytest.raises(ValueError, match="ends must be one of closed, open, got 'half'"):
        discretised_log_prob(scene(), images(), "normal", SIGMA, "half")
    for sigma in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="sigma must be positive"):
            discretised_log_prob(scene(), images(), "normal", sigma)
