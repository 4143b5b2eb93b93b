"""What model.md section 2 says does not hold: a counterexample each; and what holds for soft k-means."""

import math

import pytest
import torch
from contracts import draw, scrambled
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_close
from torch import Tensor

from psa.inference.em import MixtureState
from psa.inference.slot_inference import SlotInference
from psa.inference.variants import build
from psa.records import SlotPosterior

DIM, NUM_SLOTS = 3, 3
LEARNED = ("sa", "i-sa", "bo-sa", "qsa", "i-qsa", "bo-qsa", "smm", "psa", "psa-proj")
seeds = st.integers(0, 10_000)


def member(name: str, **options) -> SlotInference:
    torch.manual_seed(0)
    settings = {"num_slots": NUM_SLOTS, "input_dim": DIM, "slot_dim": DIM, "variance_floor": 1e-3} | options
    return build(name, **settings).double().eval()


def plain(name: str, **options) -> SlotInference:
    return member(name, projections="none", normalise=False, neural=False, **options)


def rotation(seed: int) -> Tensor:
    return torch.linalg.qr(draw(DIM, DIM, seed=seed)).Q


def problem(seed: int) -> tuple[Tensor, Tensor]:
    return 2 * draw(2, 12, DIM, seed=seed), draw(2, NUM_SLOTS, DIM, seed=seed + 1)


def start(loc: Tensor, deviation: float = 1.0) -> MixtureState:
    return MixtureState(loc, torch.full_like(loc, deviation**2), torch.full_like(loc[..., 0], -math.log(loc.shape[1])))


MAPS = {
    "translation": lambda x: x + torch.tensor([3.0, -2.0, 1.0]).double(),
    "scaling": lambda x: 3.0 * x,
    "a sign": lambda x: x * torch.tensor([-1.0, 1.0, 1.0]).double(),
    "axis order": lambda x: x[..., [1, 2, 0]],
    "rotation": lambda x: x @ rotation(5),
}


def same_slots(one: SlotPosterior, other: SlotPosterior) -> bool:
    return torch.allclose(one.responsibilities, other.responsibilities, atol=1e-3)


@pytest.mark.parametrize("change", MAPS)
@pytest.mark.parametrize("name", LEARNED)
def test_no_member_with_learned_maps_follows(name: str, change: str):
    module = scrambled(member(name))
    tokens, loc = problem(1)
    moved = MAPS[change]
    assert not same_slots(module(moved(tokens), initial=moved(loc)), module(tokens, initial=loc))


@given(seed=seeds, stretch=st.floats(0.2, 5.0))
def test_soft_k_means_follows_translations_rotations_and_one_scale(seed: int, stretch: float):
    module = plain("em", update="mean", variance_floor=0.0)
    tokens, loc = problem(seed)
    turn, shift = rotation(seed + 2), 5 * draw(DIM, seed=seed + 3)
    ours = module(tokens, initial=start(loc))
    theirs = module(stretch * tokens @ turn + shift, initial=start(stretch * loc @ turn + shift, stretch))
    assert_close(theirs.responsibilities, ours.responsibilities)
    assert_close(theirs.loc, stretch * ours.loc @ turn + shift)


def test_soft_k_means_does_not_follow_a_scale_an_axis():
    module, (tokens, loc) = plain("em", update="mean"), problem(1)
    stretch = torch.tensor([3.0, 1.0, 1.0]).double()
    ours = module(tokens, initial=start(loc))
    for deviation in (1.0, 3.0 ** (1 / 3), 3.0):  # no one deviation makes up for it
        assert not same_slots(module(stretch * tokens, initial=start(stretch * loc, deviation)), ours)


def test_dot_without_maps_does_not_follow_a_scale():
    module, (tokens, loc) = plain("sa"), problem(1)
    assert not same_slots(module(3 * tokens, initial=3 * loc), module(tokens, initial=loc))
