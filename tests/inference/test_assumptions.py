"""Verdicts follow their rules: at each threshold, and where the evidence disagrees."""

import re
from pathlib import Path

import pytest
import torch

from psa.inference import assumptions
from psa.inference.assumptions import (
    additive,
    full_rank,
    non_degenerate,
    piecewise_affine,
    separate,
    weakly_injective,
)
from psa.metrics.affine_pieces import Operations, Straightness
from psa.metrics.component_separation import ComponentSeparation
from psa.metrics.same_pictures import SamePictures
from psa.metrics.slot_jacobian import Interaction, SharedPixels, SlotRanks

PAGE = Path(__file__).resolve().parents[2] / "docs" / "diagnose.md"
KNOWN, BROKEN, FOREIGN = Operations(("relu",), (), ()), Operations((), ("tanh",), ()), Operations((), (), ("mine",))


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def bends(curved: float) -> Straightness:
    return Straightness(numbers(1e-2, 1e-3), numbers(1.0, 0.5), 0.5, curved)


@pytest.mark.parametrize(
    ("names", "curved", "verdict"),
    [
        (KNOWN, 0.1, "holds"),
        (KNOWN, 0.11, "not decided"),
        (KNOWN, 0.5, "not decided"),
        (BROKEN, 0.5, "fails"),
        (BROKEN, 0.49, "not decided"),
        (BROKEN, 0.0, "not decided"),
        (FOREIGN, 0.0, "holds"),
        (FOREIGN, 0.9, "fails"),
        (FOREIGN, 0.3, "not decided"),
    ],
)
def test_operations_and_bends_must_agree_and_bends_decide_alone_on_what_is_unknown(names, curved, verdict):
    assert piecewise_affine((names, bends(curved)), None).verdict == verdict


def test_a_slots_painting_has_a_verdict_of_its_own():
    found = piecewise_affine((BROKEN, bends(0.8)), (KNOWN, bends(0.0)))
    assert (found.verdict, found.figures["painting"]["verdict"]) == ("fails", "holds")
    assert "tanh" in found.reason
    assert "painting alone: holds" in found.reason


def ranks(full: int, of: int) -> SlotRanks:
    rank = torch.full((of,), 1)
    rank[:full] = 2
    condition = torch.where(rank == 2, 3.0, torch.inf).double()
    return SlotRanks(torch.ones(of, 2).double(), rank, condition)


@pytest.mark.parametrize(
    ("full", "verdict"), [(20, "holds"), (19, "holds"), (18, "not decided"), (2, "not decided"), (1, "fails")]
)
def test_nearly_all_slots_must_have_full_rank(full, verdict):
    found = full_rank({"one": [ranks(full, 20)]})
    assert found.verdict == verdict
    assert found.figures["share"] == {"one": full / 20}
    assert found.figures["condition_worst"] == (3.0 if full == 20 else None)


def test_ranks_of_all_sources_count_together():
    found = full_rank({"one": [ranks(4, 4)], "other": [ranks(0, 4)]})
    assert found.verdict == "not decided"
    assert found.figures["share"] == {"one": 1.0, "other": 0.0}


def probe(distance: float, same: bool = True) -> SamePictures:
    return SamePictures(numbers(distance), numbers(0.0), torch.tensor([same]))


@pytest.mark.parametrize(
    ("found", "verdict"), [(0, "holds"), (1, "not decided"), (8, "not decided"), (9, "fails"), (10, "fails")]
)
def test_one_distant_slot_undoes_injectivity_and_nearly_everywhere_disproves_it(found, verdict):
    some = [probe(1.0)] * found + [probe(0.99)] * (10 - found)
    assert weakly_injective({"slot": some}).verdict == verdict
    assert weakly_injective({"slot": [probe(0.0)], "scene": some}).verdict == verdict


def test_a_distant_slot_of_another_picture_counts_for_nothing():
    found = weakly_injective({"slot": [probe(50.0, same=False)]})
    assert (found.verdict, found.figures["farthest"]) == ("holds", {"slot": 0.0})


@pytest.mark.parametrize(
    ("share", "verdict"),
    [(0.0, "holds"), (1e-6, "holds"), (2e-6, "not decided"), (0.0099, "not decided"), (0.01, "fails")],
)
def test_a_sum_is_exact(share, verdict):
    shared = [SharedPixels(numbers(0.25, 0.25, 0.5), 1.0, 4.0), SharedPixels(numbers(0.0, 0.0, 1.0), 3.0, 4.0)]
    found = additive(Interaction(share, 0.0), shared)
    assert found.verdict == verdict
    assert (found.figures["contrast"], found.figures["contrast_at_random"]) == (2.0, 4.0)
    assert found.figures["shared_pixels"] == 0.75
    assert "contrast 0.50 of" in found.reason


def test_one_slot_has_no_contrast_to_compare():
    assert "contrast 0.00" in additive(Interaction(0.0, 0.0), [SharedPixels(numbers(0.0, 1.0), 0.0, 0.0)]).reason


def components(**changes) -> ComponentSeparation:
    parts = {
        "weights": numbers(*[0.25] * 4),
        "smallest": numbers(*[0.5] * 4),
        "condition": numbers(*[2.0] * 4),
        "nearest": numbers(*[1.0] * 4),
        "duplicates": 0,
        "effective": 4.0,
        "overall_condition": 3.0,
    }
    return ComponentSeparation(**parts | changes)


@pytest.mark.parametrize(
    ("collapsed", "verdict"), [(0, "holds"), (1, "holds"), (2, "not decided"), (49, "not decided"), (50, "fails")]
)
def test_collapsed_slots_make_it_degenerate(collapsed, verdict):
    variances = torch.full((100,), 1e-4, dtype=torch.float64)
    variances[:collapsed] = 1e-5
    found = non_degenerate(components(), variances)
    assert (found.verdict, found.figures["collapsed_slots"]) == (verdict, collapsed / 100)


@pytest.mark.parametrize(("collapsed", "verdict"), [(0, "holds"), (1, "not decided"), (2, "fails")])
def test_collapsed_components_make_it_degenerate(collapsed, verdict):
    smallest = numbers(*[1e-7] * collapsed, *[0.5] * (4 - collapsed))
    found = non_degenerate(components(smallest=smallest), numbers(0.5))
    assert (found.verdict, found.figures["collapsed_weight"]) == (verdict, collapsed / 4)


@pytest.mark.parametrize(
    ("nearest", "effective", "verdict"),
    [
        ((1.0, 1.0, 1.0, 1.0), 1.99, "fails"),
        ((1.0, 1.0, 1.0, 1.0), 2.0, "holds"),
        ((0.5, 0.5, 0.1, 0.1), 4.0, "holds"),
        ((0.5, 0.49, 0.1, 0.1), 4.0, "not decided"),
    ],
)
def test_components_are_several_and_most_of_them_apart(nearest, effective, verdict):
    assert separate(components(nearest=numbers(*nearest), effective=effective)).verdict == verdict


def test_components_that_stand_alone_have_no_distance_to_print():
    found = separate(components(nearest=numbers(*[torch.inf] * 4), effective=1.0))
    assert found.figures["nearest"] == [None, None, None]


def test_the_page_has_the_thresholds_of_the_code():
    page = PAGE.read_text()
    for name in [
        "STRAIGHT",
        "CURVED",
        "MOST",
        "HARDLY_ANY",
        "DISTANT",
        "NOT_INJECTIVE",
        "EXACT_SUM",
        "NO_SUM",
        "COLLAPSED",
        "FEW",
        "HALF",
        "FEWEST_TYPES",
        "SEPARATED",
    ]:
        (value,) = re.findall(rf"^\| `{name}` \| ([^|]+) \|", page, flags=re.MULTILINE)
        assert float(value) == getattr(assumptions, name), name
    assert assumptions.SAME_PICTURE == 1 / 510
    assert assumptions.MOVED == 1 / 255
    assert re.search(r"^\| `SAME_PICTURE` \| 1/510 \|", page, flags=re.MULTILINE)
    assert re.search(r"^\| `MOVED` \| 1/255 \|", page, flags=re.MULTILINE)
