"""Issue 4: scenes drawn from the aggregate prior, and objects counted, with seven slots (20 minutes)."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from psa.experiments.object_counts import score_counts
from psa.experiments.scene_samples import open_study
from psa.experiments.tables import markdown
from psa.inference.sessions import run_images


@pytest.mark.slow
def test_scene_draws_keep_what_independent_draws_ignore(seven_slots: Path):
    study, training = open_study(seven_slots)
    rows = study.qualities(training)
    print(markdown([asdict(row) for row in rows]))
    found = {(row.pictures, row.temperature): row for row in rows}
    scene = found["scene", 1.0]
    assert scene.accuracy >= 0.8
    for name in ("independent, equal weights", "independent, the paper's weights", "independent, one Gaussian"):
        assert scene.variation < found[name, 1.0].variation
        assert scene.accuracy > found[name, 1.0].accuracy


@pytest.mark.slow
def test_objects_are_counted_without_labels(seven_slots: Path):
    torch.set_num_threads(1)
    run = open_study(seven_slots)[0].run
    scores, bins = score_counts(run, run_images(run, run.config.data, "test", 1000))
    print(markdown([asdict(scores)]), markdown([asdict(one) for one in bins]), sep="\n\n")
    assert scores.median_error <= 0.4 < 0.9 < scores.constant_error
    assert scores.log_score > scores.constant_log_score
