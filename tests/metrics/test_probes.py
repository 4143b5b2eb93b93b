import itertools
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import jaccard_score
from torch import Tensor

from psa.metrics.probes import ObjectFactors, ProbeScores, probe_slots, slots_of_objects


def told(count: int = 160, *names: str) -> tuple[Tensor, ObjectFactors, Tensor]:
    """Slots that hold an object's scale and functions of its x and shape; a factor and a coin that they do not hold."""
    g = torch.Generator().manual_seed(0)
    factors = {
        "scale": torch.rand(count, 2, generator=g) * 30 - 100,
        "x": torch.rand(count, 2, generator=g) * 2 - 1,
        "unseen": torch.rand(count, 2, generator=g),
        "shape": torch.randint(1, 4, (count, 2), generator=g),
        "coin": torch.randint(0, 2, (count, 2), generator=g),
    }
    shapes = [(factors["shape"] == shape).float() for shape in (2, 3)]
    known = torch.stack([factors["scale"] / 30, factors["x"] ** 3, *shapes], dim=2)
    matching = torch.rand(count, 3, generator=g).argsort(1)[:, :2]
    slots = torch.randn(count, 3, 4, generator=g).scatter(1, matching[:, :, None].expand(-1, -1, 4), known)
    present = torch.rand(count, 2, generator=g) < 0.9
    kept = {name: factors[name] for name in names or factors}
    return slots, ObjectFactors(kept, present, [name for name in ("shape", "coin") if name in kept]), matching


@pytest.fixture(scope="module")
def scores() -> ProbeScores:
    return probe_slots(*told(), hidden_dim=32)


def test_probes_find_what_slots_hold_and_nothing_else(scores: ProbeScores) -> None:
    assert scores.accuracy["shape"] > 0.98
    assert scores.r2["scale"] > 0.95
    assert scores.r2["x"] > 0.8
    assert scores.r2["unseen"] < 0.1
    assert abs(scores.accuracy["coin"] - 0.5) < 0.2
    assert scores.chance["coin"] < 0.7


def test_every_factor_has_the_score_of_its_kind(scores: ProbeScores) -> None:
    assert scores.accuracy.keys() == scores.chance.keys() == {"shape", "coin"}
    assert scores.r2.keys() == {"scale", "x", "unseen"}
    assert 0 < scores.num_objects <= 160


def test_with_the_slots_of_other_objects_nothing_is_found() -> None:
    slots, factors, matching = told(100, "scale", "shape")
    wrong = probe_slots(slots.roll(1, 0), factors, matching.roll(1, 0), hidden_dim=8)
    assert wrong.r2["scale"] < 0.1
    assert wrong.accuracy["shape"] < 0.5


def test_absent_objects_and_units_do_not_matter_and_a_seed_repeats() -> None:
    slots, factors, matching = told(40, "scale")
    scale = factors.values["scale"]
    expected = probe_slots(slots, factors, matching, hidden_dim=4)
    elsewhere = torch.where(factors.present, scale, torch.full_like(scale, 1e6))
    assert probe_slots(slots, replace(factors, values={"scale": elsewhere}), matching, hidden_dim=4) == expected
    other_unit = probe_slots(slots, replace(factors, values={"scale": scale.double() * 512}), matching, hidden_dim=4)
    assert other_unit.r2["scale"] == pytest.approx(expected.r2["scale"], abs=1e-5)


def test_a_categorical_factor_of_one_value_is_always_right() -> None:
    slots, factors, matching = told(20)
    same = ObjectFactors({"kind": torch.full((20, 2), 7)}, factors.present, ("kind",))
    found = probe_slots(slots, same, matching)
    assert (found.accuracy, found.chance) == ({"kind": 1.0}, {"kind": 1.0})


def test_what_cannot_be_probed_is_named() -> None:
    slots, factors, matching = told(20)
    with pytest.raises(ValueError, match="categorical: expected names of factors, came colour"):
        replace(factors, categorical=("colour",))
    with pytest.raises(ValueError, match="present: expected objects to train on and to score, came none"):
        probe_slots(slots, replace(factors, present=factors.present & False), matching)
    with pytest.raises(ValueError, match="objects: expected at most 3, one a slot, came 4"):
        slots_of_objects(torch.rand(2, 3, 5), torch.rand(2, 4, 5))


@pytest.mark.parametrize("seed", range(2))
def test_slots_of_objects_have_the_largest_total_overlap(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    labels, true = torch.randint(0, 4, (3, 20), generator=g), torch.randint(0, 3, (3, 20), generator=g)
    masks = torch.nn.functional.one_hot(labels, 4).mT.float()
    objects = torch.nn.functional.one_hot(true, 3).mT[:, 1:].float()
    found = slots_of_objects(masks, objects)
    for image in range(3):

        def total(order: tuple[int, ...], image: int = image) -> float:
            return sum(jaccard_score(objects[image, o], masks[image, k]) for o, k in enumerate(order))

        best = max(itertools.permutations(range(4), 2), key=total)
        assert total(tuple(found[image].tolist())) == pytest.approx(total(best), abs=1e-12)
