from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from psa.metrics.segmentation import (
    adjusted_rand_index,
    foreground_ari,
    mean_segmentation_covering,
    mean_squared_error,
    num_objects,
    slot_count_error,
    slots_in_use,
)

EXACT = 1e-12  # integers until one quotient at the end


@st.composite
def label_pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Two label maps of one shape; few labels or many, so that every degenerate case turns up."""
    shape = (draw(st.integers(1, 4)), *draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    low, widths = draw(st.integers(-(2**40), 2**40)), draw(st.tuples(st.integers(1, 40), st.integers(1, 6)))
    predicted, true = (torch.from_numpy(generator.integers(0, width, shape)) for width in widths)
    return predicted + low, true


def scikit_learn(predicted: Tensor, true: Tensor, ignore: tuple[int, ...] = ()) -> list[float]:
    keep = [~torch.isin(t, torch.tensor(ignore, dtype=t.dtype)) for t in true]
    return [adjusted_rand_score(t[k], p[k]) for p, t, k in zip(predicted, true, keep, strict=True)]


def brute_force_covering(predicted: Tensor, true: Tensor, background: tuple[int, ...]) -> float:
    best = []
    for segment in set(true.flatten().tolist()) - set(background):
        inside = true == segment
        candidates = [predicted == slot for slot in set(predicted.flatten().tolist())]
        best.append(max(((inside & other).sum().double() / (inside | other).sum()).item() for other in candidates))
    return float(np.mean(best)) if best else float("nan")


@settings(max_examples=100)
@given(label_pairs())
def test_ari_matches_scikit_learn(pair: tuple[Tensor, Tensor]) -> None:
    assert adjusted_rand_index(*pair).tolist() == pytest.approx(scikit_learn(*pair), abs=EXACT)


@settings(max_examples=100)
@given(label_pairs(), st.sets(st.integers(-1, 6), max_size=4))
def test_ari_matches_scikit_learn_on_the_pixels_that_are_not_ignored(
    pair: tuple[Tensor, Tensor], ignore: set[int]
) -> None:
    expected = scikit_learn(*pair, ignore=tuple(ignore))
    assert adjusted_rand_index(*pair, ignore=ignore).tolist() == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize(
    ("predicted", "true", "expected"),
    [
        ([5, 5, 5], [2, 2, 2], 1.0),  # one segment in both
        ([0, 1, 2], [7, 8, 9], 1.0),  # single pixels in both
        ([0, 0, 0], [7, 8, 9], 0.0),
        ([0, 1, 2], [7, 7, 7], 0.0),
        ([3], [4], 1.0),
        ([0, 0, 1, 2], [0, 0, 1, 1], 4 / 7),  # scikit-learn's documentation has 0.57
        ([0, 1, 0, 1], [0, 0, 1, 1], -0.5),  # the least possible
    ],
)
def test_ari_of_degenerate_images(predicted: list[int], true: list[int], expected: float) -> None:
    came = adjusted_rand_index(torch.tensor([predicted]), torch.tensor([true])).item()
    assert came == pytest.approx(expected, abs=EXACT)
    assert came == pytest.approx(adjusted_rand_score(true, predicted), abs=EXACT)


def test_ari_is_what_scikit_learn_says_of_no_pixels_where_all_are_ignored() -> None:
    true = torch.tensor([[0, 0], [0, 1]])
    assert adjusted_rand_index(torch.tensor([[0, 1], [0, 1]]), true, ignore=(0,)).tolist() == [
        adjusted_rand_score([], []),
        adjusted_rand_score([1], [1]),
    ]


@given(label_pairs(), st.integers(0, 2**32 - 1))
def test_ari_is_symmetric_and_blind_to_names_and_order(pair: tuple[Tensor, Tensor], seed: int) -> None:
    predicted, true = (labels.flatten(1) for labels in pair)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(true.shape[1]))
    expected = pytest.approx(adjusted_rand_index(predicted, true).tolist(), abs=EXACT)
    assert adjusted_rand_index(true, predicted).tolist() == expected
    assert adjusted_rand_index(-3 * predicted[:, order] + 1, true[:, order]).tolist() == expected


def test_ari_stays_exact_on_large_images() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.randint(0, 3, (1, 700, 700), generator=generator)
    predicted = torch.where(torch.rand(true.shape, generator=generator) < 0.3, true, 5)
    assert adjusted_rand_index(predicted, true).tolist() == pytest.approx(
        [adjusted_rand_score(true.flatten(), predicted.flatten())], abs=EXACT
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32])
def test_scores_take_every_integer_type(dtype: torch.dtype) -> None:
    true = torch.tensor([[0, 200, 200, 7]])
    predicted = torch.tensor([[1, 2, 2, 2]])
    assert adjusted_rand_index(predicted.to(dtype), true.to(dtype), ignore=(-56, 0)).tolist() == [0.0]
    assert mean_segmentation_covering(predicted.to(dtype), true.to(dtype)).tolist() == [(2 / 3 + 1 / 3) / 2]
    assert slots_in_use(predicted.to(dtype), 3).tolist() == [2]


def test_scores_of_an_empty_batch_are_empty() -> None:
    nothing = torch.zeros(0, 4, 4, dtype=torch.int64)
    for score in (adjusted_rand_index, mean_segmentation_covering):
        assert score(nothing, nothing).shape == (0,)
    assert num_objects(nothing).shape == slots_in_use(nothing, 3).shape == (0,)


@given(label_pairs())
def test_foreground_ari_is_ari_with_the_background_ignored(pair: tuple[Tensor, Tensor]) -> None:
    predicted, true = pair
    assert torch.equal(foreground_ari(predicted, true), adjusted_rand_index(predicted, true, ignore=(0,)))
    assert torch.equal(foreground_ari(predicted, true, (1, 2)), adjusted_rand_index(predicted, true, ignore=(1, 2)))
    unowned = torch.where(true == 0, predicted.flip(1), predicted)
    assert torch.equal(foreground_ari(unowned, true), foreground_ari(predicted, true))


@settings(max_examples=100)
@given(label_pairs(), st.sets(st.integers(0, 5), max_size=3))
def test_covering_matches_brute_force(pair: tuple[Tensor, Tensor], background: set[int]) -> None:
    expected = [brute_force_covering(p, t, tuple(background)) for p, t in zip(*pair, strict=True)]
    came = mean_segmentation_covering(*pair, background=background).tolist()
    assert came == pytest.approx(expected, abs=EXACT, nan_ok=True)


def test_covering_is_lower_where_a_slot_bleeds_into_the_background() -> None:
    true = torch.tensor([[0, 0, 1, 1]])
    tight, bleeding = torch.tensor([[0, 0, 3, 3]]), torch.tensor([[0, 3, 3, 3]])
    assert mean_segmentation_covering(tight, true).item() == 1.0
    assert mean_segmentation_covering(bleeding, true).item() == pytest.approx(2 / 3, abs=EXACT)
    assert foreground_ari(bleeding, true).item() == 1.0


@given(label_pairs(), st.sets(st.integers(0, 5), max_size=3))
def test_num_objects_counts_the_labels_outside_the_background(
    pair: tuple[Tensor, Tensor], background: set[int]
) -> None:
    expected = [len(set(true.flatten().tolist()) - background) for true in pair[1]]
    assert num_objects(pair[1], background).tolist() == expected


def test_a_slot_is_in_use_from_exactly_the_stated_share() -> None:
    labels = torch.zeros(2, 10, 10, dtype=torch.int64)
    labels[0, 0, :7] = 2
    labels[1, 0, :6] = 2
    assert slots_in_use(labels, 4, min_share=0.07).tolist() == [2, 1]
    assert slots_in_use(labels, 4).tolist() == [2, 2]


def test_slot_count_error_is_the_same_for_one_too_many_and_one_too_few() -> None:
    true = torch.tensor([4, 4, 4], dtype=torch.uint8)
    assert slot_count_error(torch.tensor([3, 4, 5]), true).tolist() == [1, 0, 1]


def test_squared_error_is_the_mean_over_pixels_and_channels() -> None:
    image = torch.rand(3, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shift = torch.tensor([0.0, 0.5, -2.0], dtype=torch.float64)
    came = mean_squared_error(image + shift[:, None, None, None], image)
    assert came.tolist() == pytest.approx([0.0, 0.25, 4.0], abs=EXACT)
    assert mean_squared_error(image.half(), image.half()).dtype == torch.float32


INTEGERS, FLOATS = torch.zeros(2, 3, 3, dtype=torch.int64), torch.zeros(2, 3, 3)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("score", [adjusted_rand_index, foreground_ari, mean_segmentation_covering])
@pytest.mark.parametrize(
    ("predicted", "true", "message"),
    [
        (FLOATS, INTEGERS, r"predicted: expected integers, came torch\.float32"),
        (INTEGERS, FLOATS, r"true: expected integers, came torch\.float32"),
        (INTEGERS, INTEGERS > 0, r"true: expected integers, came torch\.bool"),
        (INTEGERS[:1], INTEGERS, r"predicted: expected true's shape \(2, 3, 3\) on cpu, came \(1, 3, 3\) on cpu"),
        (INTEGERS[0, 0], INTEGERS[0, 0], r"predicted: expected \(B, \.\.\.\) with a pixel axis, came shape \(3,\)"),
    ],
)
def test_scores_reject_what_is_no_label_map(
    score: Callable[..., Tensor], predicted: Tensor, true: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        score(predicted, true)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: num_objects(FLOATS), "true: expected integers"),
        (lambda: slots_in_use(FLOATS, 2), "labels: expected integers"),
        (lambda: slots_in_use(INTEGERS + 2, 2), r"labels: expected slots in \[0, 2\), came 2 to 2"),
        (lambda: slots_in_use(INTEGERS, 0), "num_slots: expected at least 1, came 0"),
        (lambda: slots_in_use(INTEGERS, 2, 0.0), r"min_share: expected a share in \(0, 1\], came 0.0"),
        (lambda: slot_count_error(FLOATS[:, 0, 0], INTEGERS[:, 0, 0]), "slots_in_use: expected integers"),
        (lambda: slot_count_error(INTEGERS[:, 0, 0], INTEGERS[0, 0]), r"num_segments: expected slots_in_use's shape"),
        (lambda: mean_squared_error(FLOATS, INTEGERS), r"image: expected floating point, came torch\.int64"),
        (lambda: mean_squared_error(FLOATS[:1], FLOATS), r"reconstruction: expected image's shape \(2, 3, 3\)"),
        (lambda: mean_squared_error(FLOATS[0, 0], FLOATS[0, 0]), r"image: expected \(B, \.\.\.\)"),
    ],
)
def test_counts_and_errors_reject_what_they_cannot_take(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
