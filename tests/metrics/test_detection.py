import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import average_precision_score
from tolerances import ALGEBRA, FLOAT32, assert_close
from torch import Tensor
from torchmetrics.detection import PanopticQuality

from psa.metrics.detection import Detections, average_precision, detect, score_detections


def scenes(seed: int, count: int = 4, noise: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    """Predicted labels that often agree with the true ones, the true ones, and confidences."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.randint(0, 4, (count, 4, 5), generator=generator).repeat_interleave(2, 1)
    merged = torch.where(torch.rand(count, 1, 1, generator=generator) < 0.5, true.clamp(max=2), true)
    noisy = torch.rand(true.shape, generator=generator) < noise
    predicted = torch.where(noisy, torch.randint(0, 6, true.shape, generator=generator), merged)
    return predicted, true, torch.rand(true.shape, generator=generator, dtype=torch.float64)


def segments(labels: Tensor, dropped: tuple[int, ...] = ()) -> list[Tensor]:
    return [labels == label for label in sorted(set(labels.flatten().tolist()) - set(dropped))]


def overlap(one: Tensor, other: Tensor) -> float:
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 0.0


def predictions(predicted: Tensor, true: Tensor, background: tuple[int, ...]) -> list[Tensor]:
    """The segments of one image that are not the background's, by the definition."""
    behind = torch.isin(true, torch.tensor(background, dtype=torch.int64))
    return [segment for segment in segments(predicted) if overlap(segment, behind) < 0.5]


def brute_force(predicted: Tensor, true: Tensor, background: tuple[int, ...]) -> tuple[int, int, int, float]:
    """Predictions, objects, hits and their summed IoU, by the assignment of most IoU among allowed pairs."""
    found = objects = hits = 0
    total = 0.0
    for p, t in zip(predicted, true, strict=True):
        ours, theirs = predictions(p, t, background), segments(t, background)
        iou = np.array([[overlap(a, b) for b in theirs] for a in ours]).reshape(len(ours), len(theirs))
        iou[iou < 0.5] = 0.0
        chosen = iou[linear_sum_assignment(iou, maximize=True)]
        found, objects = found + len(ours), objects + len(theirs)
        hits, total = hits + int((chosen > 0).sum()), total + chosen.sum()
    return found, objects, hits, total


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(0,), (), (0, 3), (9,)]), st.floats(0, 1))
def test_counts_and_quality_match_an_optimal_assignment(seed: int, background: tuple[int, ...], noise: float) -> None:
    predicted, true, confidence = scenes(seed, noise=noise)
    found, objects, hits, total = brute_force(predicted, true, background)
    scores = score_detections(detect(predicted, true, background, confidence))
    for came, part, whole in ((scores.precision, hits, found), (scores.recall, hits, objects)):
        assert came == part / whole if whole else math.isnan(came)
    assert_close(scores.pq, total / (hits + (found - hits) / 2 + (objects - hits) / 2))


def coco_ap(predicted: Tensor, true: Tensor, confidence: Tensor, background: tuple[int, ...]) -> float:
    """pycocotools' AP at IoU 0.5 of the segments as annotations of one category, at every recall that is reached."""

    def encoded(segment: Tensor) -> dict:
        return coco_masks.encode(np.asfortranarray(segment.numpy().astype(np.uint8)))

    truth, results = [], []
    for image, (p, t, c) in enumerate(zip(predicted, true, confidence, strict=True), 1):
        for segment in segments(t, background):
            record = {"segmentation": encoded(segment), "area": int(segment.sum()), "iscrowd": 0}
            truth.append({"id": len(truth) + 1, "image_id": image, "category_id": 1, **record})
        for segment in predictions(p, t, background):
            score = float(c[segment].mean())
            results.append({"image_id": image, "category_id": 1, "segmentation": encoded(segment), "score": score})
    known = COCO()
    images = [{"id": i + 1, "height": true.shape[1], "width": true.shape[2]} for i in range(len(true))]
    known.dataset = {"info": {}, "images": images, "annotations": truth, "categories": [{"id": 1, "name": "object"}]}
    known.createIndex()
    judge = COCOeval(known, known.loadRes(results), "segm")
    judge.params.iouThrs = np.array([0.5])
    judge.params.recThrs = np.arange(1, len(truth) + 1) / len(truth) - 1e-9
    judge.evaluate()
    judge.accumulate()
    return float(judge.eval["precision"][0, :, 0, 0, -1].mean())


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("background", [(0,), (0, 1)])
def test_average_precision_matches_pycocotools(seed: int, background: tuple[int, ...], capsys) -> None:
    predicted, true, confidence = scenes(seed, count=6, noise=0.05 * seed)
    scores = score_detections(detect(predicted, true, background, confidence))
    assert_close(scores.ap, coco_ap(predicted, true, confidence, background), FLOAT32)


def any_at_half(predicted: Tensor, true: Tensor) -> bool:
    return any(overlap(ours, theirs) == 0.5 for ours in segments(predicted) for theirs in segments(true))


@pytest.mark.parametrize("seed", range(6))
def test_panoptic_quality_matches_torchmetrics(seed: int) -> None:
    """Torchmetrics counts pairs above 0.5, not at it; segments that are the background's have its category."""
    predicted, true, _ = scenes(seed, count=12)
    pairs = [(p, t) for p, t in zip(predicted, true, strict=True) if not any_at_half(p, t)]
    assert len(pairs) > 4
    predicted, true = (torch.stack(labels) for labels in zip(*pairs, strict=True))
    judge = PanopticQuality(things={1}, stuffs={0}, return_per_class=True)
    ours = torch.zeros_like(predicted, dtype=torch.bool)
    for image, (p, t) in enumerate(pairs):
        for segment in predictions(p, t, (0,)):
            ours[image] |= segment
    stacked = [
        torch.stack([kept.long(), torch.where(kept, labels + 1, 0)], dim=-1)
        for kept, labels in ((ours, predicted), (true > 0, true))
    ]
    assert_close(score_detections(detect(predicted, true)).pq, judge(*stacked)[0, 0], FLOAT32)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.permutations(range(4)), st.permutations(range(6)))
def test_names_of_labels_and_order_of_images_do_not_matter(seed: int, order: list[int], names: list[int]) -> None:
    predicted, true, confidence = scenes(seed)
    expected = score_detections(detect(predicted, true, (0,), confidence))
    renamed = torch.tensor(names)[predicted] * 7 - 3
    shuffled = [detect(renamed[i : i + 1], true[i : i + 1], (0,), confidence[i : i + 1]) for i in order]
    assert score_detections(shuffled) == expected


def test_the_truth_itself_scores_one_and_the_background_is_no_prediction() -> None:
    _, true, _ = scenes(0)
    perfect = detect(true, true)
    assert score_detections(perfect) == type(score_detections(perfect))(1.0, 1.0, 1.0, 1.0)
    assert len(perfect.iou) == perfect.num_objects == sum(len(segments(t, (0,))) for t in true)


def test_a_segment_at_half_the_background_is_the_backgrounds_and_one_below_is_not() -> None:
    true = torch.tensor([[0, 0, 0, 0, 1, 1]])
    assert len(detect(torch.tensor([[5, 5, 6, 6, 7, 7]]), true).iou) == 1
    assert len(detect(torch.tensor([[5, 6, 6, 8, 7, 7]]), true).iou) == 3


def test_the_more_confident_of_two_halves_detects_an_object() -> None:
    true = torch.tensor([[1, 1, 1, 1]])
    halves = detect(torch.tensor([[3, 3, 4, 4]]), true, (0,), torch.tensor([[0.2, 0.4, 0.9, 0.9]]))
    assert_close(halves.iou, torch.tensor([0.0, 0.5]))
    assert_close(halves.confidence, torch.tensor([0.3, 0.9]), FLOAT32)
    assert score_detections(detect(torch.tensor([[3, 3, 4, 4]]), true)).recall == 1.0
    assert score_detections(detect(torch.tensor([[3, 3, 3, 3]]), torch.tensor([[1, 1, 2, 2]]))).recall == 0.5


def test_a_pair_at_half_is_kept_where_two_pairs_below_add_to_more() -> None:
    """Where a Hungarian assignment on all IoUs gives up the only detection."""
    true = torch.tensor([[1] * 25 + [2] * 1])
    predicted = torch.tensor([[3] * 12 + [4] * 14])
    iou = np.array([[overlap(predicted == p, true == t) for t in (1, 2)] for p in (3, 4)])
    assert (iou[linear_sum_assignment(iou, maximize=True)] < 0.5).all()
    assert iou.max() >= 0.5
    assert score_detections(detect(predicted, true)).recall == 0.5


def test_without_objects_or_predictions_there_is_no_figure() -> None:
    nothing = torch.zeros(2, 3, dtype=torch.int64)
    scores = score_detections(detect(nothing, nothing))
    assert all(math.isnan(value) for value in (scores.ap, scores.pq, scores.precision, scores.recall))
    assert all(math.isnan(value) for value in vars(score_detections([])).values())
    missed = score_detections(detect(nothing, torch.tensor([[0, 0, 1], [0, 0, 1]])))
    assert (missed.ap, missed.recall, missed.pq) == (0.0, 0.0, 0.0)
    assert math.isnan(missed.precision)


@pytest.mark.usefixtures("unchecked")
def test_confidence_must_have_the_labels_shape() -> None:
    labels = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"confidence: expected predicted's shape \(2, 3\) on cpu, came \(2, 4\)"):
        detect(labels, labels, (0,), torch.ones(2, 4))


def interpolated_by_hand(correct: list[bool], confidence: list[float], num_objects: int) -> float:
    """At every recall k / O the largest precision at that recall or beyond, over all thresholds."""
    points = []
    for threshold in sorted(set(confidence), reverse=True):
        taken = [c for c, s in zip(correct, confidence, strict=True) if s >= threshold]
        points.append((sum(taken), sum(taken) / len(taken)))
    best = [max([p for hits, p in points if hits >= k], default=0.0) for k in range(1, num_objects + 1)]
    return sum(best) / num_objects


def test_average_precision_matches_its_definition_with_ties() -> None:
    for confidence in itertools.product([0.1, 0.5, 0.9], repeat=3):
        for correct in itertools.product([False, True], repeat=3):
            expected = interpolated_by_hand(list(correct), list(confidence), 4)
            assert_close(average_precision(torch.tensor(correct), torch.tensor(confidence), 4), expected)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(0, 1000))
def test_average_precision_is_at_least_scikit_learns_without_interpolation(correct: list[bool], seed: int) -> None:
    """Equal where precision never rises with recall: after sorting the hits to the front."""
    scores = torch.rand(len(correct), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    hits = torch.tensor(correct)
    if not any(correct):
        assert average_precision(hits, scores, 3) == 0.0
        return
    assert average_precision(hits, scores, sum(correct)) >= average_precision_score(hits, scores) - ALGEBRA
    front, ranks = torch.tensor(sorted(correct, reverse=True)), scores.sort(descending=True).values
    assert_close(average_precision(front, ranks, sum(correct)), average_precision_score(front, ranks))


def test_detections_of_batches_add() -> None:
    predicted, true, confidence = scenes(3)
    whole = detect(predicted, true, (0,), confidence)
    parts = [detect(predicted[i], true[i], (0,), confidence[i]) for i in (slice(0, 1), slice(1, 4))]
    assert isinstance(whole, Detections)
    assert score_detections(parts) == score_detections(whole)
