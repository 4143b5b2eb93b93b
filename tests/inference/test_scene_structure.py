"""What is found in pictures: counts, and whether there is one background."""

from types import SimpleNamespace

import pytest
import tiny
import torch
from tolerances import assert_close

from psa.inference import scene_structure
from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.roles import find_roles
from psa.inference.scene_structure import SceneStructure, find_structure, total_variation
from psa.records import DecodedScene


class Painted(SlotAutoencoder):
    """A run whose inference is known: the brightness of a picture's first pixel says which scene it is."""

    def __init__(self, labels: list[torch.Tensor]) -> None:
        torch.nn.Module.__init__(self)
        self.guide = SimpleNamespace(active=lambda posterior: None)
        self.labels = torch.stack(labels)

    def encode(self, images):
        which = images[:, 0, 0, 0].long()
        return None, which[:, None, None].expand(-1, 3, 1).float(), torch.empty(0)

    def decode(self, slots, active=None):
        labels = self.labels[slots[:, 0, 0].long()]
        masks = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).double()
        rgb = torch.tensor([0.0, 0.9, 0.8])[None, :, None, None, None].expand(len(labels), 3, 3, 10, 10)
        return DecodedScene(rgb=rgb.double(), log_masks=(masks + 1e-6).log().log_softmax(1))


def labels(**places: tuple[slice, slice]) -> torch.Tensor:
    """10 x 10 pixels, slot 0 everywhere but where slots s1 and s2 are."""
    found = torch.zeros(10, 10, dtype=torch.int64)
    for name, place in places.items():
        found[place] = int(name[1])
    return found


INSIDE = (slice(2, 5), slice(2, 5))
OTHER = (slice(6, 9), slice(6, 9))
HALF = (slice(0, 4), slice(0, 10))


@pytest.fixture
def found() -> SceneStructure:
    run = Painted([labels(), labels(s1=INSIDE), labels(s1=INSIDE, s2=OTHER), labels(s1=HALF, s2=OTHER)])
    pictures = torch.arange(4.0)[:, None, None, None].expand(4, 3, 10, 10)
    return find_structure(run, pictures)


def test_objects_are_counted_and_a_second_background_is_none(found: SceneStructure):
    assert found.num_objects.tolist() == [0, 1, 2, 2]
    assert found.one_background.tolist() == [True, True, True, False]


def test_a_scene_is_accurate_with_one_background_and_objects_in_number(found: SceneStructure):
    assert found.accurate().tolist() == [0.0, 1.0, 1.0, 0.0]
    assert found.accurate(0, 1).tolist() == [1.0, 1.0, 0.0, 0.0]


def test_the_count_distribution_sums_to_one(found: SceneStructure):
    assert_close(found.count_distribution(3), torch.tensor([0.25, 0.25, 0.5, 0.0]))


def test_pieces_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch):
    run = tiny.tiny_autoencoder(tiny.WITH_KL).eval()
    pictures = tiny.tiny_images(7).batch(slice(None))
    whole = find_structure(run, pictures)
    assert torch.equal(whole.num_objects, find_roles(run.decode(run.encode(pictures)[1])).num_objects)
    monkeypatch.setattr(scene_structure, "CHUNK", 3)
    assert torch.equal(find_structure(run, pictures).num_objects, whole.num_objects)


def test_total_variation_by_hand():
    assert total_variation(torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.2, 0.5, 0.3])) == pytest.approx(0.3)
    assert total_variation(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])) == 1.0
