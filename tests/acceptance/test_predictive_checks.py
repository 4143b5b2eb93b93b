"""Issue 4: predictive checks catch planted misfits, and are uniform on data from the model (about 10 minutes)."""

from dataclasses import asdict

import pytest
import torch

from psa.experiments.predictive_checks import (
    MISFITS,
    SEEDS,
    scene_misfit,
    scene_uniformity,
    small_run,
    token_misfits,
    token_uniformity,
)
from psa.experiments.tables import markdown


@pytest.fixture(scope="module")
def run():
    torch.set_num_threads(1)
    return small_run()


@pytest.mark.slow
def test_planted_misfits_are_caught_by_the_statistics_named_for_them(run):
    rows = [row for seed in SEEDS for row in (*token_misfits(seed), *scene_misfit(run, seed))]
    print(markdown([asdict(row) for row in rows]))
    assert {row.misfit for row in rows} == set(MISFITS)
    calibrated = [row for row in rows if row.check.startswith(("calibrated", "prior"))]
    assert len(calibrated) == len(SEEDS) * (2 + 2 + 2)
    assert max(row.p_value for row in calibrated) < 0.01


@pytest.mark.slow
def test_p_values_are_uniform_on_data_from_the_model(run):
    found = [*token_uniformity(), *scene_uniformity(run)]
    for one in found:
        print(f"{one.check} (uniform: {one.claim})", markdown([one.p_values]), sep="\n")
    assert all(one.smallest > 0.001 for one in found if one.claim == "exactly")
    raw = [one for one in found if one.claim == "no"]
    assert len(raw) == 2
    assert all(one.smallest < 0.001 for one in raw), "raw p-values that pass mean a test that sees nothing"
