import math
from dataclasses import asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import jaccard_score
from tolerances import assert_close
from torch import Tensor

from psa.metrics import (
    detect,
    foreground_ari,
    foreground_overlap,
    score_detections,
    score_masks,
    summarise_masks,
)


def batch(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Soft masks, true labels of objects, and of their classes."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.randint(0, 4, (4, 3, 5), generator=generator)
    logits = torch.nn.functional.one_hot(true, 5).movedim(-1, 1) * 2 + torch.randn(4, 5, 3, 5, generator=generator)
    return logits.softmax(1), true, torch.tensor([0, 7, 9, 7])[true]


def best_overlap(labels: Tensor, true: Tensor, background: set[int]) -> float:
    """Mean over an image's objects of scikit-learn's best IoU, then over images."""
    means = []
    for ours, theirs in zip(labels.flatten(1), true.flatten(1), strict=True):
        objects = set(theirs.tolist()) - background
        best = [max(jaccard_score(theirs == o, ours == s) for s in ours.unique()) for o in objects]
        means += [sum(best) / len(best)] if best else []
    return sum(means) / len(means)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("background", [{0}, {0, 7, 2}])
def test_best_overlaps_match_scikit_learn(seed: int, background: set[int]) -> None:
    masks, true, classes = batch(seed)
    summary = summarise_masks([score_masks(masks, true, background, classes)])
    assert_close(summary.mbo_instance, best_overlap(masks.argmax(1), true, background))
    assert_close(summary.mbo_class, best_overlap(masks.argmax(1), classes, background))


def test_the_figures_are_those_of_the_measures() -> None:
    masks, true, _ = batch(0)
    labels, summary = masks.argmax(1), summarise_masks([score_masks(masks, true)])
    detections = score_detections(detect(labels, true, (0,), masks.amax(1)))
    assert {name: getattr(summary, name) for name in asdict(detections)} == asdict(detections)
    assert_close(summary.foreground_iou, foreground_overlap(labels, true).iou.mean())
    assert_close(summary.foreground_dice, foreground_overlap(labels, true).dice.mean())
    assert_close(summary.foreground_ari, foreground_ari(labels, true).mean())


def test_a_surer_mask_changes_the_average_precision_alone() -> None:
    masks, true, _ = batch(1)
    sharper = masks.pow(torch.rand(4, 1, 3, 5, generator=torch.Generator().manual_seed(0)) * 9 + 1)
    sharper = sharper / sharper.sum(1, keepdim=True)
    one, other = (asdict(summarise_masks([score_masks(m, true)])) for m in (masks, sharper))
    assert {name for name in one if one[name] != other[name]} == {"ap"}


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(4)), st.permutations(range(5)))
def test_order_of_images_batches_and_slots_do_not_matter(seed: int, order: list[int], slots: list[int]) -> None:
    masks, true, classes = batch(seed)
    whole = summarise_masks([score_masks(masks, true, (0,), classes)])
    masks = masks[:, slots]
    parts = summarise_masks([score_masks(masks[[i]], true[[i]], (0,), classes[[i]]) for i in order])
    for name, value in asdict(whole).items():
        assert_close(getattr(parts, name), value)


def test_what_labels_do_not_tell_is_left_out() -> None:
    masks, true, classes = batch(2)
    assert summarise_masks([score_masks(masks, true)]).mbo_class is None
    assert summarise_masks([score_masks(masks, classes, (0,), classes)], instances=False).mbo_instance is None
    assert math.isnan(summarise_masks([score_masks(masks, true * 0)]).foreground_iou)
