"""The token VAE: its ELBO against closed forms, quadrature and the exact density of an affine decoder."""

import math

import numpy as np
import pyro
import pytest
import scipy.stats
import torch
from pyro.infer import Trace_ELBO
from tolerances import assert_close, assert_mean_is
from torch import Tensor, nn

from psa.models.points import PointGuide, PointModel, perceptron
from psa.records import SlotPosterior

DTYPE = torch.float64


def affine(matrix: list[list[float]], offset: list[float]) -> nn.Linear:
    """x -> x matrix + offset."""
    layer = nn.Linear(len(matrix), len(offset), dtype=DTYPE)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(matrix, dtype=DTYPE).T)
        layer.bias.copy_(torch.tensor(offset, dtype=DTYPE))
    return layer


def mixture(weights: list[float], loc: list[list[float]], var: list[list[float]], num_tokens: int) -> SlotPosterior:
    """One image's."""
    weights, loc, var = (torch.tensor([values], dtype=DTYPE) for values in (weights, loc, var))
    return SlotPosterior(weights, loc, var, torch.full((1, weights.shape[1], num_tokens), 1.0), loc)


def particles(model: PointModel, guide: PointGuide, points: Tensor, own: SlotPosterior, count: int) -> Tensor:
    """Means of 100 single draws' ELBOs, ``count`` of them: the image stands 100 times in a batch."""
    elbo = Trace_ELBO()(model.to(DTYPE), guide.to(DTYPE))
    many = SlotPosterior(*(part.expand(100, -1, *part.shape[2:]) for part in parts(own)))
    with torch.no_grad():
        return torch.stack([-elbo(points.expand(100, -1, -1), many) / 100 for _ in range(count)])


def parts(own: SlotPosterior) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """In the record's order."""
    return own.weights, own.loc, own.var, own.responsibilities, own.initial_loc


POINTS = torch.tensor([[[0.3, -0.2], [1.1, 0.4], [-0.7, 0.9]]], dtype=DTYPE)
OWN = mixture([0.3, 0.7], [[0.0, 0.5], [1.0, -0.4]], [[0.5, 0.8], [0.3, 0.2]], 3)
SIGMA, SCALE = 0.4, 0.3
ENCODER = ([[0.8, 0.1], [-0.3, 1.1]], [0.1, -0.2])
DECODER = ([[1.2, -0.2], [0.4, 0.7]], [-0.1, 0.3])


def expected_elbo() -> float:
    """Entropy and reconstruction in closed form, the log mixture by Gauss-Hermite quadrature, in NumPy."""
    nodes, quadrature = np.polynomial.hermite_e.hermegauss(40)
    quadrature = quadrature / quadrature.sum()
    matrix, offset = (np.array(part) for part in DECODER)
    weights, loc, var = (part[0].numpy() for part in (OWN.weights, OWN.loc, OWN.var))
    total = 0.0
    for point in POINTS[0].numpy():
        mean = point @ np.array(ENCODER[0]) + np.array(ENCODER[1])
        total += 2 * 0.5 * math.log(2 * math.pi * math.e * SCALE**2)
        residual = point - mean @ matrix - offset
        spread = SCALE**2 * (matrix**2).sum()
        total += -math.log(2 * math.pi * SIGMA**2) - (residual @ residual + spread) / (2 * SIGMA**2)
        z = mean + SCALE * np.stack(np.meshgrid(nodes, nodes, indexing="ij"), -1)
        density = sum(
            weights[k] * scipy.stats.norm.pdf(z, loc[k], np.sqrt(var[k])).prod(-1) for k in range(len(weights))
        )
        total += float(quadrature @ np.log(density) @ quadrature)
    return total


def test_elbo_is_the_closed_form_with_quadrature():
    pyro.set_rng_seed(0)
    model, guide = PointModel(affine(*DECODER), SIGMA), PointGuide(affine(*ENCODER), SCALE)
    assert_mean_is(particles(model, guide, POINTS, OWN, 60), expected_elbo())


def test_elbo_is_at_most_the_exact_density_of_an_affine_decoder():
    pyro.set_rng_seed(1)
    matrix, offset = (torch.tensor(part, dtype=DTYPE) for part in DECODER)
    exact = 0.0
    for point in POINTS[0]:
        exact += math.log(
            sum(
                float(w)
                * scipy.stats.multivariate_normal(
                    (m @ matrix + offset).numpy(), (matrix.T @ v.diag() @ matrix + SIGMA**2 * torch.eye(2)).numpy()
                ).pdf(point.numpy())
                for w, m, v in zip(OWN.weights[0], OWN.loc[0], OWN.var[0], strict=True)
            )
        )
    model, guide = PointModel(affine(*DECODER), SIGMA), PointGuide(affine(*ENCODER), SCALE)
    found = particles(model, guide, POINTS, OWN, 60)
    assert float(found.mean() + 6 * found.std() / 60**0.5) < exact


def test_every_draw_gives_the_exact_density_where_the_guide_is_the_posterior():
    """One component of variance v, decoder a z + b: q(z | x) = Normal(., s^2), 1 / s^2 = 1 / v + a^2 / sigma^2."""
    a, b, v, m = 1.7, torch.tensor([0.2, -0.5], dtype=DTYPE), 0.6, torch.tensor([0.4, 1.0], dtype=DTYPE)
    var = 1.0 / (1.0 / v + a**2 / SIGMA**2)
    gain = var * a / SIGMA**2
    shift = var * m / v - gain * b
    model = PointModel(affine([[a, 0.0], [0.0, a]], b.tolist()), SIGMA)
    guide = PointGuide(affine([[gain, 0.0], [0.0, gain]], shift.tolist()), 1.0)
    with torch.no_grad():
        guide.double().log_scale.fill_(0.5 * math.log(var))
    own = mixture([1.0], [m.tolist()], [[v, v]], 3)
    exact = scipy.stats.norm.logpdf(POINTS.numpy(), (a * m + b).numpy(), math.sqrt(a**2 * v + SIGMA**2)).sum()
    assert_close(particles(model, guide, POINTS, own, 5), torch.full((5,), exact, dtype=DTYPE))


def test_draws_of_the_guide_are_about_the_encoded_points():
    guide = PointGuide(affine(*ENCODER), SCALE).double()
    draws = torch.stack([guide.draw(POINTS, torch.Generator().manual_seed(seed)) for seed in range(2000)]).detach()
    assert_mean_is(draws, guide.encoder(POINTS).detach())
    assert_mean_is((draws - guide.encoder(POINTS).detach()).square(), torch.full_like(POINTS, SCALE**2))


def test_the_networks_are_piecewise_affine():
    """A LeakyReLU network is linear along a short enough line, and no line through the plane."""
    torch.manual_seed(0)
    network = perceptron().double()
    line = torch.linspace(0, 1, 5, dtype=DTYPE)[:, None] * torch.tensor([[1.0, 0.5]], dtype=DTYPE)
    with torch.no_grad():
        short = network(1e-4 * line).diff(dim=0).diff(dim=0).abs().max()
        long = network(20 * line).diff(dim=0).diff(dim=0).abs().max()
    assert_close(short, 0.0)
    assert float(long) > 1e-3


def test_bad_scales_are_refused():
    with pytest.raises(ValueError, match=r"^sigma must be a positive number, got 0\.0$"):
        PointModel(perceptron(), 0.0)
    with pytest.raises(ValueError, match=r"^scale must be a positive number, got nan$"):
        PointGuide(perceptron(), math.nan)
