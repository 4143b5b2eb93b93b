"""Scenes are drawn again until all that was drawn is seen."""

import torch
from tolerances import STANDARD_ERRORS

from psa.inference import scene_draws
from psa.inference.roles import find_roles
from psa.inference.scene_draws import draw_seen_scenes
from psa.models.aggregate import AggregatePrior
from psa.models.scene_prior import BACKGROUND, OBJECT, ScenePrior
from psa.records import DecodedScene

SIZE, SIDE = 12, 4


def prior(counts: list[float]) -> ScenePrior:
    """A slot is a place along the diagonal: objects at 2 or 6, and one in five so faint that it is not seen."""
    loc = torch.tensor([[-1.0], [2.0], [6.0], [-5.0]])
    aggregate = AggregatePrior(torch.tensor([0.5, 0.2, 0.2, 0.1]), loc, torch.full((4, 1), 1e-8))
    return ScenePrior(aggregate, torch.tensor([BACKGROUND, OBJECT, OBJECT, OBJECT]), torch.tensor(counts))


def decode(slots: torch.Tensor, active: torch.Tensor) -> DecodedScene:
    """White squares on black; a place below 0 paints nothing but black."""
    place = slots[..., 0].round()
    line = torch.arange(SIZE)
    inside = (line >= place[..., None]) & (line < place[..., None] + SIDE) & (place[..., None] >= 0)
    square = inside[..., :, None] & inside[..., None, :]
    rgb = square[:, :, None].expand(-1, -1, 3, -1, -1).double()
    height = torch.where(square, 5.0, torch.where(torch.arange(slots.shape[1])[:, None, None] == 0, 0.0, -5.0))
    height = height.double().masked_fill(~active[..., None, None], -torch.inf)
    return DecodedScene(rgb, (10 * height).log_softmax(1))


def draw(n: int, seed: int = 0, counts: tuple[float, ...] = (0.2, 0.4, 0.4)):
    return draw_seen_scenes(decode, prior(list(counts)), n, torch.Generator().manual_seed(seed))


def test_every_object_drawn_is_seen_and_none_hides_another():
    found = draw(300)
    roles = find_roles(decode(found.slots, found.active))
    assert torch.equal(roles.num_objects, found.active.sum(1) - 1)
    assert not bool((found.component == 3).any())
    pairs = found.component[found.active.sum(1) == 3][:, 1:]
    assert bool((pairs[:, 0] != pairs[:, 1]).all())


def test_the_counts_stay_those_of_the_prior():
    share = (draw(2000).active.sum(1) == 3).double().mean()
    assert abs(float(share) - 0.4) < STANDARD_ERRORS * (0.24 / 2000) ** 0.5


def test_a_component_is_the_one_its_slot_came_from():
    found = draw(50)
    loc = prior([1.0, 0.0, 0.0]).aggregate.loc
    assert torch.allclose(found.slots[found.active], loc[found.component[found.active]], atol=0.01)


def test_what_is_never_seen_stands_after_the_last_round(monkeypatch):
    """Three objects have two places."""
    calls = []
    monkeypatch.setattr(scene_draws, "ROUNDS", 3)
    monkeypatch.setattr(scene_draws, "find_roles", lambda scene: calls.append(1) or find_roles(scene))
    found = draw(5, counts=(0.0, 0.0, 0.0, 1.0))
    assert found.active.sum(1).tolist() == [4] * 5
    assert len(calls) == 3


def test_equal_seeds_give_equal_scenes():
    assert torch.equal(draw(40, 1).slots, draw(40, 1).slots)
    assert not torch.equal(draw(40, 1).slots, draw(40, 2).slots)
