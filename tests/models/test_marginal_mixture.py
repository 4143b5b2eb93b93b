"""The local model with its assignments summed out, against Pyro's own enumeration; the coordinates of its sampler."""

import math

import pyro
import pytest
import scipy.stats
import torch
from contracts import draw
from pyro.infer import TraceEnum_ELBO, config_enumerate
from tolerances import CONVERGED, assert_close, assert_mean_is
from torch import Tensor
from torch.autograd.functional import jacobian
from torch.distributions import StickBreakingTransform

from psa.models.local_mixture import LocalMixturePrior, local_mixture
from psa.models.marginal_mixture import SlotMixture, StickBreaking, marginal_local_mixture

PRIOR = LocalMixturePrior(0.6, torch.tensor([0.5, -1.0, 0.0]), 0.3, 1.4, torch.tensor([0.5, 1.0, 2.0]))
MASK = torch.tensor([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1]]) > 0


def latents(batch: int, num_slots: int, dim: int) -> dict[str, Tensor]:
    return {
        "weights": draw(batch, 1, num_slots, seed=1).softmax(-1),
        "precision": draw(batch, num_slots, dim, seed=2).exp(),
        "loc": draw(batch, num_slots, dim, seed=3),
    }


def log_density(tokens: Tensor, values: dict[str, Tensor], *rest: object, prior: LocalMixturePrior = PRIOR) -> Tensor:
    program = pyro.poutine.condition(marginal_local_mixture, values)
    trace = pyro.poutine.trace(program).get_trace(tokens, prior, values["loc"].shape[1], *rest)
    return trace.log_prob_sum()


def enumerated(tokens: Tensor, values: dict[str, Tensor], mask: Tensor | None) -> float:
    program = pyro.poutine.condition(config_enumerate(local_mixture), values)
    arguments = (tokens, PRIOR, values["loc"].shape[1], mask)
    return -TraceEnum_ELBO(max_plate_nesting=2).loss(program, lambda *_: None, *arguments)


@pytest.mark.parametrize("mask", [None, MASK])
def test_density_is_that_of_the_program_with_assignments_enumerated(mask):
    tokens, values = 2 * draw(2, 5, 3, seed=4), latents(2, 4, 3)
    assert_close(log_density(tokens, values, mask), enumerated(tokens, values, mask))


def test_sites_and_their_shapes_are_those_of_the_program_with_assignments():
    tokens = draw(2, 5, 3, seed=4)
    traces = [
        pyro.poutine.trace(program).get_trace(tokens, PRIOR, 4) for program in (local_mixture, marginal_local_mixture)
    ]
    shapes = [
        {name: (site["value"].shape, [(f.name, f.dim) for f in site["cond_indep_stack"]]) for name, site in found}
        for found in ([(n, s) for n, s in t.nodes.items() if s["type"] == "sample"] for t in traces)
    ]
    assert shapes[0].pop("assignment")
    assert shapes[0] == shapes[1]


def test_padding_is_as_if_absent_whatever_it_holds():
    tokens, values = 2 * draw(1, 5, 3, seed=4), latents(1, 4, 3)
    mask = MASK[:1]
    padded = tokens.masked_fill(~mask[..., None], torch.nan).requires_grad_()
    found = log_density(padded, values, mask)
    assert_close(found, log_density(tokens[mask][None], values))
    (gradient,) = torch.autograd.grad(found, padded)
    assert bool((gradient[~mask] == 0).all())
    assert bool(gradient.isfinite().all())


def test_a_weight_of_two_is_a_token_twice():
    tokens, values = 2 * draw(1, 3, 3, seed=4), latents(1, 4, 3)
    weighted = log_density(tokens, values, torch.tensor([[2.0, 0.0, 1.0]], dtype=torch.float64))
    assert_close(weighted, log_density(tokens[:, [0, 0, 2]], values))


def test_density_does_not_cancel_far_from_the_origin():
    grid, shift = 2.0**-10, 2.0**30  # sums and differences of these are exact
    tokens, values = (2 * draw(2, 5, 3, seed=4) / grid).round() * grid, latents(2, 4, 3)
    loc = (values["loc"] / grid).round() * grid
    near = SlotMixture(values["weights"], loc, values["precision"], 5).log_prob(tokens)
    far = SlotMixture(values["weights"], loc + shift, values["precision"], 5).log_prob(tokens + shift)
    assert_close(far, near)


@pytest.mark.parametrize("least", [1e-20, 1e-300])
def test_gradients_are_finite_at_a_weight_near_zero(least):
    weights = torch.tensor([least, 1.0, least, least], dtype=torch.float64).repeat(2, 1, 1)
    values = latents(2, 4, 3) | {"weights": weights}
    leaves = [value.requires_grad_() for value in values.values()]
    sparse = LocalMixturePrior(0.1, 0.0, 0.3, 1.4, 1.0)
    gradients = torch.autograd.grad(log_density(2 * draw(2, 5, 3, seed=4), values, prior=sparse), leaves)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def test_a_weight_of_zero_adds_nothing_and_its_gradient_is_finite():
    tokens, values = 2 * draw(2, 5, 3, seed=4), latents(2, 4, 3)
    weights = torch.tensor([0.0, 0.3, 0.7, 0.0]).double().expand(2, 1, 4).clone().requires_grad_()
    found = SlotMixture(weights, values["loc"], values["precision"], 5).log_prob(tokens)
    used = SlotMixture(weights[..., 1:3], values["loc"][:, 1:3], values["precision"][:, 1:3], 5).log_prob(tokens)
    assert_close(found, used)
    (gradient,) = torch.autograd.grad(found.sum(), weights)
    assert bool(gradient.isfinite().all())


def test_a_tiny_weight_counts_with_its_own_logarithm():
    """Not with the one that Pyro's categorical distribution cuts off near 1e-16."""
    values = latents(1, 2, 3)
    values["loc"] = torch.tensor([[[0.0] * 3, [1e3] * 3]]).double()
    values["precision"] = torch.ones(1, 2, 3).double()
    weights = torch.tensor([[[1.0, 1e-200]]], dtype=torch.float64)
    found = SlotMixture(weights, values["loc"], values["precision"], 1).log_prob(values["loc"][:, 1:])
    expected = -200 * math.log(10) + 3 * float(scipy.stats.norm.logpdf(0.0))
    assert_close(found[0, 0], expected)


def test_the_density_builds_nothing_of_size_tokens_by_slots_by_features(unchecked):
    batch, num_tokens, num_slots, dim = 2, 32, 8, 16
    values = {name: value.requires_grad_() for name, value in latents(batch, num_slots, dim).items()}
    tokens = draw(batch, num_tokens, dim, seed=4)
    with torch.profiler.profile(profile_memory=True) as profile:
        total = log_density(tokens, values, prior=LocalMixturePrior(0.5))
        torch.autograd.grad(total, list(values.values()))
    most = max(event.cpu_memory_usage for event in profile.events())
    assert 0 < most < batch * num_tokens * num_slots * dim * 8 / 4


def test_tokens_can_be_drawn():
    values = latents(1, 3, 3)
    program = pyro.poutine.condition(pyro.poutine.uncondition(marginal_local_mixture), values)
    torch.manual_seed(0)
    trace = pyro.poutine.trace(program).get_trace(torch.zeros(1, 4000, 3, dtype=torch.float64), PRIOR, 3)
    drawn = trace.nodes["values"]["value"]
    assert drawn.shape == (1, 4000, 3)
    assert_mean_is(drawn[0], (values["weights"][0, 0][:, None] * values["loc"][0]).sum(0))


@pytest.mark.parametrize("num_slots", [2, 5])
def test_sticks_agree_with_pytorchs_where_no_weight_is_tiny(num_slots):
    ours, theirs, x = StickBreaking(), StickBreakingTransform(), draw(3, num_slots - 1, seed=0)
    y = ours(x)
    assert_close(y, theirs(x))
    assert_close(ours.inv(y), x)
    assert_close(ours.log_abs_det_jacobian(x, y), theirs.log_abs_det_jacobian(x, y))
    assert_close(ours(torch.zeros_like(x)), torch.full_like(y, 1 / num_slots))


def test_the_jacobian_is_that_of_automatic_differentiation():
    stick, x = StickBreaking(), 3 * draw(4, seed=0)
    found = jacobian(lambda z: stick(z)[:-1], x)
    assert_close(stick.log_abs_det_jacobian(x, stick(x)), found.logdet())


def test_one_slot_has_nothing_to_break():
    stick, x = StickBreaking(), torch.zeros(3, 1, 0, dtype=torch.float64)
    assert_close(stick(x), torch.ones(3, 1, 1))
    assert stick.inv(torch.ones(3, 1, 1, dtype=torch.float64)).shape == (3, 1, 0)
    assert_close(stick.log_abs_det_jacobian(x, stick(x)), torch.zeros(3, 1))


def test_every_slot_can_be_emptier_than_the_spacing_of_floats():
    stick, x = StickBreaking(), torch.tensor([[200.0, 0.0], [-200.0, 200.0], [-200.0, -200.0], [1e6, 1e6]]).double()
    y = stick(x.requires_grad_())
    assert_close(y.sum(-1), torch.ones(4))
    least = y.detach().amin(0)
    assert bool((least < 1e-80).all())
    assert bool((y > 0).all())
    (gradient,) = torch.autograd.grad(y.log().sum(), x)
    assert bool(gradient.isfinite().all())


def test_a_sparse_prior_keeps_its_mass_in_the_coordinates_of_the_sampler():
    """Dirichlet(0.1, 0.1) on the line: both halves have one half, which PyTorch's sticks, cut off at 2e-16, miss."""

    def mass(stick: StickBreaking | StickBreakingTransform) -> float:
        prior = pyro.distributions.Dirichlet(torch.full((2,), 0.1, dtype=torch.float64))
        line = torch.linspace(0, 400, 400_001, dtype=torch.float64)[:, None]
        y = stick(line)
        return float(torch.trapezoid((prior.log_prob(y) + stick.log_abs_det_jacobian(line, y)).exp(), line[:, 0]))

    assert abs(mass(StickBreaking()) - 0.5) < CONVERGED
    assert mass(StickBreakingTransform()) < 0.49
