import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from tolerances import assert_close

from psa.metrics.sets import THRESHOLDS, ObjectSets, set_average_precision


def sets(seed: int, count: int = 5, noise: float = 0.4) -> tuple[ObjectSets, ObjectSets]:
    """Predictions that are the objects, shuffled and spoiled, and the objects."""
    g = torch.Generator().manual_seed(seed)
    categories, coordinates = torch.randint(0, 2, (count, 4, 2), generator=g), torch.randn(count, 4, 2, generator=g)
    present = (torch.rand(count, 4, generator=g) < 0.7).double()
    order = torch.rand(count, 6, generator=g).argsort(1)[:, :, None]
    kept = torch.rand(count, 6, 2, generator=g) > noise
    guesses = torch.nn.functional.pad(categories, (0, 0, 0, 2)).take_along_dim(order, 1)
    places = torch.nn.functional.pad(coordinates, (0, 0, 0, 2)).take_along_dim(order, 1)
    guesses = torch.where(kept, guesses, torch.randint(0, 2, guesses.shape, generator=g))
    places = places + noise * torch.randn(places.shape, generator=g)
    return ObjectSets(guesses, places, torch.rand(count, 6, generator=g)), ObjectSets(categories, coordinates, present)


def brute_force(predicted: ObjectSets, true: ObjectSets, threshold: float) -> tuple[list[bool], list[float], int]:
    """Each prediction in order of confidence, by the definition: whether it counts, its confidence; and all objects."""
    rows = [(float(predicted.presence[b, k]), b, k) for b in range(len(predicted.presence)) for k in range(6)]
    found, counts = set(), []
    for _, b, k in sorted(rows, reverse=True):
        best, which = math.inf, None
        for o in range(true.presence.shape[1]):
            same = predicted.categories[b, k].tolist() == true.categories[b, o].tolist()
            if true.presence[b, o] and same:
                distance = math.dist(predicted.coordinates[b, k].tolist(), true.coordinates[b, o].tolist())
                best, which = min((best, which or 0), (distance, o)) if which is not None else (distance, o)
        hit = which is not None and best < threshold and (b, which) not in found
        found |= {(b, which)} if hit else set()
        counts.append(hit)
    return counts, sorted((score for score, _, _ in rows), reverse=True), int(true.presence.sum())


def area(counts: list[bool], num_objects: int) -> float:
    """At every recall the largest precision at that recall or beyond."""
    hits = [sum(counts[: i + 1]) for i in range(len(counts))]
    return (
        sum(
            max([hits[i] / (i + 1) for i in range(len(counts)) if hits[i] >= k], default=0.0)
            for k in range(1, num_objects + 1)
        )
        / num_objects
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(THRESHOLDS), st.floats(0, 1))
def test_average_precision_matches_a_brute_force_matcher(seed: int, threshold: float, noise: float) -> None:
    predicted, true = sets(seed, noise=noise)
    counts, _, num_objects = brute_force(predicted, true, threshold)
    came = set_average_precision(predicted, true, threshold)
    assert math.isnan(came) if num_objects == 0 else came == pytest.approx(area(counts, num_objects), abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.permutations(range(5)), st.permutations(range(6)), st.permutations(range(4)))
def test_order_of_images_predictions_and_objects_does_not_matter(
    seed: int, images: list[int], slots: list[int], objects: list[int]
) -> None:
    predicted, true = sets(seed)
    moved = [
        ObjectSets(one.categories[images][:, order], one.coordinates[images][:, order], one.presence[images][:, order])
        for one, order in ((predicted, slots), (true, objects))
    ]
    assert set_average_precision(*moved, 0.5) == set_average_precision(predicted, true, 0.5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_a_stricter_threshold_never_counts_more_where_objects_differ(seed: int) -> None:
    predicted, true = sets(seed)
    scores = [sum(brute_force(predicted, true, threshold)[0]) for threshold in THRESHOLDS]
    assert scores == sorted(scores, reverse=True)
    different = ObjectSets(torch.arange(4)[None, :, None], true.coordinates[:1], torch.ones(1, 4))
    guesses = ObjectSets(torch.arange(6)[None, :, None], predicted.coordinates[:1], predicted.presence[:1])
    area_by_threshold = [set_average_precision(guesses, different, threshold) for threshold in THRESHOLDS]
    assert area_by_threshold == sorted(area_by_threshold, reverse=True)


def test_the_truth_with_less_confident_spare_predictions_scores_one() -> None:
    _, true = sets(1)
    assert set_average_precision(true, true, 0.125) == 1.0
    assert set_average_precision(true, true, 1e-9) == 1.0


def test_without_spare_predictions_it_is_scikit_learns_where_precision_does_not_rise() -> None:
    _, true = sets(2)
    wrong = torch.zeros(5, 4, 1)
    wrong[:, 3] = 9.0
    spoiled = ObjectSets(true.categories, true.coordinates + wrong, true.presence * torch.linspace(1, 0.5, 4))
    spoiled.presence[:, 3] = 0.01
    hits = torch.ones(5, 4)
    hits[:, 3] = 0
    hits = hits * true.presence
    recalled = float(hits.sum() / true.presence.sum())
    expected = average_precision_score(hits.flatten(), spoiled.presence.flatten()) * recalled
    assert_close(set_average_precision(spoiled, true, 0.5), expected)


def test_of_two_predictions_of_one_object_the_less_confident_is_wrong() -> None:
    true = ObjectSets(torch.tensor([[[1], [2]]]), torch.zeros(1, 2, 1), torch.ones(1, 2))
    twice = ObjectSets(torch.tensor([[[1], [1]]]), torch.zeros(1, 2, 1), torch.tensor([[0.9, 0.8]]))
    assert set_average_precision(twice, true) == 0.5
    assert set_average_precision(ObjectSets(twice.categories, twice.coordinates, twice.presence.flip(1)), true) == 0.5


def test_a_distance_at_the_threshold_does_not_count() -> None:
    true = ObjectSets(torch.zeros(1, 1, 0, dtype=torch.int64), torch.zeros(1, 1, 2), torch.ones(1, 1))
    away = ObjectSets(true.categories, torch.tensor([[[0.0, 0.5]]]), true.presence)
    assert [set_average_precision(away, true, threshold) for threshold in (0.5, 0.51, math.inf)] == [0.0, 1.0, 1.0]


@pytest.mark.usefixtures("unchecked")
def test_sets_that_do_not_belong_together_are_refused() -> None:
    predicted, true = sets(0)
    with pytest.raises(ValueError, match="threshold: expected a positive distance, came 0"):
        set_average_precision(predicted, true, 0)
    other = ObjectSets(predicted.categories[:, :, :1], predicted.coordinates, predicted.presence)
    with pytest.raises(ValueError, match=r"predicted\.categories: expected 5 images with 2 a row, came \(5, 6, 1\)"):
        set_average_precision(other, true)
