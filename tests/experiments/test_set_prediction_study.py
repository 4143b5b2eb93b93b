"""What set_prediction shares between rows, what it measures, and how it decides."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from tolerances import assert_close

from psa.data import SpriteOptions, Sprites
from psa.data.object_sets import SPRITES, read_objects
from psa.experiments.experiment import Outcome
from psa.experiments.predicted_sets import THRESHOLDS, UNIT, painted, precisions
from psa.experiments.set_prediction import MAIN, ROWS, SCALES, SHOWN, SetPrediction
from psa.metrics.sets import ObjectSets

SMOKE = SCALES["smoke"]
assert isinstance(SMOKE, SetPrediction)


def ignore(step: int, steps: int) -> None:
    pass


def test_rows_share_data_head_and_training_and_differ_in_their_slots():
    fresh = replace(SMOKE, pretrained=False)
    heads = {(row, seed): fresh._start(row, seed, ignore)[0] for row in ROWS for seed in (3, 4)}
    for name, value in heads["sa", 3].head.state_dict().items():
        assert torch.equal(heads["smm", 3].head.state_dict()[name], value)
        assert not torch.equal(heads["sa", 4].head.state_dict()[name], value)
    assert [heads[row, 3].inference.spec.name for row in ROWS] == list(ROWS)
    assert {heads[row, 3].inference.spec.initialiser for row in ROWS} == {SMOKE.initialiser}


@pytest.fixture(scope="module")
def units() -> dict[str, Outcome]:
    return {unit: SMOKE.measure(unit, ignore) for unit in SMOKE.units()}


def test_a_unit_is_a_function_of_its_name_and_its_curve_ends_at_the_last_step(units: dict[str, Outcome]):
    one, again = units["smm.seed-0"], SMOKE.measure("smm.seed-0", ignore)
    assert str(again.figures) == str(one.figures)  # NaN at step 0 is one
    assert torch.equal(again.tensors["vectors"], one.tensors["vectors"])
    assert [point["step"] for point in one.figures["curve"]] == [0, 3, 6]
    assert set(THRESHOLDS) < set(one.figures["curve"][0])
    assert not torch.equal(SMOKE.measure("smm.seed-1", ignore).tensors["vectors"], one.tensors["vectors"])


def test_the_head_learns_alone_first_where_slots_learned_to_reconstruct():
    still = replace(SMOKE, steps=1, learning_rate=1e-12, head_rate=1e-12)
    moved = replace(still, head_rate=0.01)
    fresh = replace(moved, pretrained=False)
    images, _ = still.scenes("test", SMOKE.num_test)
    for experiment, learns in ((fresh, False), (still, False), (moved, True)):
        before = experiment._start("sa", 0, ignore)[0].predict(images.first(SHOWN))
        after = experiment.measure("sa.seed-0", ignore).tensors["vectors"]
        assert (float((after - before).abs().max()) > 1e-3) == learns


def test_a_run_that_diverges_says_when_and_scores_zero(units: dict[str, Outcome]):
    failed = replace(SMOKE, pretrained=False, learning_rate=1e30).measure("sa.seed-0", ignore)
    assert 0 < failed.figures["failed_at"] < SMOKE.steps
    scored = [point | {MAIN: 0.5} for point in failed.figures["curve"]]
    found = SMOKE.conclude(units | {"sa.seed-0": Outcome({**failed.figures, "curve": scored})})
    assert found.figures[f"sa_ap_{MAIN}"] == 0.0
    assert found.tables[f"Average precision at {MAIN}, test scenes"][0]["diverged"] == 1


def test_distances_are_six_to_a_side():
    true = ObjectSets(torch.zeros(1, 1, 2, dtype=torch.int64), torch.zeros(1, 1, 3), torch.ones(1, 1))
    away = torch.tensor([[[0.9 * 0.25 / UNIT, 0.0, 0.0]]])
    found = precisions(ObjectSets(true.categories, away, true.presence), true)
    assert found == {name: float(threshold > 0.9 * 0.25) for name, threshold in THRESHOLDS.items()}


def test_the_true_sets_are_painted_as_their_scenes():
    sprites = Sprites(SpriteOptions(size=24, min_visible=1.0), "test", 20)
    assert np.array_equal(painted(read_objects(sprites, SPRITES), 24), sprites.images)


def test_what_is_not_there_is_not_painted():
    sprites = Sprites(SpriteOptions(size=16), "test", 3)
    true = read_objects(sprites, SPRITES)
    assert not painted(ObjectSets(true.categories, true.coordinates, 0.4 * true.presence), 16).any()


def outcomes(scores: Mapping[str, Sequence[float]]) -> dict[str, Outcome]:
    def curve(score: float) -> list[dict[str, float]]:
        return [{"step": step, "loss": 0.1, **dict.fromkeys(THRESHOLDS, score)} for step in (0, 10)]

    return {
        f"{row}.seed-{seed}": Outcome({"failed_at": None, "foreground_ari": 0.5, "curve": curve(score)})
        for row, values in scores.items()
        for seed, score in enumerate(values)
    }


LOW = {row: [0.5, 0.52, 0.54] for row in ROWS}
HIGH = [0.9, 0.92, 0.94]


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({"smm": HIGH}, "holds"),
        ({"sa": HIGH}, "fails"),
        ({"smm": [0.5, 0.53, 0.56]}, "not decided at this scale"),
    ],
)
def test_the_verdict_compares_smm_with_sa(changed: dict[str, list[float]], verdict: str):
    found = SetPrediction(seeds=3).conclude(outcomes(LOW | changed))
    assert found.verdict == verdict
    table = found.tables[f"Average precision at {MAIN}, test scenes"]
    assert [row["row"] for row in table] == list(ROWS)
    assert_close(torch.tensor(found.figures[f"sa_ap_{MAIN}"]), torch.tensor((LOW | changed)["sa"]).mean(), 1e-6)
