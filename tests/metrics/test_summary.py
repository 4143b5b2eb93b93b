import math

import pytest
import torch

from psa.metrics import score_images, summarise

EXACT = 1e-12


def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Images of no, one, two and three objects, the second and last badly segmented."""
    true = torch.tensor([[0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 2, 2], [1, 1, 2, 2, 3, 3]])
    predicted = torch.tensor([[0, 0, 0, 0, 0, 1], [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 2], [1, 1, 1, 2, 2, 2]])
    return predicted, true


def test_headline_figure_leaves_out_images_with_fewer_than_two_objects() -> None:
    scores = score_images(*images())
    summary = summarise(scores)
    assert scores.num_objects.tolist() == [0, 1, 2, 3]
    assert scores.foreground_ari[:3].tolist() == [1.0, 0.0, 1.0]
    first, second = scores.foreground_ari[2:].tolist()
    assert summary.foreground_ari == pytest.approx((first + second) / 2, abs=EXACT)
    assert summary.foreground_ari_stderr == pytest.approx(abs(first - second) / 2, abs=EXACT)
    assert summary.foreground_ari_all == pytest.approx((1.0 + 0.0 + first + second) / 4, abs=EXACT)
    assert summary.ari == pytest.approx(scores.ari.mean().item(), abs=EXACT)
    assert summary.msc == pytest.approx(scores.msc[1:].mean().item(), abs=EXACT)
    assert summary.share_single_object == 0.5
    assert summary.num_images == 4


def test_summary_does_not_depend_on_how_images_are_cut_into_batches() -> None:
    predicted, true = images()
    batches = [score_images(predicted[part], true[part]) for part in (slice(0, 1), slice(1, 1), slice(1, 4))]
    assert summarise(batches) == summarise(score_images(predicted, true))


def test_means_over_no_image_are_nan() -> None:
    predicted, true = images()
    single = summarise(score_images(predicted[:2], true[:2]))
    assert math.isnan(single.foreground_ari)
    assert single.foreground_ari_all == 0.5
    assert math.isnan(summarise(score_images(predicted[2:3], true[2:3])).foreground_ari_stderr)
    nothing = summarise([])
    assert nothing.num_images == 0
    assert math.isnan(nothing.ari)


def test_background_labels_are_passed_on() -> None:
    predicted, true = images()
    scores = score_images(predicted, true, background=(0, 1))
    assert scores.num_objects.tolist() == [0, 0, 1, 2]
    assert scores.foreground_ari.tolist()[:3] == [1.0, 1.0, 1.0]
    assert scores.msc.isnan().tolist() == [True, True, False, False]
    assert torch.equal(scores.ari, score_images(predicted, true).ari)
