"""The study behind docs/typed_slots.md, at a tiny size."""

import math
from dataclasses import fields, replace

import torch
from tolerances import STANDARD_ERRORS, assert_close

from psa.experiments.typed_slots import SMOKE, TypedSlotsResult, against_truth, planted, run_study, table
from psa.models.typed_mixture import TypePrior


def test_planted_images_hold_different_types_at_their_places():
    data = planted(SMOKE, torch.Generator().manual_seed(0))
    assert data.tokens.shape == (50, 60, 2)
    assert float(torch.pdist(data.loc).min()) >= SMOKE.separation
    assert all(len(set(row.tolist())) == 3 for row in data.which)
    for k in range(3):
        own = data.tokens[data.labels == k].reshape(50, 20, 2).mean(1)
        assert bool(((own - data.loc[data.which[:, k]]).abs() < STANDARD_ERRORS / 20**0.5).all())


def test_errors_against_the_truth_are_those_of_the_matched_types():
    data = planted(SMOKE, torch.Generator().manual_seed(0))
    share = data.which.flatten().bincount().double() / data.which.numel()
    ones = torch.ones(5, dtype=torch.float64)
    types = TypePrior(share, data.loc, ones, ones, torch.ones_like(data.loc))
    order = [3, 1, 4, 0, 2]
    shuffled = TypePrior(*(getattr(types, field.name)[order] for field in fields(types)))
    assert_close(torch.tensor(against_truth(shuffled, data)), torch.zeros(2))
    moved = replace(shuffled, loc=shuffled.loc + torch.tensor([0.0, 0.1], dtype=torch.float64))
    most = float(data.which.flatten().bincount().max()) * 20
    assert_close(against_truth(moved, data)[1], 0.1 * most**0.5)
    fewer = TypePrior(ones[:1], data.loc[:1], ones[:1], ones[:1], ones[:1, None].expand(1, 2))
    assert against_truth(fewer, data) == (math.inf, math.inf)


def test_a_study_finds_the_types_and_gains_on_held_out_images():
    found = run_study(SMOKE)
    assert found.weight_error < 0.02
    assert found.loc_error < STANDARD_ERRORS
    assert found.gain > STANDARD_ERRORS * found.gain_error
    assert found.least_rise > 0
    assert found.rounds == SMOKE.num_rounds


def test_the_table_has_a_row_for_every_seed_and_the_figures_of_each():
    tiny = replace(SMOKE, num_images=6, num_held_out=4, num_restarts=1)
    lines = table((tiny,), seeds=(0, 1)).splitlines()
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == [f.name for f in fields(TypedSlotsResult)]
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["0", "1"]
