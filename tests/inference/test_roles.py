"""What slots are, in scenes made by hand: who owns which pixels is known, and so is what each slot must be."""

import math

import numpy as np
import pytest
import scipy.special
import torch
from contracts import draw
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_close
from torch import Tensor

from psa.inference.roles import SceneRoles, change_without, find_roles
from psa.records import DecodedScene

SIZE = 16
PLACES = [(row, column) for row in (1, 6, 11) for column in (1, 6, 11)]  # of squares of 4 x 4 that leave the rim free
SIDE = 4
GREY, FAR_FROM_GREY = 0.5, [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, 0.5, 0.5], [0.5, 0.0, 0.9]]
SHARP = pytest.mark.parametrize("sharpness", [5.0, 40.0, 800.0])  # in nats: soft, exact in float32, and underflowing


def square(place: int, side: int = SIDE) -> Tensor:
    """(H, W), true in the square at a place."""
    row, column = PLACES[place]
    inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    inside[row : row + side, column : column + side] = True
    return inside


def painted(slots: list[tuple[Tensor, list[float]]], sharpness: float) -> DecodedScene:
    """One scene of flat slots, each above those before it, (where it stands, its colour)."""
    height = torch.stack([torch.where(where, float(level), -1.0) for level, (where, _) in enumerate(slots)])
    rgb = torch.tensor([colour for _, colour in slots], dtype=torch.float64)
    logits = sharpness * height.double()
    return DecodedScene(rgb[None, :, :, None, None].expand(-1, -1, -1, SIZE, SIZE), logits.log_softmax(0)[None])


def permuted(scene: DecodedScene, order: Tensor) -> DecodedScene:
    return DecodedScene(scene.rgb[:, order], scene.log_masks[:, order])


def random_scene(num_slots: int, seed: int, sharpness: float, batch: int = 2, size: int = 6) -> DecodedScene:
    log_masks = (sharpness * draw(batch, num_slots, size, size, seed=seed)).log_softmax(1)
    return DecodedScene(draw(batch, num_slots, 3, size, size, seed=seed + 1).sigmoid(), log_masks)


EVERYWHERE, NOWHERE = torch.ones(SIZE, SIZE, dtype=torch.bool), torch.zeros(SIZE, SIZE, dtype=torch.bool)


@SHARP
@given(places=st.lists(st.integers(0, 8), max_size=4, unique=True), num_empty=st.integers(0, 2), data=st.data())
def test_squares_on_a_background_are_the_objects(sharpness: float, places: list[int], num_empty: int, data):
    colours = [data.draw(st.sampled_from(FAR_FROM_GREY)) for _ in range(num_empty + len(places))]
    empty = [(NOWHERE, colour) for colour in colours[:num_empty]]
    squares = [(square(place), colour) for place, colour in zip(places, colours[num_empty:], strict=True)]
    order = torch.tensor(data.draw(st.permutations(range(1 + num_empty + len(places)))))
    roles = find_roles(permuted(painted([(EVERYWHERE, [GREY] * 3), *empty, *squares], sharpness), order))
    assert order[roles.background].tolist() == [0]
    assert roles.objects[0].tolist() == [int(slot) > num_empty for slot in order]
    assert roles.num_objects.tolist() == [len(places)]
    assert roles.is_background[0].tolist() == [int(slot) == 0 for slot in order]


@SHARP
def test_a_slot_that_repeats_the_background_is_nothing_though_it_owns_half_the_image(sharpness: float):
    left_half = (torch.arange(SIZE) < SIZE // 2 - 1).expand(SIZE, -1)
    slots = [(EVERYWHERE, [GREY] * 3), (left_half, [GREY] * 3), (square(4), FAR_FROM_GREY[0])]
    roles = find_roles(painted(slots, sharpness))
    assert int(roles.background) == 0
    assert roles.objects[0].tolist() == [False, False, True]


def test_the_background_owns_the_rim_not_most_of_the_image():
    large = square(0, side=SIZE - 2)
    assert int(large.sum()) > SIZE**2 / 2
    roles = find_roles(painted([(large, FAR_FROM_GREY[0]), (~large, [GREY] * 3)], 40.0))
    assert roles.background.tolist() == [1]
    assert roles.objects[0].tolist() == [True, False]


@SHARP
@pytest.mark.parametrize("lead", [0.0, 0.4])
def test_of_two_slots_that_share_an_object_one_is_left(sharpness: float, lead: float):
    slots = [(EVERYWHERE, [GREY] * 3), *[(square(0), FAR_FROM_GREY[1])] * 2, (square(5), FAR_FROM_GREY[2])]
    scene = painted(slots, sharpness)
    log_masks = scene.log_masks.clone()
    log_masks[:, 1] = log_masks[:, 2] + lead
    roles = find_roles(DecodedScene(scene.rgb, log_masks.log_softmax(1)))
    assert int(roles.objects[0, 1:3].sum()) == 1
    assert roles.objects[0, [0, 3]].tolist() == [False, True]


@given(num_slots=st.integers(1, 6), sharpness=st.sampled_from([0.3, 2.0, 30.0]), seed=st.integers(0, 10_000))
def test_the_order_of_slots_says_nothing(num_slots: int, sharpness: float, seed: int):
    scene = random_scene(num_slots, seed, sharpness, batch=8)
    order = torch.randperm(num_slots, generator=torch.Generator().manual_seed(seed))
    roles, others = find_roles(scene), find_roles(permuted(scene, order))
    assert torch.equal(order[others.background], roles.background)
    assert torch.equal(others.objects, roles.objects[:, order])


def test_each_scene_of_a_batch_is_looked_at_alone():
    scene = random_scene(5, 3, 2.0, batch=6)
    roles = find_roles(scene)
    assert len(set(roles.num_objects.tolist())) > 1
    for b in range(6):
        alone = find_roles(DecodedScene(scene.rgb[b : b + 1], scene.log_masks[b : b + 1]))
        assert torch.equal(alone.objects[0], roles.objects[b])
        assert int(alone.background) == int(roles.background[b])


@SHARP
def test_slots_that_were_not_decoded_are_empty_and_change_nothing(sharpness: float):
    slots = [(EVERYWHERE, [GREY] * 3), (square(0), FAR_FROM_GREY[0]), (square(8), FAR_FROM_GREY[1])]
    scene = painted(slots, sharpness)
    rgb = torch.nn.functional.pad(scene.rgb, (0, 0, 0, 0, 0, 0, 1, 2))
    log_masks = torch.nn.functional.pad(scene.log_masks, (0, 0, 0, 0, 1, 2), value=-math.inf)
    roles = find_roles(DecodedScene(rgb, log_masks))
    assert roles.background.tolist() == [1]
    assert roles.objects[0].tolist() == [False, False, True, True, False, False]
    change = change_without(DecodedScene(rgb, log_masks), torch.ones(1, 6, dtype=torch.bool))
    assert_close(change[:, 1:4], change_without(scene, torch.ones(1, 3, dtype=torch.bool)))
    assert not change[:, [0, 4, 5]].any()


def test_one_decoded_slot_is_the_background_whatever_it_shows():
    log_masks = torch.full((1, 4, SIZE, SIZE), -math.inf, dtype=torch.float64)
    log_masks[:, 2] = 0.0
    scene = DecodedScene(draw(1, 4, 3, SIZE, SIZE, seed=0).sigmoid(), log_masks)
    roles = find_roles(scene)
    assert (roles.background.tolist(), roles.num_objects.tolist()) == ([2], [0])
    change = change_without(scene, torch.ones(1, 4, dtype=torch.bool))
    assert_close(change[0, 2], scene.rgb[0, 2].amax(0))
    assert not change[0, [0, 1, 3]].any()


@given(
    num_slots=st.integers(1, 5),
    sharpness=st.sampled_from([0.5, 5.0, 100.0]),
    seed=st.integers(0, 10_000),
    left=st.lists(st.booleans(), min_size=10, max_size=10).map(lambda bits: torch.tensor(bits).reshape(2, 5)),
)
def test_the_change_is_that_of_painting_the_scene_without_the_slot(
    num_slots: int, sharpness: float, seed: int, left: Tensor
):
    scene, left = random_scene(num_slots, seed, sharpness), left[:, :num_slots]
    found = change_without(scene, left)
    rgb, log_masks = scene.rgb.numpy(), scene.log_masks.numpy()

    def picture(b: int, slots: list[int]) -> np.ndarray:
        if not slots:
            return np.zeros(rgb.shape[2:])
        return np.einsum("khw,kchw->chw", scipy.special.softmax(log_masks[b, slots], 0), rgb[b, slots])

    for b in range(2):
        kept = left[b].nonzero()[:, 0].tolist()
        for k in range(num_slots):
            without = picture(b, [slot for slot in kept if slot != k])
            assert_close(found[b, k], torch.tensor(np.abs(picture(b, kept) - without).max(0)))


@SHARP
def test_float32_gives_the_roles_of_float64(sharpness: float, device: torch.device):
    slots = [(EVERYWHERE, [GREY] * 3), (square(0), FAR_FROM_GREY[0]), (square(1), [GREY] * 3), (NOWHERE, [1.0] * 3)]
    scene = painted(slots, sharpness)
    roles = find_roles(DecodedScene(scene.rgb.float().to(device), scene.log_masks.float().to(device)))
    assert roles.objects.device.type == device.type
    assert roles.objects[0].tolist() == find_roles(scene).objects[0].tolist() == [False, True, False, False]


def roles_of_a_square(distance: float, **thresholds: float) -> SceneRoles:
    colours = [0.2] * 3, [0.2, 0.2 + distance, 0.2]
    return find_roles(painted([(EVERYWHERE, colours[0]), (square(4), colours[1])], 40.0), **thresholds)


def test_an_object_changes_enough_of_one_channel_of_enough_pixels():
    share = (SIDE / SIZE) ** 2
    for min_change, min_share, expected in (
        (0.29, share, 1),
        (0.31, share, 0),
        (0.29, share + 1e-3, 0),
        (0.29, 0.999, 0),
    ):
        assert int(roles_of_a_square(0.3, min_change=min_change, min_share=min_share).num_objects) == expected


@pytest.mark.parametrize("min_share", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_a_share_outside_its_support_is_refused(min_share: float):
    with pytest.raises(ValueError, match="min_share must be between 0 and 1, got"):
        roles_of_a_square(0.3, min_share=min_share)


@SHARP
def test_an_objects_slot_that_owns_much_of_the_rim_is_not_the_background(sharpness: float):
    """All slots paint the background alike, so that its pixels go to any: here most of the rim to an object's slot."""
    object_here = square(4)
    rgb = torch.full((1, 2, 3, SIZE, SIZE), GREY, dtype=torch.float64)
    rgb[:, 0, :, object_here] = 1.0
    height = torch.stack([torch.ones(SIZE, SIZE), torch.zeros(SIZE, SIZE)]).double()
    height[1, :, : SIZE // 4] = 2.0
    roles = find_roles(DecodedScene(rgb, (sharpness * height).log_softmax(0)[None]))
    assert roles.background.tolist() == [1]
    assert roles.objects.tolist() == [[True, False]]


def test_where_all_of_the_rim_is_an_objects_its_slot_is_the_background():
    rgb = torch.full((1, 2, 3, SIZE, SIZE), GREY, dtype=torch.float64)
    rgb[:, 0, :, square(4)] = 1.0
    height = torch.stack([torch.ones(SIZE, SIZE), torch.zeros(SIZE, SIZE)]).double()
    roles = find_roles(DecodedScene(rgb, (40.0 * height).log_softmax(0)[None]))
    assert roles.background.tolist() == [0]
    assert roles.num_objects.tolist() == [0]
