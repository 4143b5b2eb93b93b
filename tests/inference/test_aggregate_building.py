"""Building the aggregate prior: lemma 1, sources and their files, product forms, and the choice of G."""

import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.stats
import torch
from contracts import draw
from hypothesis import given
from hypothesis import strategies as st
from tolerances import STANDARD_ERRORS, assert_close
from torch import Tensor

from psa.errors import DataError
from psa.inference import posterior_stream
from psa.inference.aggregate import from_posteriors, held_out_scores, reduce
from psa.inference.posterior_stream import SlotChunk, SlotStream, joined, save_posteriors
from psa.inference.product_form import product_form
from psa.inference.reduction import ReductionOptions
from psa.inference.variants import build
from psa.models.aggregate import AggregatePrior

seeds = st.integers(0, 10_000)
QUICK = ReductionOptions(num_passes=3, num_restarts=1, start_passes=3)


def some_chunk(num_images: int = 6, num_slots: int = 3, dim: int = 2, seed: int = 0) -> SlotChunk:
    loc, var = 2.0 * draw(num_images, num_slots, dim, seed=seed), draw(num_images, num_slots, dim, seed=seed + 1).exp()
    return SlotChunk(draw(num_images, num_slots, seed=seed + 2).softmax(1), loc, var)


def cut(chunk: SlotChunk, places: list[int]) -> list[SlotChunk]:
    ends = [0, *sorted(places), len(chunk)]
    return [chunk[first:last] for first, last in pairwise(ends)]


def same(one: AggregatePrior, other: AggregatePrior) -> bool:
    pairs = zip((one.weights, one.loc, one.var), (other.weights, other.loc, other.var), strict=True)
    return all(torch.equal(left, right) for left, right in pairs)


@given(num_images=st.integers(1, 5), num_slots=st.integers(1, 4), dim=st.integers(1, 3), seed=seeds)
def test_the_density_is_lemma_1(num_images: int, num_slots: int, dim: int, seed: int):
    chunk = some_chunk(num_images, num_slots, dim, seed)
    prior, slots = from_posteriors(lambda: [chunk]), 2.0 * draw(7, dim, seed=seed + 3)
    expected = np.zeros(7)
    for b in range(num_images):
        for k in range(num_slots):
            normal = scipy.stats.norm(chunk.loc[b, k].numpy(), chunk.var[b, k].sqrt().numpy())
            expected += float(chunk.weights[b, k]) / num_images * normal.pdf(slots.numpy()).prod(-1)
    assert_close(prior.log_prob(slots), torch.as_tensor(np.log(expected)))
    assert_close(prior.weights.sum(), 1.0)
    assert (prior.num_components, prior.num_images) == (num_images * num_slots, num_images)
    assert (prior.dropped_components, prior.dropped_weight) == (0, 0.0)


@given(places=st.lists(st.integers(0, 6), max_size=8), weighting=st.sampled_from(["weights", "uniform"]))
def test_any_chunking_gives_the_same_mixture_in_the_same_order(places: list[int], weighting: str):
    chunk = some_chunk()
    whole = from_posteriors(lambda: [chunk], weighting=weighting, threshold=0.2)
    assert same(from_posteriors(lambda: cut(chunk, places), weighting=weighting, threshold=0.2), whole)
    slots = chunk.loc[chunk.weights >= 0.2]
    assert torch.equal(whole.loc, slots)


def test_uniform_weights_are_one_over_the_number_of_slots():
    assert_close(from_posteriors(lambda: [some_chunk()], weighting="uniform").weights, torch.ones(18).double() / 18)


@given(threshold=st.floats(0.0, 0.33), weighting=st.sampled_from(["weights", "uniform"]), seed=seeds)
def test_slots_below_the_threshold_are_counted_and_the_rest_sum_to_one(threshold: float, weighting: str, seed: int):
    chunk = some_chunk(seed=seed)
    prior = from_posteriors(lambda: [chunk], weighting=weighting, threshold=threshold)
    whole = from_posteriors(lambda: [chunk], weighting=weighting)
    keep = (chunk.weights >= threshold).flatten()
    assert prior.dropped_components == int((~keep).sum())
    assert prior.num_components == int(keep.sum())
    assert_close(prior.dropped_weight, whole.weights[~keep].sum())
    assert_close(prior.weights.sum(), 1.0)
    assert_close(prior.weights * (1.0 - prior.dropped_weight), whole.weights[keep])


def test_records_of_inference_are_chunks():
    module = build("em", num_slots=3, input_dim=2, slot_dim=2, variance_floor=1e-3).double()
    posteriors = [module(draw(4, 9, 2, seed=seed)) for seed in range(2)]
    prior = from_posteriors(lambda: posteriors)
    assert_close(prior.loc, torch.cat([posterior.loc.flatten(0, 1) for posterior in posteriors]))
    assert_close(prior.weights, torch.cat([posterior.weights.flatten() for posterior in posteriors]) / 8)
    full = build("em", num_slots=3, input_dim=2, slot_dim=2, covariance="full", variance_floor=1e-3).double()
    with pytest.raises(ValueError, match="diagonal covariances, got full ones"):
        from_posteriors(lambda: [full(draw(4, 9, 2, seed=0))])


def test_a_prior_is_reduced_as_its_source_is_and_says_where_it_comes_from():
    chunk = some_chunk(20)
    prior = from_posteriors(lambda: [chunk], threshold=0.1)
    assert prior.dropped_components > 0
    few = reduce(prior, 4, options=QUICK)
    assert_close(few.mean, prior.mean)
    assert_close(few.variance, prior.variance)
    assert (few.num_images, few.dropped_components) == (20, prior.dropped_components)
    assert few.dropped_weight == prior.dropped_weight
    complete = reduce(from_posteriors(lambda: [chunk]), 1, options=QUICK)
    assert_close(complete.loc, reduce(lambda: [chunk], 1, options=QUICK).loc)
    with pytest.raises(ValueError, match="source must be a prior with diagonal covariances"):
        reduce(reduce(lambda: [chunk], 2, covariance="full", options=QUICK), 1)


# the product form


def test_the_paper_product_form_equals_a_hand_computed_case():
    """One axis, v = 1: var^ = 1/2 and 3/4; c = Normal(0; 0, 2) and Normal(0; 2, 4); weights (1 + c) / sum (1 + c)."""
    chunk = SlotChunk(
        *(torch.tensor(x, dtype=torch.float64) for x in ([[0.9, 0.1]], [[[0.0], [2.0]]], [[[1.0], [3.0]]]))
    )
    m, v = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    c = [1.0 / math.sqrt(4.0 * math.pi), math.exp(-0.5) / math.sqrt(8.0 * math.pi)]
    paper, exact = (product_form(chunk, m, v, rule) for rule in ("paper", "exact"))
    for found in (paper, exact):
        assert_close(found.var[0, :, 0], torch.tensor([0.5, 0.75], dtype=torch.float64))
        assert_close(found.loc[0, :, 0], torch.tensor([0.0, 0.5], dtype=torch.float64))
    assert_close(paper.weights[0], torch.tensor([1 + c[0], 1 + c[1]], dtype=torch.float64) / (2 + sum(c)))
    products = torch.tensor([0.9 * c[0], 0.1 * c[1]], dtype=torch.float64)
    assert_close(exact.weights[0], products / products.sum())


@given(num_slots=st.integers(1, 4), seed=seeds)
def test_the_exact_product_form_is_the_normalised_product_of_densities(num_slots: int, seed: int):
    chunk = some_chunk(2, num_slots, 1, seed)
    m, v = draw(2, 1, seed=seed + 5), draw(2, 1, seed=seed + 6).exp()
    found = product_form(chunk, m, v)
    grid = torch.linspace(-40, 40, 16_001, dtype=torch.float64)[:, None]
    for b in range(2):
        mixture = from_posteriors(lambda b=b: [chunk[b : b + 1]]).log_prob(grid).exp()
        encoder = torch.distributions.Normal(m[b], v[b].sqrt()).log_prob(grid)[:, 0].exp()
        product = mixture * encoder / torch.trapezoid(mixture * encoder, grid[:, 0])
        assert_close(from_posteriors(lambda b=b: [found[b : b + 1]]).log_prob(grid).exp(), product)


@pytest.mark.parametrize("rule", ["exact", "paper"])
def test_product_forms_hold_where_densities_underflow_and_overflow(rule: str):
    """In 64 dimensions, c of about e^-6000 and e^+950."""
    loc = torch.zeros(1, 2, 64, dtype=torch.float64)
    far, near = draw(1, 64, seed=0) + 10.0, torch.zeros(1, 64, dtype=torch.float64)
    weights = torch.tensor([[0.75, 0.25]], dtype=torch.float64)
    tiny = torch.full_like(near, 1e-14)
    for m, var in ((far, 0.5), (near, 1e-14)):
        chunk = SlotChunk(weights, loc, torch.full_like(loc, var))
        found = product_form(chunk, m, tiny, rule)
        assert_close(found.weights, weights if rule == "exact" else torch.full_like(weights, 0.5))


def test_the_paper_weights_depend_on_units_and_the_exact_ones_do_not():
    chunk, m, v = some_chunk(3), draw(3, 2, seed=5), draw(3, 2, seed=6).exp()
    scaled = SlotChunk(chunk.weights, 10 * chunk.loc, 100 * chunk.var)
    exact = [product_form(*arguments).weights for arguments in ((chunk, m, v), (scaled, 10 * m, 100 * v))]
    paper = [product_form(*arguments, "paper").weights for arguments in ((chunk, m, v), (scaled, 10 * m, 100 * v))]
    assert_close(*exact)
    assert float((paper[0] - paper[1]).abs().max()) > 1e-3


@pytest.mark.usefixtures("unchecked")
def test_product_forms_refuse_unknown_rules_and_variances():
    chunk, m = some_chunk(), torch.zeros(6, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="rule must be one of exact, paper, got 'both'"):
        product_form(chunk, m, m + 1, "both")
    with pytest.raises(ValueError, match="encoder_var must be positive, got a least entry of 0"):
        product_form(chunk, m, m)


# sources


@given(places=st.lists(st.integers(0, 6), max_size=4), size=st.integers(1, 8))
def test_blocks_are_the_images_in_order_in_equal_numbers(places: list[int], size: int):
    chunk = some_chunk()
    blocks = list(SlotStream(lambda: cut(chunk, places)).blocks(size))
    assert [len(block) for block in blocks[:-1]] == [size] * (len(blocks) - 1)
    assert 1 <= len(blocks[-1]) <= size
    for name in ("weights", "loc", "var"):
        assert torch.equal(getattr(joined(blocks), name), getattr(chunk, name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_file_is_the_source_it_was_written_from(dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(posterior_stream, "FILE_BYTES", 100)
    chunk = some_chunk()
    chunk = SlotChunk(chunk.weights.to(dtype), chunk.loc.to(dtype), chunk.var.to(dtype))
    path = tmp_path / "slots.h5"
    save_posteriors(lambda: cut(chunk, [2, 2, 5]), path)
    for source in (path, str(path)):
        assert same(from_posteriors(source), from_posteriors(lambda: [chunk]))
        assert same(reduce(source, 3, options=QUICK), reduce(lambda: [chunk], 3, options=QUICK))
    with h5py.File(path) as file:
        assert {name: file[name].shape for name in file} == {"weights": (6, 3), "loc": (6, 3, 2), "var": (6, 3, 2)}
    assert max(part.loc.nbytes for part in SlotStream(path)) <= 100


def test_a_source_that_fails_leaves_no_file(tmp_path: Path):
    def source() -> Iterator[SlotChunk]:
        yield some_chunk()
        raise RuntimeError("out of images")

    with pytest.raises(RuntimeError, match="out of images"):
        save_posteriors(source, tmp_path / "slots.h5")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("one_shot", [iter([some_chunk()]), (chunk for chunk in [some_chunk()]), [some_chunk()]])
@pytest.mark.parametrize(
    "use", [from_posteriors, lambda source: reduce(source, 2), lambda source: save_posteriors(source, "x")]
)
@pytest.mark.usefixtures("unchecked")
def test_what_is_no_re_readable_source_is_refused_with_what_to_pass(one_shot: Any, use: Any):
    kind = type(one_shot).__name__
    with pytest.raises(
        ValueError,
        match=rf"pass a callable that returns the chunks anew each time \(lambda: .*\), or the path .* got a {kind}",
    ):
        use(one_shot)


def test_a_callable_that_returns_the_same_iterator_again_is_refused():
    for chunks in ([some_chunk()], [some_chunk(), some_chunk()]):
        spent = iter(chunks)
        with pytest.raises(ValueError, match=r"must give the same images each time it is read, got \d+ and then 0: "):
            reduce(lambda spent=spent: spent, 2)


def broken(**changes: Any) -> SimpleNamespace:
    return SimpleNamespace(**(vars(some_chunk()) | changes))


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([], "source must hold at least one image, got none"),
        ([some_chunk()[:0]], "source must hold at least one image, got none"),
        ([some_chunk(), some_chunk(num_slots=2)], r"same K and D everywhere, got \(3, 2\), then \(6, 2, 2\)"),
        ([broken(weights=some_chunk().weights[:, :2])], r"got \(6, 2\), \(6, 3, 2\), \(6, 3, 2\)"),
        ([broken(weights=2 * some_chunk().weights)], "weights that sum to 1"),
        ([broken(weights=some_chunk().weights * torch.nan)], "non-negative weights"),
        ([broken(weights=some_chunk().weights - 0.5)], "non-negative weights"),
        ([broken(var=0 * some_chunk().var)], "finite loc and positive finite var"),
        ([broken(var=torch.inf * some_chunk().var)], "finite loc and positive finite var"),
        ([broken(loc=torch.nan * some_chunk().loc)], "finite loc and positive finite var"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_chunks_that_are_no_posteriors_are_refused(chunks: list, message: str):
    for use in (from_posteriors, lambda source: reduce(source, 2)):
        with pytest.raises(ValueError, match=message):
            use(lambda: chunks)


def written(path: Path, **changes: Any) -> Path:
    arrays = {name: getattr(some_chunk(), name).numpy() for name in ("weights", "loc", "var")} | changes
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            if array is not None:
                file[name] = array
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"var": None}, "expected a dataset 'var' of real numbers with 3 axes, found none"),
        ({"loc": np.zeros((6, 3))}, "expected a dataset 'loc' of real numbers with 3 axes"),
        ({"weights": np.ones((6, 3), int)}, "expected a dataset 'weights' of real numbers with 2 axes"),
        ({"weights": np.full((5, 3), 1 / 3)}, "expected 6 images in every dataset, found 5 in 'weights'"),
    ],
)
def test_files_of_another_layout_are_refused(changes: dict, message: str, tmp_path: Path):
    path = written(tmp_path / "a.h5", **changes)
    with pytest.raises(DataError, match=rf"^{path}: {message}"):
        from_posteriors(path)


def test_what_is_no_file_of_posteriors_is_refused_in_one_line(tmp_path: Path):
    (tmp_path / "text.h5").write_bytes(b"no hdf5")
    truncated = written(tmp_path / "truncated.h5")
    truncated.write_bytes(truncated.read_bytes()[:700])
    for name in ("missing.h5", "text.h5", "truncated.h5"):
        with pytest.raises(DataError, match=rf"{name}: expected a readable HDF5 file of posteriors, got .") as caught:
            from_posteriors(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_arguments_outside_their_support_are_refused():
    with pytest.raises(ValueError, match="weighting must be one of weights, uniform, got 'none'"):
        from_posteriors(lambda: [some_chunk()], weighting="none")
    with pytest.raises(ValueError, match=r"threshold must leave at least one slot, got 2\.0"):
        from_posteriors(lambda: [some_chunk()], threshold=2.0)


# how many components


def types_of(num_images: int, seed: int) -> SlotChunk:
    """One slot an image, of one of three types in one dimension."""
    own = torch.randint(3, (num_images, 1), generator=torch.Generator().manual_seed(seed))
    loc = 6.0 * own.double()[..., None] + draw(num_images, 1, 1, seed=seed)
    return SlotChunk(torch.ones(num_images, 1, dtype=torch.float64), loc, torch.full_like(loc, 0.2))


def test_held_out_scores_are_highest_at_the_planted_number():
    train, test = types_of(400, 1), types_of(2000, 2)
    scores = held_out_scores(lambda: [train], lambda: cut(test, [700]), [1, 3, 30])
    assert [score.prior.num_components for score in scores[:2]] == [1, 3]
    best = scores[1]
    assert best.score > scores[0].score + 3 * scores[0].standard_error
    assert best.score > scores[2].score
    expected = expected_log_density(test, best.prior)
    assert abs(best.score - expected) < STANDARD_ERRORS * best.standard_error
    assert abs(scores[0].score - expected_log_density(test, scores[0].prior)) < STANDARD_ERRORS * best.standard_error


def expected_log_density(chunk: SlotChunk, prior: AggregatePrior) -> float:
    """E_q log p_G by quadrature."""
    grid = torch.linspace(-20, 40, 20_001, dtype=torch.float64)[:, None]
    density: Tensor = from_posteriors(lambda: [chunk]).log_prob(grid).exp()
    return float(torch.trapezoid(density * prior.log_prob(grid), grid[:, 0]))


@pytest.mark.parametrize("weighting", ["weights", "uniform"])
def test_held_out_scores_weigh_slots_and_do_not_depend_on_chunks(weighting: str):
    train, test = some_chunk(50, dim=1), some_chunk(2000, dim=1, seed=5)
    test = SlotChunk(test.loc[..., 0].softmax(1), test.loc, test.var)
    options: dict[str, Any] = {"weighting": weighting, "options": QUICK}
    (whole,) = held_out_scores(lambda: [train], lambda: [test], [3], **options)
    (parts,) = held_out_scores(lambda: [train], lambda: cut(test, [3, 700]), [3], **options)
    assert (whole.score, whole.standard_error) == (parts.score, parts.standard_error)
    grid = torch.linspace(-30, 30, 6_001, dtype=torch.float64)[:, None]
    density = from_posteriors(lambda: [test], weighting=weighting).log_prob(grid).exp()
    expected = float(torch.trapezoid(density * whole.prior.log_prob(grid), grid[:, 0]))
    assert abs(whole.score - expected) < STANDARD_ERRORS * whole.standard_error
    with pytest.raises(ValueError, match="held_out must hold at least 2 images, got 1"):
        held_out_scores(lambda: [train], lambda: [test[:1]], [1], **options)
