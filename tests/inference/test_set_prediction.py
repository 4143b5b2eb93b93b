import itertools
import math
from dataclasses import replace

import pytest
import tiny
import torch
from tolerances import CONVERGED, assert_close
from torch import Tensor

from psa.inference.config import TrainingConfig, published
from psa.inference.set_prediction import PropertyHead, PropertyLayout, fit_property_head, matched_huber
from psa.metrics.sets import ObjectSets, set_average_precision

LAYOUT = PropertyLayout(2, (3, 4))


def objects(count: int = 6, seed: int = 0) -> ObjectSets:
    g = torch.Generator().manual_seed(seed)
    codes = torch.stack([torch.randint(0, n, (count, 3), generator=g) for n in LAYOUT.num_codes], dim=2)
    present = (torch.rand(count, 3, generator=g) < 0.7).float()
    return ObjectSets(codes, torch.rand(count, 3, 2, generator=g), present)


def test_encoding_and_decoding_give_the_objects_back():
    true = objects()
    vectors = LAYOUT.encode(true)
    assert vectors.shape == (6, 3, LAYOUT.width) == (6, 3, 10)
    back = LAYOUT.decode(vectors)
    present = true.presence > 0
    assert torch.equal(back.presence, true.presence)
    assert torch.equal(back.categories[present], true.categories[present])
    assert torch.equal(back.coordinates[present], true.coordinates[present])
    assert not vectors[~present].any()
    assert set_average_precision(back, true, 0.1) == 1.0


def test_a_layout_without_categories_decodes_to_none():
    layout = PropertyLayout(1, ())
    assert layout.decode(torch.rand(2, 3, layout.width)).categories.shape == (2, 3, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"categories": torch.full((6, 3, 2), 3)},
            r"categories: expected codes from 0 below \(3, 4\), came \[3, 3\] to \[3, 3\]",
        ),
        ({"coordinates": torch.full((6, 3, 2), 1.5)}, r"coordinates: expected values in \[0, 1\], came 1.5 to 1.5"),
    ],
)
def test_what_a_layout_cannot_hold_is_named(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        LAYOUT.encode(replace(objects(), **change))


def by_permutations(predicted: Tensor, target: Tensor) -> Tensor:
    """The least summed Huber loss over all permutations, written out."""

    def huber(a: Tensor, b: Tensor) -> Tensor:
        away = (a - b).abs()
        return torch.where(away <= 1, 0.5 * away**2, away - 0.5).mean()

    padded = torch.cat([target, torch.zeros(len(predicted) - len(target), target.shape[1]).to(target)])
    orders = itertools.permutations(padded)
    return torch.stack([sum(huber(p, t) for p, t in zip(predicted, order, strict=True)) for order in orders]).min()


@pytest.mark.parametrize("seed", range(4))
def test_the_matched_loss_is_the_least_over_permutations(seed: int):
    g = torch.Generator().manual_seed(seed)
    predicted = 3 * torch.rand(5, 4, 6, generator=g, dtype=torch.float64)
    target = torch.rand(5, 3, 6, generator=g, dtype=torch.float64)
    expected = torch.stack([by_permutations(p, t) for p, t in zip(predicted, target, strict=True)])
    assert_close(matched_huber(predicted, target), expected)


def test_the_matched_loss_knows_no_order_and_is_zero_at_the_truth():
    predicted, target = torch.rand(4, 5, 6).double(), torch.rand(4, 3, 6).double()
    slots, things = torch.randperm(5), torch.randperm(3)
    assert_close(matched_huber(predicted[:, slots], target[:, things]), matched_huber(predicted, target))
    truth = torch.nn.functional.pad(target[:, things], (0, 0, 0, 2))
    assert_close(matched_huber(truth, target), torch.zeros(4))


def test_the_gradient_is_that_of_the_matched_pairs():
    target = torch.rand(2, 3, 5, dtype=torch.float64)
    predicted = torch.rand(2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: matched_huber(p, target), predicted)


def test_more_objects_than_slots_are_refused():
    with pytest.raises(ValueError, match="target: expected at most 2 objects, one a slot, came 3"):
        matched_huber(torch.rand(1, 2, 4), torch.rand(1, 3, 4))


def test_the_head_reads_each_slot_by_itself():
    head, slots = PropertyHead(5, LAYOUT, 8).double(), torch.randn(2, 4, 5, dtype=torch.float64)
    order = torch.randperm(4)
    assert_close(head(slots[:, order]), head(slots)[:, order])
    assert bool(((head(slots) > 0) & (head(slots) < 1)).all())


CONFIG = TrainingConfig(steps=400, batch_size=64, learning_rate=0.03, warmup_steps=10)


def test_a_head_learns_what_slots_say_and_spare_slots_say_nothing():
    """Slots that are the objects' vectors in an order of their own, mapped by a fixed matrix."""
    torch.manual_seed(0)
    true = objects(16)
    target = LAYOUT.encode(true)
    mixed = torch.nn.functional.pad(target, (0, 0, 0, 1)).take_along_dim(torch.rand(16, 4).argsort(1)[:, :, None], 1)
    slots = mixed @ torch.randn(LAYOUT.width, 12)
    head = PropertyHead(12, LAYOUT)
    losses = fit_property_head(head, lambda index: slots[index], target, CONFIG)
    assert losses[-1] < 0.05 * losses[0]
    predicted = LAYOUT.decode(head(slots).detach())
    assert set_average_precision(predicted, true, 0.25) > 0.7
    assert int((predicted.presence > 0.5).sum()) == int(true.presence.sum())


@pytest.mark.parametrize("joint", [False, True])
def test_slots_move_only_when_they_are_trained_with_the_head(joint: bool):
    autoencoder = tiny.tiny_autoencoder(published("sa")).train()
    images, guide = tiny.tiny_images(8), autoencoder.guide
    layout = PropertyLayout(1, (2,))
    torch.manual_seed(0)
    true = ObjectSets(torch.zeros(8, 3, 1, dtype=torch.int64), torch.rand(8, 3, 1), torch.ones(8, 3))
    head, before = PropertyHead(8, layout, 4), {n: p.clone() for n, p in autoencoder.state_dict().items()}

    def slots_of(index: Tensor) -> Tensor:
        return guide.inference.slots(guide.posterior(images.batch(index)))

    config = TrainingConfig(steps=3, batch_size=4, warmup_steps=0)
    seen = []
    modules = (guide.encoder, guide.inference) if joint else ()
    losses = fit_property_head(head, slots_of, layout.encode(true), config, modules, lambda *row: seen.append(row))
    assert seen == list(enumerate(losses, 1))
    assert all(math.isfinite(loss) for loss in losses)
    moved = {n.split(".")[1] for n, p in autoencoder.state_dict().items() if not torch.equal(p, before[n])}
    assert moved == ({"encoder", "inference"} if joint else set())


def test_the_same_seed_trains_the_same_head():
    target, slots = LAYOUT.encode(objects(16)), torch.randn(16, 3, 6)
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        head = PropertyHead(6, LAYOUT, 5)
        found.append(torch.tensor(fit_property_head(head, lambda i: slots[i], target, replace_steps(5))))
    assert_close(found[0], found[1], CONVERGED)


def replace_steps(steps: int) -> TrainingConfig:
    return CONFIG.model_copy(update={"steps": steps})
