"""The bottleneck's rows, what correlations and probes are of, and a verdict that follows them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from psa.data import open_dataset
from psa.experiments import bottleneck
from psa.experiments.bottleneck import PAPER, SlotBottleneck
from psa.experiments.experiment import Outcome
from psa.experiments.slot_probes import FACTORS, probe_objects, sprite_factors
from psa.inference.autoencoder import build_autoencoder
from psa.inference.training import seed_everything

SMOKE = bottleneck.SCALES["smoke"]
assert isinstance(SMOKE, SlotBottleneck)
WEIGHTS = (0.1, 10.0, 1000.0)
THREE = SlotBottleneck(weights={"covariance": WEIGHTS, "vicreg": WEIGHTS}, seeds=3)


def test_rows_differ_in_their_losses_alone():
    study = replace(SMOKE, weights={"covariance": (1.0,), "vicreg": (1.0,)})
    configs = {row: study.run_config(losses, 3) for row, losses in study.rows.items()}
    plain = configs["slot-attention"].model_dump(exclude={"bottleneck"})
    assert all(config.model_dump(exclude={"bottleneck"}) == plain for config in configs.values())
    weights = {
        row: (config.bottleneck.covariance, config.bottleneck.variance, config.bottleneck.cosine)
        for row, config in configs.items()
    }
    assert weights == {
        "slot-attention": (0, 0, 0),
        "cosine": (0, 0, 1),
        "covariance=1": (1, 0, 0),
        "vicreg=1": (1, 1, 0),
    }


def test_a_run_without_the_loss_is_put_through_the_head_that_the_run_with_it_starts_from():
    size = (SMOKE.run.size, SMOKE.run.size)
    started = {}
    for row in ("slot-attention", "vicreg=1"):
        seed_everything(3)
        started[row] = build_autoencoder(SMOKE.run_config(SMOKE.rows[row], 3), size)
    theirs = started["vicreg=1"].model.factors.head.state_dict()
    ours = SMOKE.head(started["slot-attention"], 3).head.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert SMOKE.head(started["vicreg=1"], 3) is started["vicreg=1"].model.factors
    other = SMOKE.head(started["slot-attention"], 4).head.state_dict()
    assert not torch.equal(other["0.weight"], theirs["0.weight"])


def test_probes_read_factors_off_slots_that_hold_them_whatever_their_order():
    data = open_dataset("sprites", "test", num_scenes=120, size=16, max_objects=2, min_objects=2)
    scenes = [data[i] for i in range(len(data))]
    factors, true = sprite_factors(scenes), torch.from_numpy(np.stack([scene.mask for scene in scenes]))
    shape = torch.nn.functional.one_hot(factors.values["shape"], 4)
    known = [factors.values[name].float() for name in ("x", "y", "size", "red", "green", "blue")]
    held = torch.cat([torch.stack(known, 2), shape.float()], 2)
    slots = torch.cat([torch.zeros_like(held[:, :1]), held], 1)  # the background's first, objects as their labels
    scores = probe_objects(slots[:, [1, 2, 0]], (true + 2) % 3, true, factors, 16)
    assert scores.keys() == set(FACTORS)
    assert scores["shape"] > 0.98
    assert min(scores[name] for name in FACTORS if name != "shape") > 0.9
    mistaken = probe_objects(slots, (true + 2) % 3, true, factors, 16)
    assert max(mistaken[name] for name in ("x", "y", "colour")) < 0.5


def test_factors_of_multi_dsprites_are_those_of_its_objects():
    data = open_dataset("multi-dsprites", "test", num_scenes=5, size=16)
    scenes = [data[i] for i in range(len(data))]
    factors = sprite_factors(scenes)
    assert set(factors.values) == {"shape", "x", "y", "size", "red", "green", "blue"}
    assert torch.equal(factors.values["size"][3], torch.from_numpy(scenes[3].factors["scale"]))
    assert torch.equal(factors.values["green"][3], torch.from_numpy(scenes[3].factors["color"][:, 1]))
    assert factors.present.sum(1).tolist() == [int(scene.factors["num_objects"]) for scene in scenes]


def outcomes(correlation: Mapping[str, float], scores: Mapping[str, Sequence[float | None]]) -> dict[str, Outcome]:
    """Runs of every row; those not named have correlation 0.2 and scores about 0.8; None is one that diverged."""
    found = {}
    for row in THREE.rows:
        for seed, score in enumerate(scores.get(row, [0.80, 0.81, 0.82])):
            figures: dict[str, Any] = {"failed_at": 4 if score is None else None, "curve": []}
            if score is not None:
                figures |= {"foreground_ari": score, "mse": 0.1, "slot_correlation": 0.1, "projection_deviation": 1.0}
                figures |= {"projection_correlation": correlation.get(row, 0.2)}
                figures |= {"probes": dict.fromkeys(FACTORS, 0.5), "curve": [[10.0, score, 0.1, 0.2]]}
            found[f"{row}.seed-{seed}"] = Outcome(figures)
    return found


FALLS = {"vicreg=10": 0.019, "vicreg=1000": 0.001}


@pytest.mark.parametrize(
    ("correlation", "scores", "verdict"),
    [
        (FALLS, {}, "holds"),
        (FALLS, {"vicreg=1000": [0.1, 0.1, 0.11]}, "holds"),  # the smallest weight that is enough
        (FALLS, {"vicreg=10": [0.60, 0.61, 0.62]}, "fails"),
        (FALLS, {"vicreg=10": [0.5, 0.8, 0.9]}, "not decided at this scale"),
        (FALLS, {"slot-attention": [0.4, 0.41, 0.42]}, "not decided at this scale"),  # finds no objects
        ({"covariance=0.1": 0.001}, {}, "fails"),  # another loss's fall is not its own
        ({}, {}, "fails"),
    ],
)
def test_the_verdict_follows_correlation_and_scores(
    correlation: dict[str, float], scores: dict[str, list[float | None]], verdict: str
):
    found = THREE.conclude(outcomes(correlation, scores))
    assert found.verdict == verdict
    assert found.figures["correlation_without"] == pytest.approx(0.2)
    assert found.figures.get("weight_vicreg") == (10.0 if "vicreg=10" in correlation else None)
    fall = max(0.2 / correlation.get(f"vicreg={weight:g}", 0.2) for weight in WEIGHTS)
    assert found.figures["largest_fall_vicreg"] == pytest.approx(fall)


def test_tables_have_every_row_and_the_papers_figures_and_a_diverged_run_has_no_fall():
    found = THREE.conclude(outcomes(FALLS, {"vicreg=10": [None, 0.8, 0.8]}))
    first, second = found.tables.values()
    assert [row["row"] for row in first] == list(THREE.rows)
    shown = {row["row"]: row for row in first}
    assert shown["vicreg=10"]["diverged"] == 1
    assert shown["vicreg=10"]["correlation of the projection"] == pytest.approx((1 + 2 * 0.019) / 3)
    assert shown["covariance=1000"]["paper's FG-ARI"] == PAPER["covariance"][0]
    assert [row["row"] for row in second][-3:] == [f"paper: {row}" for row in PAPER]
    assert found.figures["weight_vicreg"] == 1000.0
    assert set(found.pictures) == {"weights", "curves"}
