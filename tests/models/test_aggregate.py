"""The aggregate prior as a distribution, against scipy, its own draws, and Pyro."""

from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import scipy.special
import scipy.stats
import torch
from contracts import draw
from hypothesis import given
from hypothesis import strategies as st
from largest_tensor import largest_tensor
from safetensors.torch import save_file
from tolerances import FLOAT32, STANDARD_ERRORS, assert_close, assert_mean_is
from torch import Tensor

from psa.errors import RunError
from psa.models import aggregate
from psa.models.aggregate import AggregatePrior
from psa.runs import save_tensors

COVARIANCES = pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
seeds = st.integers(0, 10_000)


def spreads(num_components: int, dim: int, full: bool, seed: int) -> dict[str, Tensor]:
    if not full:
        return {"var": draw(num_components, dim, seed=seed).exp()}
    factor = draw(num_components, dim, dim, seed=seed)
    return {"covariance": factor @ factor.mT + 0.3 * torch.eye(dim, dtype=torch.float64)}


def some_prior(num_components: int = 5, dim: int = 3, full: bool = False, seed: int = 0, **more: Any) -> AggregatePrior:
    weights = (2.0 * draw(num_components, seed=seed + 1)).softmax(0)
    loc = 2.0 * draw(num_components, dim, seed=seed + 2) + more.pop("shift", 0.0)
    return AggregatePrior(weights, loc, **spreads(num_components, dim, full, seed + 3), **more)


def covariances(prior: AggregatePrior) -> Tensor:
    return prior.covariance if prior.var is None else prior.var.diag_embed()


def by_scipy(prior: AggregatePrior, slots: Tensor) -> Tensor:
    """log sum_g w_g Normal(s; mu_g, Sigma_g), component by component."""
    rows = slots.reshape(-1, slots.shape[-1]).numpy()
    terms = [
        np.log(weight) + np.atleast_1d(scipy.stats.multivariate_normal(loc, covariance).logpdf(rows))
        for weight, loc, covariance in zip(
            prior.weights.numpy(), prior.loc.numpy(), covariances(prior).numpy(), strict=True
        )
        if weight > 0
    ]
    return torch.as_tensor(scipy.special.logsumexp(terms, axis=0)).reshape(slots.shape[:-1])


@given(
    num_components=st.integers(1, 8),
    dim=st.integers(1, 5),
    full=st.booleans(),
    batch=st.sampled_from([(), (4,), (2, 3), (0,)]),
    shift=st.sampled_from([0.0, 300.0]),
    seed=seeds,
)
def test_log_prob_equals_scipys_sum_over_components(
    num_components: int, dim: int, full: bool, batch: tuple[int, ...], shift: float, seed: int
):
    prior = some_prior(num_components, dim, full, seed, shift=shift)
    slots = 2.0 * draw(*batch, dim, seed=seed + 9) + shift
    assert_close(prior.log_prob(slots), by_scipy(prior, slots) if slots.numel() else torch.zeros(batch))


@COVARIANCES
def test_log_prob_in_pieces_is_that_of_the_whole(full: bool, monkeypatch: pytest.MonkeyPatch):
    prior, slots = some_prior(17, 3, full), draw(23, 3, seed=7)
    monkeypatch.setattr(aggregate, "TERMS", 40)
    assert_close(prior.log_prob(slots), by_scipy(prior, slots))


@COVARIANCES
@pytest.mark.usefixtures("unchecked")
def test_log_prob_of_many_slots_under_many_components_makes_no_large_tensor(
    full: bool, monkeypatch: pytest.MonkeyPatch
):
    prior, slots = some_prior(200, 4, full), draw(3000, 4, seed=7)
    monkeypatch.setattr(aggregate, "TERMS", 1 << 14)
    with largest_tensor() as probe:
        prior.log_prob(slots)
    assert 700 <= probe.largest <= 1 << 14 < min(3000 * 9, 3000 * 200)


@COVARIANCES
def test_a_component_of_weight_zero_adds_nothing_and_leaves_gradients_finite(full: bool):
    some = some_prior(3, 2, full)
    none = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    prior = AggregatePrior(none.requires_grad_(), some.loc, some.var, some.covariance)
    alone = torch.distributions.MultivariateNormal(some.loc[2], covariances(some)[2])
    slots = torch.cat([some.loc, draw(4, 2, seed=8)]).requires_grad_()
    assert_close(prior.log_prob(slots), alone.log_prob(slots))
    prior.log_prob(slots).sum().backward()
    assert_close(slots.grad, torch.autograd.grad(alone.log_prob(slots).sum(), slots)[0])
    assert bool(torch.isfinite(none.grad).all())
    torch.manual_seed(0)
    assert set(prior.sample_components((1000,))[1].tolist()) == {2}


@COVARIANCES
def test_gradients_are_those_of_the_density(full: bool):
    prior, slots = some_prior(4, 2, full), draw(3, 2, seed=8).requires_grad_()
    assert torch.autograd.gradcheck(prior.log_prob, slots)


@COVARIANCES
def test_moments_equal_those_of_a_million_draws(full: bool):
    prior = some_prior(6, 2, full)
    torch.manual_seed(0)
    draws = prior.sample((1_000_000,))
    assert draws.shape == (1_000_000, 2)
    assert_mean_is(draws, prior.mean)
    away = draws - prior.mean
    assert_mean_is(away[:, :, None] * away[:, None], prior.covariance_matrix)
    assert_close(prior.variance, prior.covariance_matrix.diagonal())


@COVARIANCES
def test_draws_of_each_component_are_its_normal_at_the_temperature(full: bool):
    prior = some_prior(3, 2, full)
    slots, component = prior.sample_components((50, 4000), torch.Generator().manual_seed(0), temperature=0.3)
    assert slots.shape == (50, 4000, 2)
    assert component.shape == (50, 4000)
    share = torch.nn.functional.one_hot(component.flatten(), 3).double()
    assert_mean_is(share, prior.weights)
    for g, covariance in enumerate(covariances(prior)):
        away = slots[component == g] - prior.loc[g]
        assert_mean_is(away, torch.zeros(2))
        assert_mean_is(away[:, :, None] * away[:, None], 0.3 * covariance)


@COVARIANCES
def test_covariance_factors_are_gathered_a_bounded_number_at_a_time(full: bool, monkeypatch: pytest.MonkeyPatch):
    prior = some_prior(3, 2, full)
    whole = prior.sample_components((100,), torch.Generator().manual_seed(0))[0]
    monkeypatch.setattr(aggregate, "TERMS", 12)
    assert_close(prior.sample_components((100,), torch.Generator().manual_seed(0))[0], whole)


@COVARIANCES
def test_at_temperature_zero_draws_are_means_and_temperature_one_is_the_distribution(full: bool):
    prior = some_prior(full=full)
    slots, component = prior.sample_components((2, 5), temperature=0.0)
    assert torch.equal(slots, prior.loc[component])
    torch.manual_seed(3)
    direct = prior.sample((4,))
    torch.manual_seed(3)
    assert torch.equal(direct, prior.sample_components((4,))[0])


def test_a_generator_makes_draws_repeat_and_leaves_the_global_one_alone():
    prior = some_prior()
    state = torch.random.get_rng_state()
    one, other = (prior.sample_components((7,), torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_single_draw_is_one_slot():
    slots, component = some_prior().sample_components()
    assert slots.shape == (3,)
    assert component.shape == ()
    assert some_prior().sample().shape == (3,)


def test_it_is_a_distribution_of_pyro_over_one_slot():
    prior = some_prior()
    assert (prior.batch_shape, prior.event_shape, prior.event_dim, prior.has_rsample) == ((), (3,), 1, False)

    def program(slots: Tensor | None) -> Tensor:
        with pyro.plate("images", 4, dim=-2), pyro.plate("slots", 2, dim=-1):
            return pyro.sample("slot", prior, obs=slots)

    pyro.set_rng_seed(0)
    slots = program(None)
    assert slots.shape == (4, 2, 3)
    assert len(slots.reshape(-1, 3).unique(dim=0)) == 8
    trace = pyro.poutine.trace(program).get_trace(slots)
    assert_close(trace.log_prob_sum(), by_scipy(prior, slots).sum())
    expanded = prior.expand((4, 2))
    assert expanded.batch_shape == (4, 2)
    assert_close(expanded.log_prob(slots), by_scipy(prior, slots))


@COVARIANCES
def test_single_precision_agrees_with_double(full: bool):
    prior, slots = some_prior(full=full), draw(50, 3, seed=8)
    single = prior.to(torch.float32)
    assert single.log_prob(slots.float()).dtype == torch.float32
    assert_close(single.log_prob(slots.float()), prior.log_prob(slots), 10 * FLOAT32)
    assert_close(prior.to(slots.float()).mean, prior.mean, FLOAT32)


@COVARIANCES
def test_it_runs_on_every_device(full: bool, device: torch.device):
    prior, slots = some_prior(full=full, num_images=7), draw(5, 3, seed=8)
    there = prior.to(device)
    assert there.num_images == 7
    assert_close(there.log_prob(slots.to(device)), prior.log_prob(slots))
    drawn, component = there.sample_components((2,), torch.Generator(device).manual_seed(0))
    assert (drawn.device.type, component.device.type) == (device.type, device.type)


@COVARIANCES
def test_what_is_saved_is_what_is_loaded(full: bool, tmp_path: Path):
    prior = some_prior(full=full, num_images=12, dropped_components=3, dropped_weight=0.25).to(torch.float32)
    prior.save(tmp_path / "prior.safetensors")
    loaded = AggregatePrior.load(tmp_path / "prior.safetensors")
    for name in ("weights", "loc", "var", "covariance"):
        one, other = getattr(prior, name), getattr(loaded, name)
        assert (one is None and other is None) or torch.equal(one, other)
    assert (loaded.num_images, loaded.dropped_components, loaded.dropped_weight) == (12, 3, 0.25)
    assert loaded.loc.dtype == torch.float32


def foreign_files(folder: Path) -> dict[str, Path]:
    prior = some_prior()
    notes = {"kind": aggregate.KIND, "num_images": 1}
    found = {name: folder / name for name in ("missing", "truncated", "other", "unmarked", "negative", "nothing")}
    prior.save(found["truncated"])
    found["truncated"].write_bytes(found["truncated"].read_bytes()[:200])
    save_tensors(
        found["other"], {"weights": prior.weights, "loc": prior.loc, "var": prior.loc.exp()}, {"kind": "mixture"}
    )
    save_file({"weights": prior.weights}, found["unmarked"])
    save_tensors(found["negative"], {"weights": prior.weights, "loc": prior.loc, "var": -prior.loc.exp()}, notes)
    save_tensors(found["nothing"], {"weights": prior.weights}, notes)
    return found


@pytest.mark.parametrize("name", ["missing", "truncated", "other", "unmarked", "negative", "nothing"])
@pytest.mark.usefixtures("unchecked")
def test_foreign_files_are_refused_in_one_line(name: str, tmp_path: Path):
    path = foreign_files(tmp_path)[name]
    with pytest.raises(RunError, match=rf"^{path}: expected (an aggregate prior|a safetensors file).*$") as caught:
        AggregatePrior.load(path)
    assert "\n" not in str(caught.value)


ONE = torch.ones(1, 2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((ONE[:, 0], ONE), "var or covariance must be given"),
        ((ONE[:, 0], ONE, ONE, ONE[..., None] * ONE), "var or covariance must be given"),
        ((ONE[:, 0] / 2, ONE, ONE), r"weights must be non-negative and sum to 1, got a sum of 0\.5"),
        ((torch.tensor([1.5, -0.5]), torch.zeros(2, 2), torch.ones(2, 2)), "weights must be non-negative"),
        ((ONE[0], ONE, ONE), r"weights must have shape \(1,\) as loc has \(1, 2\), got \(2,\)"),
        ((ONE[:, 0], ONE, ONE[:, :1]), r"var must have shape \(1, 2\)"),
        ((ONE[:, 0], ONE, 0 * ONE), "var must be positive, got a least entry of 0"),
        ((ONE[:, 0], ONE, torch.inf * ONE), "var must be positive"),
        ((ONE[:, 0], torch.nan * ONE, ONE), "loc must be finite"),
        ((ONE[:0, 0], ONE[:0], ONE[:0]), r"loc must be finite of shape \(G, D\), got shape \(0, 2\)"),
        ((ONE[:, 0], ONE, None, ONE[..., None] * ONE), "covariance must be positive definite, component 0 is not"),
        ((ONE[:, 0], ONE, None, ONE[None]), r"covariance must have shape \(1, 2, 2\)"),
        (
            (ONE[:, 0], ONE, None, torch.tensor([[[1.0, 0.5], [0.0, 1.0]]], dtype=torch.float64)),
            "covariance must be positive definite",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_parameters_outside_their_support_are_refused(arguments: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        AggregatePrior(*arguments)


@pytest.mark.usefixtures("unchecked")
def test_slots_of_another_size_and_negative_temperatures_are_refused():
    with pytest.raises(ValueError, match=r"value must have 3 features, got shape \(4, 2\)"):
        some_prior().log_prob(torch.zeros(4, 2))
    for temperature in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="temperature must be a number >= 0"):
            some_prior().sample_components((2,), temperature=temperature)


def test_more_components_than_multinomial_knows_are_drawn_in_proportion():
    """Three in four draws come from the first quarter of 2^24 + 4 components."""
    quarter = (1 << 22) + 1
    weights = torch.full((4 * quarter,), 1 / (12 * quarter), dtype=torch.float64)
    weights[:quarter] *= 9
    prior = AggregatePrior(weights, torch.zeros(4 * quarter, 1), torch.ones(1, 1).expand(4 * quarter, 1))
    first = (prior.sample_components((10_000,), torch.Generator().manual_seed(0))[1] < quarter).double()
    assert abs(float(first.mean()) - 0.75) < STANDARD_ERRORS * (0.75 * 0.25 / 10_000) ** 0.5
