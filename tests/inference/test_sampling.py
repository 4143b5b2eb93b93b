"""New scenes that keep part of an image."""

import pytest
import tiny
import torch
from tolerances import FLOAT32, assert_close

from psa.inference.sampling import ImageSlots, edited_scenes, image_slots
from psa.models.aggregate import AggregatePrior
from psa.models.scene_prior import BACKGROUND, EMPTY, NO_COMPONENT, OBJECT, ScenePrior

# Components far apart say which one a slot came from: the background at 100, objects at 200 and 300.
PRIOR = ScenePrior(
    AggregatePrior(
        torch.tensor([0.4, 0.3, 0.3]), torch.tensor([[100.0] * 2, [200.0] * 2, [300.0] * 2]), torch.full((3, 2), 0.01)
    ),
    torch.tensor([BACKGROUND, OBJECT, OBJECT]),
    torch.tensor([0.0, 0.5, 0.5, 0.0, 0.0]),
)
IMAGE = ImageSlots(torch.arange(10.0).view(5, 2), (OBJECT, BACKGROUND, EMPTY, OBJECT, EMPTY))
OTHER = ImageSlots(-torch.arange(10.0).view(5, 2) - 1, (EMPTY, OBJECT, BACKGROUND, OBJECT, EMPTY))


def edit(keep=(0,), n=6, **options):
    return edited_scenes(PRIOR, IMAGE, keep, n, generator=torch.Generator().manual_seed(0), **options)


def test_kept_slots_stay_as_they_are_in_every_scene():
    found = edit((0, 1))
    assert torch.equal(found.slots[:, :2], IMAGE.slots[:2].expand(6, 2, 2))
    assert bool((found.component[:, :2] == NO_COMPONENT).all())
    assert bool(found.active[:, :2].all())


def test_others_are_drawn_anew_in_their_roles_and_empty_ones_left_out():
    found = edit((0,))
    assert found.active.tolist() == [[True, True, False, True, False]] * 6
    assert bool((found.component[:, 1] == 0).all())
    assert bool((found.component[:, 3] > 0).all())
    assert len(torch.unique(found.slots[:, 3, 0])) == 6
    assert_close(found.slots[:, 3, 0] / 100, (found.component[:, 3] + 1).float(), 0.01)
    assert not bool(found.slots[~found.active].any())


def test_removed_slots_are_not_decoded():
    found = edit((1, 3), others="remove")
    assert found.active.tolist() == [[False, True, False, True, False]] * 6
    assert bool((found.component == NO_COMPONENT).all())


def test_objects_are_added_where_there_is_room():
    found = edit((0, 1), others="remove", add=3)
    assert bool(found.active.all())
    assert bool((found.component[:, 2:] > 0).all())
    with pytest.raises(ValueError, match="of 5 slots 3 are free, got 4"):
        edit((0, 1), others="remove", add=4)


def test_another_images_objects_come_in_and_its_background_only_if_none_is_kept():
    kept = edit((1,), others=OTHER)
    assert kept.active.tolist() == [[True, True, True, False, False]] * 6
    assert torch.equal(kept.slots[0, [0, 2]], OTHER.slots[[1, 3]])
    without = edit((0,), others=OTHER)
    assert torch.equal(without.slots[0, [1, 2, 3]], OTHER.slots[[2, 1, 3]])


def test_an_empty_slot_may_be_kept():
    assert edit((2,), others="remove").active.tolist() == [[False, False, True, False, False]] * 6


def test_equal_seeds_give_equal_scenes():
    assert torch.equal(edit().slots, edit().slots)


@pytest.mark.parametrize(
    ("text", "slots"), [("all", (1, 0, 3)), ("objects", (0, 3)), ("background", (1,)), ("4,0", (4, 0))]
)
def test_slots_are_named_by_group_or_number(text: str, slots: tuple[int, ...]):
    assert IMAGE.chosen(text) == slots


@pytest.mark.parametrize("text", ["5", "-1", "0,x", "", "object"])
def test_slots_that_do_not_exist_are_refused(text: str):
    with pytest.raises(ValueError, match="expected"):
        IMAGE.chosen(text)


def test_nothing_to_decode_is_refused():
    with pytest.raises(ValueError, match="got none"):
        edit((), others="remove")
    with pytest.raises(ValueError, match="others must be"):
        edit(others="swap")


def test_the_slots_of_an_image_are_its_read_outs_with_one_background():
    run = tiny.tiny_autoencoder(tiny.WITH_KL).eval()
    images = tiny.tiny_images(2)
    found = image_slots(run, images.images[1])
    assert_close(found.slots, run.encode(images.images)[1][1], FLOAT32)
    assert found.roles.count(BACKGROUND) == 1
