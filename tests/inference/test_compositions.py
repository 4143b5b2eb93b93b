"""Encoder, slot module and decoder are chosen apart: each pair steps, and the slot module never feels the others."""

import pytest
import torch
from compositions import DECODERS, OBJECTIVES, compose, steps
from tiny import SIZE, tiny_images

from psa.inference.variants import VARIANTS

PAIRS = [(variant, decoder) for variant in VARIANTS for decoder in DECODERS]


@pytest.mark.parametrize(("number", "pair"), list(enumerate(PAIRS)), ids=["-".join(pair) for pair in PAIRS])
@pytest.mark.usefixtures("unchecked")
def test_every_variant_steps_with_every_decoder(number, pair):
    """All pairs of variant and decoder; objectives in turn, so that all pairs with them occur too."""
    steps(compose(*pair, OBJECTIVES[sum(divmod(number, len(DECODERS))) % 3]))


def test_objectives_in_turn_cover_all_pairs():
    cases = [(*pair, sum(divmod(number, len(DECODERS))) % 3) for number, pair in enumerate(PAIRS)]
    assert {(v, o) for v, _, o in cases} == {(v, o) for v in VARIANTS for o in range(3)}
    assert {(d, o) for _, d, o in cases} == {(d, o) for d in DECODERS for o in range(3)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_another_decoder_leaves_the_slot_modules_initial_weights_as_they_are(variant):
    first, *others = [compose(variant, decoder, OBJECTIVES[0]) for decoder in DECODERS]
    expected = first.guide.inference.state_dict()
    for other in others:
        found = other.guide.inference.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_same_slots_are_found_whatever_the_decoder():
    """Same seed, same encoder: not only the weights but the slots of images are the same numbers."""
    images = tiny_images(3).batch(slice(None))
    assert images.shape[-1] == SIZE
    found = [
        compose("psa-proj", d, OBJECTIVES[0], "slots.overrides.initialiser=queries").eval().encode(images)[1]
        for d in ("patch", "broadcast", "joint", "transformer")
    ]
    assert all(torch.equal(slots, found[0]) for slots in found)
