"""Counting: each method against what it stands for, and a verdict that follows the figures."""

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from tolerances import FLOAT32, assert_close

from psa.errors import TrainingFailed
from psa.experiments import evidence_recovery, point_counts
from psa.experiments.experiment import Outcome
from psa.experiments.point_counts import EVIDENCE, PointSets, count_points, em, vb
from psa.experiments.relevance import RelevanceCurve
from psa.experiments.scene_counts import (
    SceneCounting,
    best_threshold,
    count_error,
    count_scenes,
    rule_scores,
    segments,
)
from psa.experiments.slot_count import SCALES, SlotCount
from psa.inference.autoencoder import SlotAutoencoder
from psa.inference.relevance import RULES, SPARE, Relevance, relevance_scores
from psa.inference.sessions import run_images
from psa.metrics import num_objects


def ignore(step: int, steps: int) -> None:
    pass


def test_small_concentrations_and_the_evidence_count_far_clusters_and_large_ones_do_not(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(evidence_recovery, "NUM_TOKENS", 60)
    monkeypatch.setattr(evidence_recovery, "MAX_TRUE", 3)
    monkeypatch.setattr(point_counts, "MAX_SLOTS", 4)
    seen: list[tuple[int, int]] = []
    sets = PointSets(3, 12.0, (0.1, 32.0), (10,), (0.0, 1.0))
    true, counts = count_points(sets, 2, 0, lambda done, total: seen.append((done, total)))
    assert true == [1, 2, 3]
    assert counts[vb(10, 0.1)] == counts[EVIDENCE] == true
    assert sum(counts[vb(10, 32.0)]) >= 10  # nearly all slots, whatever the truth
    assert counts[em(0.0)] == [4, 4, 4]  # every slot passes a threshold of 0
    assert all(1 <= n <= 3 for n in counts[em(1.0)])  # weights that are not all alike pass on both sides of 1 / K
    assert seen == [(n, 4) for n in range(1, 5)]


def test_the_best_threshold_has_the_least_error_of_all():
    generator = torch.Generator().manual_seed(0)
    scores, truth = torch.rand(40, 4, generator=generator), torch.randint(1, 5, (40,), generator=generator)
    least = min(count_error(scores, truth, float(t), 0) for t in scores.flatten())
    best = count_error(scores, truth, best_threshold(scores, truth, 0), 0)
    assert least <= best <= least + 0.05  # it tries quantiles, not all
    hand = [max(1, sum(s >= 0.5 for s in row)) - int(n) for row, n in zip(scores.tolist(), truth, strict=True)]
    assert count_error(scores, truth, 0.5, 0) == pytest.approx(sum(map(abs, hand)) / 40)


@pytest.fixture(scope="module")
def run() -> SlotAutoencoder:
    trainer = tiny.tiny_trainer(tiny.WITH_KL, "data.num_scenes=130")
    trainer.fit()
    return trainer.autoencoder


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_counts_the_slots_that_it_would_decode(run: SlotAutoencoder, rule: str):
    images = run_images(run, run.config.data, "test")
    scores = rule_scores(run, images, rule)
    assert len(scores) == len(images) > 100  # more than a chunk
    posterior = run.guide.posterior(images.batch(slice(None)))
    moments = run.guide.slot_moments(posterior)
    assert_close(scores, relevance_scores(rule, posterior, moments, run.model.trained_prior), FLOAT32)
    active = Relevance(rule, RULES[rule], run.model).active(posterior, moments)
    error = (active.sum(1) - segments(images)).abs().double().mean()
    assert count_error(scores, segments(images), RULES[rule], SPARE[rule]) == float(error)


def test_errors_and_savings_are_those_of_the_run(run: SlotAutoencoder):
    found = count_scenes(run, SceneCounting(60, 2, (0.5,)), 0)
    test = run_images(run, run.config.data, "test", 60)
    true = num_objects(test.masks, test.background)
    assert found["constant"] == min(float((true - guess).abs().double().mean()) for guess in range(5))
    curve = RelevanceCurve(run, test)
    for rule, default in RULES.items():
        own, figures = curve.point(rule, default), found["rules"][rule]
        assert (figures["saved"], figures["loss"]) == (own.flops_saved, own.loss)
        kept = [p.flops_saved for p in (own, curve.point(rule, curve.thresholds(rule, (0.5,))[0])) if p.loss <= 0.01]
        assert figures["most_saved"] == max(kept, default=0.0)
    assert found["spare"] == pytest.approx(1 - float(true.double().mean() + 1) / 3)


def scene(error: float, saved: float, ari: float = 0.9) -> Outcome:
    rule = {"default": 0.1, "error": error + 0.5, "best": 0.2, "best_error": error, "saved": 0.1, "loss": 0.0}
    figures: dict[str, Any] = {name: rule | {"most_saved": saved} for name in RULES}
    return Outcome({"rules": figures, "objects": 0.2, "constant": 1.0, "spare": 0.5, "foreground_ari": ari})


@pytest.mark.parametrize(
    ("scenes", "verdict"),
    [
        ([scene(0.5, 0.3), scene(0.9, 0.25)], "holds"),
        ([scene(0.5, 0.3), scene(1.0, 0.3)], "not decided at this scale"),  # no better than a constant
        ([scene(0.5, 0.2), scene(1.1, 0.3)], "fails"),
        ([scene(0.5, 0.3), scene(0.5, 0.3, ari=0.6)], "not decided at this scale"),  # a run that found no objects
        ([scene(0.5, 0.3)], "not decided at this scale"),
    ],
)
def test_the_verdict_follows_the_papers_rule(scenes: list[Outcome], verdict: str):
    sets = PointSets(5, 6.0, (0.1, 1.0, 10.0), (1, 2), (0.5,))
    experiment = SlotCount(points=sets, features=(2, 8), seeds=len(scenes))
    true = [1, 2, 3, 4, 5]
    counts = {vb(n, alpha): true if alpha < 5 else [8] * 5 for n in (1, 2) for alpha in sets.concentrations}
    points = Outcome({"true": true, "counts": counts | {em(0.5): [5] * 5, EVIDENCE: true}})
    outcomes = {"points.dim-2": points, "points.dim-8": points}
    found = experiment.conclude(outcomes | {f"scenes.seed-{seed}": one for seed, one in enumerate(scenes)})
    assert found.verdict == verdict
    assert found.figures["highest_alpha0_that_counts_dim_8"] == 1.0
    rows = {row["method"]: row for row in found.tables["Points: mean absolute error of the number of clusters"]}
    assert rows[em(0.5)]["D = 2"] == 2.0
    assert rows["best constant guess"]["D = 8"] == 1.2
    assert rows[vb(2, 10.0)]["D = 2, share right"] == 0.0


def test_a_run_that_diverges_ends_the_unit():
    smoke = SCALES["smoke"]
    assert isinstance(smoke, SlotCount)
    broken = replace(smoke, run=replace(smoke.run, learning_rate=1e4, steps=20))
    with pytest.raises(TrainingFailed, match=r"scenes.seed-0: the loss is not finite at step \d+"):
        broken.measure("scenes.seed-0", ignore)
