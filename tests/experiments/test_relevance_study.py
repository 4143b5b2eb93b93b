from pathlib import Path

import pytest
import tiny
import torch
from tolerances import FLOAT32, assert_close

from psa.experiments.relevance import RelevanceCurve, counted, draw, most_saved, needed_slots
from psa.inference.evaluation import evaluate
from psa.inference.relevance import RULES, Relevance
from psa.metrics import foreground_ari, num_objects


@pytest.fixture(scope="module")
def curve() -> RelevanceCurve:
    autoencoder = tiny.tiny_autoencoder(tiny.WITH_KL, "slots.num_slots=5").eval()
    return RelevanceCurve(autoencoder, tiny.tiny_images(20, "test"))


def test_products_are_counted_twice_for_a_multiplication_and_an_addition_each():
    a, b = torch.ones(3, 4), torch.ones(4, 5)
    product, flops = counted(lambda: a @ b)
    assert (tuple(product.shape), flops) == ((3, 5), 2 * 3 * 4 * 5)


def test_torch_counts_no_elementwise_work_and_the_rules_cost_does():
    a = torch.ones(3, 4)
    assert counted(lambda: a * a + 1)[1] == 0
    assert counted(lambda: a * a + 1, every_element=True)[1] == 2 * 12
    assert counted(lambda: (a * a).sum(), every_element=True)[1] == 2 * 12  # of a sum, the elements that are added


@pytest.mark.parametrize("rule", RULES)
def test_a_point_says_what_an_evaluation_with_the_rule_says(curve, rule):
    threshold = curve.thresholds(rule, (0.8,))[0]
    found = curve.point(rule, threshold)
    autoencoder = tiny.tiny_autoencoder(tiny.WITH_KL, "slots.num_slots=5", f"decoder.relevance={rule}").eval()
    autoencoder.guide.relevance = Relevance(rule, threshold, autoencoder.model)
    result = evaluate(autoencoder, curve.images)
    assert result.segmentation is not None
    assert 0.2 < found.slots_saved < 0.81
    assert_close(found.slots_saved, result.share_not_decoded)
    assert_close(found.foreground_ari, result.segmentation.foreground_ari)
    assert_close(found.ari, result.segmentation.ari)
    assert_close(found.mse, result.mse, FLOAT32)
    whole = evaluate(tiny.tiny_autoencoder(tiny.WITH_KL, "slots.num_slots=5").eval(), curve.images)
    assert_close(found.loss, whole.segmentation.foreground_ari - result.segmentation.foreground_ari)


def test_flops_are_saved_in_proportion_to_the_slots_but_for_the_rules_and_what_all_slots_share(curve):
    decoder = curve.autoencoder.model.decoder
    shared = counted(lambda: decoder.position(torch.ones(16, 2)))[1] / curve.full.flops
    found = curve.point("information", curve.thresholds("information", (0.5,))[0])
    assert found.rule_cost > 0
    assert_close(found.flops_saved, (1 - shared) * found.slots_saved - found.rule_cost)


def test_perfect_pruning_keeps_the_best_slot_of_every_true_segment(curve):
    needed = needed_slots(curve.full.labels, curve.masks, 5)
    for image in range(20):
        expected = set()
        for segment in curve.masks[image].unique():
            owners = curve.full.labels[image][curve.masks[image] == segment]
            expected.add(int(owners.bincount(minlength=5).argmax()))
        assert set(needed[image].nonzero()[:, 0].tolist()) == expected
    point = curve.perfect()
    assert_close(point.slots_saved, 1 - needed.double().mean())
    assert point.rule_cost == 0


def test_a_segment_that_an_image_lacks_needs_no_slot():
    labels, true = torch.tensor([[[0, 0, 1]], [[2, 2, 2]]]), torch.tensor([[[0, 0, 3]], [[0, 0, 0]]])
    assert needed_slots(labels, true, 3).tolist() == [[True, True, False], [False, False, True]]


def test_what_scenes_can_spare_is_all_but_a_slot_an_object_and_one_for_the_background(curve):
    objects = [len(mask.unique()) - 1 for mask in curve.masks]
    assert_close(curve.spare, 1 - (sum(objects) / 20 + 1) / 5)


def test_the_sweep_starts_from_all_slots_and_has_every_rule(curve, tmp_path: Path):
    points = curve.sweep(shares=(0.2, 0.6))
    assert [p.rule for p in points] == ["none", *(r for r in RULES for _ in range(2)), *RULES, "perfect"]
    first = points[0]
    assert (first.slots_saved, first.flops_saved, first.loss) == (0.0, 0.0, 0.0)
    several = num_objects(curve.masks) >= 2
    assert_close(first.foreground_ari, foreground_ari(curve.full.labels, curve.masks)[several].mean())
    best = most_saved(points, "weights", loss=1.0)
    assert best.flops_saved == max(p.flops_saved for p in points if p.rule == "weights")
    draw(points, curve.spare, tmp_path / "relevance.png")
    assert (tmp_path / "relevance.png").read_bytes().startswith(b"\x89PNG")


def test_no_more_is_lost_than_is_allowed(curve):
    points = curve.sweep(rules=("information",), shares=(0.2, 0.4, 0.6))
    losses = sorted(p.loss for p in points if p.rule == "information")
    allowed = losses[1]
    assert most_saved(points, "information", allowed).loss <= allowed


def test_images_without_masks_are_refused():
    with pytest.raises(ValueError, match="images must have true masks"):
        RelevanceCurve(tiny.tiny_autoencoder(tiny.WITH_KL), tiny.tiny_images(4, masks=False))
