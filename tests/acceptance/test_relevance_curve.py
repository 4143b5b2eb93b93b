"""Issue 4: decoder FLOPs saved against foreground ARI lost, K = 7; and a run trained with the rule (half an hour)."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import psa
from psa.experiments.relevance import Point, RelevanceCurve, most_saved
from psa.experiments.tables import markdown
from psa.inference.config import override
from psa.inference.relevance import RULES
from psa.inference.sessions import run_images, start_run
from psa.runs import RunDirectory


def sweep(run: Path, data_seed: int = 0) -> Sequence[Point]:
    """The curve of a run on the test split of a data seed, printed."""
    autoencoder = psa.load(run)
    data = autoencoder.config.data.model_copy(update={"seed": data_seed})
    curve = RelevanceCurve(autoencoder, run_images(autoencoder, data, "test"))
    points = curve.sweep()
    print(f"{run}: {len(curve.score)} scenes of two objects or more; they can spare {curve.spare:.3f} of the slots")
    print(markdown([asdict(point) for point in points]), flush=True)
    for rule in RULES:
        best = most_saved(points, rule)
        print(f"{rule}: saves {best.flops_saved:.3f} at a loss of {best.loss:.4f} (s.e. {best.loss_error:.4f})")
    return points


def check(points: Sequence[Point]) -> None:
    """The bar is 0.25 at a loss of 0.01, and the aim 0.40; here at the rule's own threshold, chosen beforehand."""
    assert most_saved(points, "information").flops_saved >= 0.40
    (default,) = (p for p in points if p.rule == "information" and p.threshold == RULES["information"])
    assert default.flops_saved >= 0.25
    assert default.loss <= 0.01


@pytest.mark.slow
def test_slots_that_say_nothing_are_left_undecoded_and_the_segmentation_stays(seven_slots: Path):
    torch.set_num_threads(1)
    check(sweep(seven_slots))
    check(sweep(seven_slots, data_seed=4242))  # scenes on which nothing was chosen


@pytest.mark.slow
def test_a_run_trained_with_the_rule_leaves_slots_out_too(seven_slots: Path, tmp_path: Path):
    """What it does to the segmentation is printed, without a bar."""
    torch.set_num_threads(1)
    values = override(RunDirectory(seven_slots).read_config(), ["training.threads=1", "decoder.relevance=information"])
    start_run(values, tmp_path / "ruled").fit()
    points = sweep(tmp_path / "ruled")
    (default,) = (p for p in points if p.rule == "information" and p.threshold == RULES["information"])
    assert default.flops_saved >= 0.25
