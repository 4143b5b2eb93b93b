import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, jaccard_score
from tolerances import assert_close
from torch import Tensor
from torchmetrics.functional.segmentation import dice_score

from psa.metrics.foreground import foreground_overlap


def pairs(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    true = torch.randint(0, 3, (5, 4, 4), generator=generator)
    noise = torch.randint(0, 4, true.shape, generator=generator)
    return torch.where(torch.rand(true.shape, generator=generator) < 0.5, noise, (true > 0).long()), true


def chosen(predicted: Tensor, foreground: Tensor) -> Tensor:
    """The segment that shares most pixels with the foreground; of equals the one of larger IoU."""
    candidates = [predicted == label for label in predicted.unique()]
    return max(
        candidates,
        key=lambda one: (int((one & foreground).sum()), int((one & foreground).sum()) / int((one | foreground).sum())),
    )


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(0,), (0, 1), ()]))
def test_overlap_of_the_chosen_segment_matches_scikit_learn(seed: int, background: tuple[int, ...]) -> None:
    predicted, true = pairs(seed)
    scores = foreground_overlap(predicted, true, background)
    for i, (p, t) in enumerate(zip(predicted, true, strict=True)):
        foreground = ~torch.isin(t, torch.tensor(background, dtype=torch.int64))
        if not foreground.any():
            assert math.isnan(scores.iou[i])
            continue
        ours, theirs = chosen(p, foreground).flatten(), foreground.flatten()
        assert_close(scores.iou[i], jaccard_score(theirs, ours))
        assert_close(scores.dice[i], f1_score(theirs, ours))


def test_dice_matches_torchmetrics() -> None:
    predicted, true = pairs(1)
    ours = torch.stack([chosen(p, t > 0) for p, t in zip(predicted, true, strict=True)])
    expected = [dice_score(o[None, None].long(), t[None, None].long(), 1) for o, t in zip(ours, true > 0, strict=True)]
    assert_close(foreground_overlap(predicted, true).dice, torch.stack(expected).flatten(), 1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.permutations(range(5)), st.permutations(range(4)))
def test_names_of_labels_and_order_of_images_do_not_matter(seed: int, order: list[int], names: list[int]) -> None:
    predicted, true = pairs(seed)
    expected = foreground_overlap(predicted, true).iou
    came = foreground_overlap((torch.tensor(names)[predicted] - 9)[order], true[order]).iou
    assert torch.equal(came.nan_to_num(-1.0), expected[order].nan_to_num(-1.0))


def test_one_segment_that_is_all_objects_together_scores_one() -> None:
    true = torch.tensor([[0, 0, 1, 2, 3], [0, 0, 0, 0, 0]])
    scores = foreground_overlap((true > 0).long() + 4, true)
    assert scores.iou[0] == scores.dice[0] == 1.0
    assert scores.iou.isnan().tolist() == scores.dice.isnan().tolist() == [False, True]


def test_the_segment_of_most_shared_pixels_is_taken_though_another_has_the_larger_iou() -> None:
    true = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1]])
    predicted = torch.tensor([[5, 5, 5, 5, 5, 5, 5, 6]])
    assert foreground_overlap(predicted, true).iou.item() == pytest.approx(2 / 8, abs=1e-12)


def test_an_empty_batch_has_no_scores() -> None:
    nothing = torch.zeros(0, 4, 4, dtype=torch.int64)
    assert foreground_overlap(nothing, nothing).iou.shape == (0,)
