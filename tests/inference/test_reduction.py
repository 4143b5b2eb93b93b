"""Reduction to few components: what EM raises and conserves, and that it does not depend on how slots came."""

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from contracts import draw
from hypothesis import given, settings
from hypothesis import strategies as st
from largest_tensor import largest_tensor
from sklearn.mixture import GaussianMixture
from tolerances import CONVERGED, FLOAT32, assert_close
from torch import Tensor

from psa.inference import aggregate, reduction
from psa.inference.em import MixtureState
from psa.inference.point_estimates import MaximumLikelihoodRule
from psa.inference.posterior_stream import SlotChunk, SlotStream, save_posteriors
from psa.inference.reduction import Climb, ReductionOptions, climb, reduce_stream, starting_state
from psa.inference.survey import Survey, survey
from psa.models.aggregate import AggregatePrior

COVARIANCES = pytest.mark.parametrize("covariance", ["diagonal", "full"])
CONSERVED = 1e-8  # the issue's
seeds = st.integers(0, 10_000)
FEW = ReductionOptions(num_passes=5, num_restarts=2, start_passes=5)


def some_chunk(num_images: int = 40, num_slots: int = 3, dim: int = 2, seed: int = 0, shift: float = 0.0) -> SlotChunk:
    """Slots about 4 places, each image with weights of its own."""
    place = torch.randint(4, (num_images, num_slots), generator=torch.Generator().manual_seed(seed))
    loc = 4.0 * draw(4, dim, seed=seed)[place] + draw(num_images, num_slots, dim, seed=seed + 1) + shift
    var = 0.3 * draw(num_images, num_slots, dim, seed=seed + 2).exp()
    return SlotChunk(draw(num_images, num_slots, seed=seed + 3).softmax(1), loc, var)


def cut(chunk: SlotChunk, places: list[int]) -> Callable[[], list[SlotChunk]]:
    ends = [0, *sorted(places), len(chunk)]
    return lambda: [chunk[first:last] for first, last in pairwise(ends)]


def reduced(chunk: SlotChunk, num_components: int = 4, **more: Any) -> AggregatePrior:
    return aggregate.reduce(lambda: [chunk], num_components, **({"options": FEW} | more))


def tensors(prior: AggregatePrior) -> list[Tensor]:
    return [tensor for tensor in (prior.weights, prior.loc, prior.var, prior.covariance) if tensor is not None]


def assert_equal_priors(one: AggregatePrior, other: AggregatePrior) -> None:
    for left, right in zip(tensors(one), tensors(other), strict=True):
        assert_close(left, right)


def followed(chunk: SlotChunk, num_components: int, full: bool, **more: Any) -> tuple[Survey, Climb]:
    stream = SlotStream(lambda: [chunk])
    seen = survey(stream, "weights", full)
    return seen, reduce_stream(stream, seen, num_components, ReductionOptions(**({"tol": 0.0} | more)))


@given(num_components=st.integers(1, 6), dim=st.integers(1, 3), full=st.booleans(), seed=seeds)
def test_the_objective_never_falls(num_components: int, dim: int, full: bool, seed: int):
    chunk = some_chunk(20, 3, dim, seed)
    _, climbed = followed(chunk, num_components, full, num_restarts=1, start_passes=1, num_passes=12)
    trace = torch.tensor(climbed.objective_trace, dtype=torch.float64)
    assert len(trace) == 12
    assert bool((trace.diff() >= -1e-10 * (1 + trace[:-1].abs())).all())


def objective(chunk: SlotChunk, prior: AggregatePrior) -> float:
    """sum_i w_i log sum_g w_g exp E_i[log Normal_g], slot by slot; E_i by the trace formula."""
    total = 0.0
    for b in range(len(chunk)):
        for k in range(chunk.loc.shape[1]):
            terms = []
            for g in range(prior.num_components):
                covariance = prior.var[g].diag() if prior.covariance is None else prior.covariance[g]
                density = scipy.stats.multivariate_normal(prior.loc[g].numpy(), covariance.numpy())
                spread = 0.5 * float((torch.linalg.inv(covariance).diagonal() * chunk.var[b, k]).sum())
                terms.append(math.log(prior.weights[g]) + density.logpdf(chunk.loc[b, k].numpy()) - spread)
            total += float(chunk.weights[b, k]) * float(np.logaddexp.reduce(terms))
    return total / float(chunk.weights.sum())


@COVARIANCES
def test_the_objective_is_the_expected_density_of_the_components_summed_over_them(covariance: str):
    chunk = some_chunk(6)
    options = replace(FEW, num_passes=3, tol=0.0)
    prior = reduced(chunk, 3, covariance=covariance, options=options)
    _, climbed = followed(chunk, 3, covariance == "full", **{**vars(options), "num_passes": 4})
    assert_close(climbed.objective_trace[-1], objective(chunk, prior))


def test_the_objective_is_below_the_expected_log_density():
    """By quadrature in one dimension; with one component the two are equal."""
    chunk = some_chunk(15, 2, 1)
    grid = torch.linspace(-30, 30, 20_001, dtype=torch.float64)
    full = aggregate.from_posteriors(lambda: [chunk])
    gaps = []
    for num_components in (1, 2, 5):
        prior = reduced(chunk, num_components)
        expected = torch.trapezoid(full.log_prob(grid[:, None]).exp() * prior.log_prob(grid[:, None]), grid)
        gaps.append(float(expected) - objective(chunk, prior))
    assert abs(gaps[0]) < CONVERGED
    assert min(gaps[1:]) > CONVERGED


@given(num_components=st.integers(1, 8), dim=st.integers(1, 4), seed=seeds, shift=st.sampled_from([0.0, 100.0]))
def test_full_covariances_conserve_mean_and_covariance(num_components: int, dim: int, seed: int, shift: float):
    chunk = some_chunk(dim=dim, seed=seed, shift=shift)
    full, few = aggregate.from_posteriors(lambda: [chunk]), reduced(chunk, num_components, covariance="full")
    assert_close(few.mean, full.mean, CONSERVED)
    assert_close(few.covariance_matrix, full.covariance_matrix, CONSERVED)


@given(
    num_components=st.integers(1, 8),
    dim=st.integers(1, 4),
    seed=seeds,
    shift=st.sampled_from([0.0, 100.0]),
    weighting=st.sampled_from(["weights", "uniform"]),
)
def test_diagonal_covariances_conserve_mean_and_variances(
    num_components: int, dim: int, seed: int, shift: float, weighting: str
):
    chunk = some_chunk(dim=dim, seed=seed, shift=shift)
    full = aggregate.from_posteriors(lambda: [chunk], weighting=weighting)
    few = reduced(chunk, num_components, weighting=weighting)
    assert_close(few.mean, full.mean, CONSERVED)
    assert_close(few.variance, full.variance, CONSERVED)
    assert_close(few.weights.sum(), 1.0)


@COVARIANCES
@settings(max_examples=5)
@given(places=st.lists(st.integers(0, 40), max_size=6), sampled=st.booleans())
def test_the_mixture_does_not_depend_on_the_chunks(covariance: str, places: list[int], sampled: bool):
    chunk = some_chunk()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reduction, "START_SLOTS", 30 if sampled else 1000)
        patch.setattr(reduction, "CACHED_BYTES", 1 << 12)
        whole = reduced(chunk, covariance=covariance)
        parts = aggregate.reduce(cut(chunk, places), 4, covariance=covariance, options=FEW)
    assert_equal_priors(parts, whole)


@COVARIANCES
def test_the_mixture_does_not_depend_on_the_size_of_the_blocks(covariance: str, monkeypatch: pytest.MonkeyPatch):
    whole = reduced(some_chunk(), covariance=covariance)
    monkeypatch.setattr(reduction, "CACHED_BYTES", 1)
    assert_equal_priors(reduced(some_chunk(), covariance=covariance), whole)


def test_a_sample_starts_em_and_the_passes_see_every_slot(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reduction, "START_SLOTS", 30)
    chunk = some_chunk()
    full, few = aggregate.from_posteriors(lambda: [chunk]), reduced(chunk)
    assert_close(few.mean, full.mean, CONSERVED)
    assert_close(few.variance, full.variance, CONSERVED)


@pytest.mark.usefixtures("unchecked")
def test_what_is_held_does_not_grow_with_the_number_of_images(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reduction, "START_SLOTS", 90)
    monkeypatch.setattr(reduction, "CACHED_BYTES", 1 << 14)
    held = []
    for num_images in (300, 3000):
        chunk = some_chunk(num_images)
        with largest_tensor() as probe:
            options = ReductionOptions(num_passes=2, num_restarts=1, start_passes=1)
            aggregate.reduce(cut(chunk, list(range(50, num_images, 50))), 4, options=options)
        held.append(probe.largest)
    assert held[0] == held[1]


SHARE = """
import sys, torch
from torch import distributed
from psa.inference import aggregate, reduction

torch.set_num_threads(1)
rank, reduction.START_SLOTS = int(sys.argv[1]), 60
distributed.init_process_group("gloo", init_method="file://" + sys.argv[2] + "/meet", rank=rank, world_size=2)
options = reduction.ReductionOptions(num_passes=5, num_restarts=2, start_passes=5)
for name in ("diagonal", "full"):
    source = sys.argv[2] + f"/share{rank}.h5"
    prior = aggregate.reduce(source, 4, covariance=name, options=options, group=distributed.group.WORLD)
    prior.save(sys.argv[2] + f"/{name}{rank}")
distributed.destroy_process_group()
"""


def test_two_processes_with_a_share_each_get_the_mixture_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reduction, "START_SLOTS", 60)
    chunk = some_chunk()
    for rank, share in enumerate((chunk[:17], chunk[17:])):
        save_posteriors(lambda share=share: [share], tmp_path / f"share{rank}.h5")
    shares = [subprocess.Popen([sys.executable, "-c", SHARE, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [share.wait(300) for share in shares] == [0, 0]
    for name in ("diagonal", "full"):
        alone = reduced(chunk, covariance=name)
        assert alone.num_images == 40
        for rank in range(2):
            shared = AggregatePrior.load(tmp_path / f"{name}{rank}")
            assert_equal_priors(shared, alone)
            assert shared.num_images == 40


@COVARIANCES
@pytest.mark.parametrize("seed", range(3))
def test_five_separated_types_are_recovered(covariance: str, seed: int):
    """Images of 3 of 5 types, each at least 8 standard deviations from the others."""
    angle = 2.0 * math.pi * torch.arange(5, dtype=torch.float64) / 5
    types = 10.0 * torch.stack([angle.cos(), angle.sin()], 1)
    generator = torch.Generator().manual_seed(seed)
    own = torch.rand(600, 5, generator=generator, dtype=torch.float64).argsort(1)[:, :3]
    loc = types[own] + draw(600, 3, 2, seed=seed) * 0.9**0.5
    weights = (0.5 * draw(600, 3, seed=seed + 1)).softmax(1)
    prior = reduced(SlotChunk(weights, loc, torch.full_like(loc, 0.1)), 5, covariance=covariance)
    share = torch.stack([weights[own == t].sum() for t in range(5)]) / weights.sum()
    distance = torch.cdist(types, prior.loc)
    matched = distance.argmin(1)
    assert sorted(matched.tolist()) == list(range(5))
    assert bool(((prior.weights[matched] - share).abs() < 0.02).all())
    assert bool((distance.amin(1) < 6 * (2.0 / 100) ** 0.5).all())  # a type has some 360 slots
    assert_close(prior.variance, aggregate.from_posteriors(lambda: [SlotChunk(weights, loc, 0.1 + 0 * loc)]).variance)


@COVARIANCES
def test_components_that_own_nothing_are_left_out(covariance: str, monkeypatch: pytest.MonkeyPatch):
    """One starts where no slot is."""
    whole = starting_state

    def one_far_away(*arguments: Any) -> MixtureState:
        state = whole(*arguments)
        return replace(state, loc=state.loc + 1e4 * (torch.arange(4) == 2)[:, None])

    monkeypatch.setattr(reduction, "starting_state", one_far_away)
    chunk = some_chunk()
    prior, full = reduced(chunk, covariance=covariance), aggregate.from_posteriors(lambda: [chunk])
    assert prior.num_components == 3
    assert bool((prior.weights > 0).all())
    assert_close(prior.mean, full.mean, CONSERVED)
    assert_close(prior.variance, full.variance, CONSERVED)


@COVARIANCES
def test_more_components_than_different_slots_give_the_mixture_of_those(covariance: str):
    loc = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]], dtype=torch.float64).expand(10, 3, 2)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).expand(10, 3)
    chunk = SlotChunk(weights, loc, torch.full_like(loc, 0.5))
    prior = reduced(chunk, 8, covariance=covariance)
    assert 3 <= prior.num_components <= 8
    slots = 9.0 * draw(50, 2, seed=1)
    assert_close(prior.log_prob(slots), aggregate.from_posteriors(lambda: [chunk]).log_prob(slots), CONVERGED)


@COVARIANCES
def test_one_component_is_the_gaussian_of_the_overall_moments(covariance: str):
    chunk = some_chunk()
    full, one = aggregate.from_posteriors(lambda: [chunk]), reduced(chunk, 1, covariance=covariance)
    assert_close(one.loc[0], full.mean)
    if covariance == "full":
        assert_close(one.covariance[0], full.covariance_matrix)
    else:
        assert_close(one.var[0], full.variance)


@pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
def test_a_step_on_points_is_that_of_scikit_learn(full: bool):
    """Slots of almost no variance and equal weight are points."""
    points = some_chunk(200, 1, 2).loc
    chunk = SlotChunk(torch.ones_like(points[..., 0]), points, torch.full_like(points, 1e-13))
    loc, var = draw(3, 2, seed=5), torch.full((3, 2), 4.0, dtype=torch.float64)
    precision = var.reciprocal()
    theirs = GaussianMixture(
        3,
        covariance_type="full" if full else "diag",
        max_iter=1,
        reg_covar=0.0,
        weights_init=np.full(3, 1 / 3),
        means_init=loc.numpy(),
        precisions_init=(precision.diag_embed() if full else precision).numpy(),
    )
    with pytest.warns(match="did not converge"):
        theirs.fit(points[:, 0].numpy())
    stream = SlotStream(lambda: [chunk])
    seen = survey(stream, "weights", full)
    log_weights = torch.full((1, 3), 1 / 3, dtype=torch.float64).log()
    start = MixtureState((loc - seen.origin)[None], var[None], log_weights, var.diag_embed()[None] if full else None)
    rule = MaximumLikelihoodRule(seen.least_var)
    state = climb(lambda: map(seen.tokens, stream), start, rule, 1, 0.0).state
    assert_close(state.log_weights[0].exp(), torch.as_tensor(theirs.weights_))
    assert_close(state.loc[0] + seen.origin, torch.as_tensor(theirs.means_))
    spread = state.var if state.covariance is None else state.covariance
    assert_close(spread[0], torch.as_tensor(theirs.covariances_), 1e-9)


def test_passes_end_when_the_objective_does_not_rise():
    _, climbed = followed(some_chunk(), 2, False, num_passes=60, tol=1e-7)
    trace = climbed.objective_trace
    assert len(trace) < 60
    assert trace[-1] - trace[-2] < 1e-7
    assert all(later - earlier >= 1e-7 for earlier, later in pairwise(trace[:-1]))


def test_the_best_of_more_starts_is_not_worse():
    """On all slots and to convergence, so that the starts' order is the result's."""
    scores = [
        followed(some_chunk(seed=seed), 6, False, num_restarts=restarts, start_passes=60, num_passes=2)[1]
        for seed in range(2)
        for restarts in (1, 5)
    ]
    ends = [climbed.objective_trace[-1] for climbed in scores]
    gains = [more - one for one, more in zip(ends[::2], ends[1::2], strict=True)]
    assert min(gains) >= -CONVERGED
    assert max(gains) > CONVERGED


def test_a_seed_repeats_the_mixture_and_leaves_the_global_generator_alone():
    state = torch.random.get_rng_state()
    one, other = reduced(some_chunk()), reduced(some_chunk())
    assert all(torch.equal(left, right) for left, right in zip(tensors(one), tensors(other), strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_single_precision_sources_give_single_precision_close_to_double():
    chunk = some_chunk()
    single = reduced(SlotChunk(chunk.weights.float(), chunk.loc.float(), chunk.var.float()))
    assert single.loc.dtype == torch.float32
    for one, other in zip(tensors(single), tensors(reduced(chunk)), strict=True):
        assert_close(one, other, 10 * FLOAT32)


def test_it_runs_on_every_device(device: torch.device):
    chunk = some_chunk()
    there = reduced(SlotChunk(chunk.weights.to(device), chunk.loc.to(device), chunk.var.to(device)))
    assert there.loc.device.type == device.type
    full = aggregate.from_posteriors(lambda: [chunk])
    assert_close(there.mean, full.mean, CONSERVED)
    assert_close(there.variance, full.variance, CONSERVED)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_passes": 0}, "num_passes must be at least 1, got 0"),
        ({"num_restarts": 0}, "num_restarts must be at least 1"),
        ({"start_passes": 0}, "start_passes must be at least 1"),
        ({"memory": 0}, "memory must be at least 1"),
        ({"tol": -1.0}, "tol must be >= 0"),
        ({"tol": math.nan}, "tol must be >= 0"),
    ],
)
def test_options_outside_their_support_are_refused(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ReductionOptions(**settings)


def test_a_budget_below_one_image_says_what_is_needed():
    with pytest.raises(
        ValueError, match=r"memory must be at least (\d+) bytes, for one image at a time, got 100"
    ) as at:
        reduced(some_chunk(), options=ReductionOptions(memory=100))
    enough = int(str(at.value).split("at least ")[1].split()[0])
    reduced(some_chunk(), options=ReductionOptions(memory=enough))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_components": 0}, "num_components must be at least 1, got 0"),
        ({"covariance": "round"}, "covariance must be one of diagonal, full, got 'round'"),
        ({"weighting": "none"}, "weighting must be one of weights, uniform, got 'none'"),
    ],
)
def test_arguments_outside_their_support_are_refused(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        reduced(some_chunk(), **arguments)
