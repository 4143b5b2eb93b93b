"""Transfer: what is scored on what, models that refuse more slots, and a verdict that follows the scores."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch

from psa.experiments import transfer
from psa.experiments.experiment import Outcome
from psa.experiments.segmented import segment
from psa.experiments.transfer import BASELINE, PAPER, WIDER, Transfer, verdict
from psa.experiments.transfer_scenes import DOMAINS, HOMES, MORE, MORE_SLOTS, scenes_of, with_slots
from psa.inference.autoencoder import SlotAutoencoder, build_autoencoder
from psa.metrics import BASELINES, foreground_ari, num_objects

SMOKE = transfer.SCALES["smoke"]
assert isinstance(SMOKE, Transfer)
TWO_HOMES = Transfer(homes=("sprites", "tetrominoes"), seeds=3)


def untrained(row: str) -> SlotAutoencoder:
    torch.manual_seed(0)
    return build_autoencoder(SMOKE.run_config(row, "sprites", 0), (16, 16)).eval()


def test_every_kind_of_scenes_has_the_size_and_objects_that_it_is_called_after():
    kinds = {domain: scenes_of(domain, 24, 60) for domain in DOMAINS}
    assert all(scenes.size == (24, 24) and len(scenes) == 60 for scenes in kinds.values())
    counts = {domain: num_objects(scenes.masks, scenes.background) for domain, scenes in kinds.items()}
    assert set(counts[MORE].tolist()) == {5, 6}
    assert max(MORE_SLOTS - counts[MORE]) == 2
    assert all(counts[domain].max() <= 4 for domain in DOMAINS if domain != MORE)
    palette, unseen = (colours(kinds[domain]) for domain in ("sprites", "sprites, unseen hues"))
    assert palette & unseen == {(0, 0, 0)}


def colours(scenes) -> set[tuple[int, ...]]:
    return {tuple(colour) for colour in scenes.images.flatten(0, 2).unique(dim=0).tolist()}


def test_a_row_is_trained_on_its_home_and_differs_from_others_in_slots_and_objective_alone():
    configs = {row: TWO_HOMES.run_config(row, "tetrominoes", 1) for row in ("sa", "bo-qsa", "psa-proj", "recipe")}
    shared = [config.model_dump(exclude={"slots", "objective"}) for config in configs.values()]
    assert all(one == shared[0] for one in shared)
    assert len({(config.slots.num_slots, config.slots.slot_dim) for config in configs.values()}) == 1
    assert {config.data.source for config in configs.values()} == {"tetrominoes"}
    assert configs["recipe"].objective.kl_weight == 1.0
    assert configs["psa-proj"].slots.overrides == {}
    assert {config.training.noise_steps for config in configs.values()} == {360}  # 12 % of 3000, as the paper's


def test_more_slots_are_for_random_starts_alone_and_leave_the_weights_as_they_are():
    model = untrained("sa")
    wider = with_slots(model, MORE_SLOTS)
    assert wider is not None
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in wider.state_dict().items())
    scenes = scenes_of(MORE, 16, 4)
    assert segment(wider, scenes).slots.shape[1] == MORE_SLOTS
    assert with_slots(untrained("bo-qsa"), MORE_SLOTS) is None
    assert with_slots(untrained("recipe"), MORE_SLOTS) is None


def test_scores_are_of_scenes_with_two_objects_and_the_same_starts_for_every_call():
    model, scenes = untrained("sa"), scenes_of("sprites", 16, 12)
    one, again = segment(model, scenes), segment(model, scenes)
    assert torch.equal(one.labels, again.labels)
    several = num_objects(scenes.masks, scenes.background) >= 2
    assert 0 < several.sum() < 12
    expected = foreground_ari(one.labels, scenes.masks, scenes.background)[several].mean()
    assert one.foreground_ari == pytest.approx(float(expected))


def outcomes(experiment: Transfer, away: Mapping[str, Sequence[float | None]], home: float = 0.9) -> dict[str, Outcome]:
    """Runs with these scores on every kind but their home; None is one that diverged."""
    baseline = {name: dict.fromkeys(DOMAINS, 0.3) for name in BASELINES}
    found = {BASELINE: Outcome({"foreground_ari": baseline})}
    for row, scores in away.items():
        for where in experiment.homes:
            for seed, score in enumerate(scores):
                figures = {domain: home if domain == where else score for domain in DOMAINS}
                figures[WIDER] = None if row == "bo-qsa" else score
                whole = {} if score is None else {"labels": torch.zeros(len(DOMAINS), 16, 16, dtype=torch.int64)}
                curve = [] if score is None else [[10.0, score, 0.1, 0.2]]
                notes = {"failed_at": 5 if score is None else None, "curve": curve}
                found[f"{row}.{where}.seed-{seed}"] = Outcome(
                    notes | {"foreground_ari": {} if score is None else figures}, whole
                )
    return found


LOW, HIGH = [0.5, 0.52, 0.54], [0.7, 0.72, 0.74]
ROWS = {"sa": LOW, "bo-qsa": LOW, "psa-proj": LOW, "recipe": LOW}


@pytest.mark.parametrize(
    ("changed", "home", "expected"),
    [
        ({"bo-qsa": HIGH}, 0.9, "holds"),
        ({"bo-qsa": HIGH, "recipe": [0.9, 0.9, 0.91]}, 0.9, "holds"),  # no row of the paper's
        ({"bo-qsa": HIGH, "i-sa": HIGH}, 0.9, "not decided at this scale"),
        ({"sa": HIGH}, 0.9, "fails"),
        ({"bo-qsa": HIGH}, 0.4, "not decided at this scale"),  # nothing was learned that could transfer
        ({}, 0.9, "not decided at this scale"),
    ],
)
def test_the_verdict_follows_the_scores_away_from_home(changed: dict[str, list[float]], home: float, expected: str):
    away = {**ROWS, **changed}
    assert verdict(away, {row: [home] * 3 for row in away}) == expected


def test_losses_are_against_a_runs_own_home_refusals_have_no_figure_and_diverged_runs_score_zero():
    found = TWO_HOMES.conclude(outcomes(TWO_HOMES, ROWS | {"recipe": [None, 0.6, 0.9]}))
    assert found.verdict == "not decided at this scale"
    assert found.figures["bo_qsa_away"] == pytest.approx(np.mean(LOW))
    assert found.figures["recipe_away"] == pytest.approx(0.5)
    assert found.figures["recipe_home"] == pytest.approx(0.6)
    first, matrix, losses = found.tables.values()
    assert {row["row"]: row["paper, YCB to COCO"] for row in first}["sa"] == PAPER["sa"][1]
    assert {(row["row"], row["trained on"]) for row in losses} == {(row, home) for row in ROWS for home in HOMES}
    for row in losses[:6]:
        lost = [row[domain] for domain in DOMAINS if domain != row["trained on"]]
        assert lost == pytest.approx([0.9 - np.mean(LOW)] * len(lost))
        assert row[str(row["trained on"])] is None
    shown = {row["row"]: row for row in matrix}
    assert shown["bo-qsa"][WIDER] is None
    assert shown["sa"][WIDER] == "0.520 ± 0.020"
    assert shown["quadrants"]["sprites"] == 0.3
    assert set(found.pictures) == {"away", "curves", "scenes"}
