"""The experiments on variants: what their rows share, how they end, and verdicts that follow the figures."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest

from psa.experiments import ablation_covariance, query_initialisation
from psa.experiments.ablation_covariance import FACTORS, AblationCovariance
from psa.experiments.experiment import Outcome
from psa.experiments.query_initialisation import PAPER, PLAIN, ROWS, QueryInitialisation
from psa.experiments.sprite_runs import TrainedRun, train
from psa.inference.variants import VariantSpec, specify

SMOKE = query_initialisation.SCALES["smoke"].run
SLOTS = {"variant": "qsa", "overrides": {"power": 3.0}}


def ignore(step: int, steps: int) -> None:
    pass


def columns(spec: VariantSpec, without: Sequence[str] = ()) -> dict[str, Any]:
    dropped = {"name", "source", *without}
    return {f.name: getattr(spec, f.name) for f in fields(spec) if f.name not in dropped}


def test_rows_differ_in_their_slots_and_seed_alone():
    one, other = (SMOKE.config(slots, seed, "cpu") for slots, seed in ((SLOTS, 0), ({"variant": "sa"}, 1)))
    assert replaced(one, "slots") == replaced(other, "slots")
    assert one.slots.num_iterations == other.slots.num_iterations == SMOKE.num_iterations
    assert one.objective.kl_weight == 0.0
    assert not one.objective.sample


def replaced(config: Any, section: str) -> dict[str, Any]:
    values = config.model_dump(exclude={section})
    values["training"].pop("seed")
    return values


@pytest.fixture(scope="module")
def trained() -> TrainedRun:
    return train(SMOKE.config(SLOTS, 0, "cpu"), ignore)


def test_a_unit_is_a_function_of_its_configuration_and_seed(trained: TrainedRun):
    seen: list[tuple[int, int]] = []
    again = train(SMOKE.config(SLOTS, 0, "cpu"), lambda step, steps: seen.append((step, steps)))
    other = train(SMOKE.config(SLOTS, 1, "cpu"), ignore)
    assert seen == [(step, SMOKE.steps) for step in range(1, SMOKE.steps + 1)]
    assert again.curve == trained.curve != other.curve
    assert [point[0] for point in again.curve] == [3, 6]
    assert again.scores() == trained.scores()
    assert again.scores()["failed_at"] is None


def test_a_run_that_diverges_says_when_and_has_no_score():
    failed = train(replace(SMOKE, learning_rate=1e3).config(SLOTS, 0, "cpu"), ignore)
    assert failed.failed_at is not None
    assert 0 < failed.failed_at < SMOKE.steps
    scores = failed.scores()
    assert scores["failed_at"] == failed.failed_at
    assert scores["foreground_ari"] is scores["mse"] is scores["objective"] is None


def spec_of(row: str) -> VariantSpec:
    return specify(ROWS[row]["variant"], **ROWS[row].get("overrides", {}))


def test_six_rows_without_noise_are_two_starts_times_three_gradients_and_nothing_else():
    specs = [spec_of(row) for row in ROWS if row != "bo-qsa"]
    assert sorted((spec.initialiser, spec.gradient) for spec in specs) == sorted(
        product(("learned-gaussian", "queries"), ("unrolled", "implicit", "straight-through"))
    )
    common = columns(specs[0], ("initialiser", "gradient"))
    assert all(columns(spec, ("initialiser", "gradient")) == common for spec in specs)
    noisy = columns(spec_of("bo-qsa"))
    assert noisy | {"initialiser": "queries"} == columns(spec_of(PLAIN))


def outcomes(scores: Mapping[str, Sequence[float | None]], failed_at: int = 7) -> dict[str, Outcome]:
    """Runs with these scores; None is one that diverged."""
    found = {}
    for row, values in scores.items():
        for seed, value in enumerate(values):
            figures = {"foreground_ari": value, "msc": value, "mse": None if value is None else 0.1}
            figures |= {"objective": figures["mse"], "failed_at": failed_at if value is None else None}
            curve = [] if value is None else [[5.0, value, 0.1, 0.2], [10.0, value, 0.1, 0.2]]
            found[f"{row}.seed-{seed}"] = Outcome(figures | {"curve": curve})
    return found


LOW = {row: [0.5, 0.52, 0.54] for row in ROWS}
HIGH = [0.9, 0.92, 0.94]


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({"bo-qsa": HIGH}, "holds"),
        ({"bo-qsa": HIGH, PLAIN: HIGH}, "holds"),  # its own row without noise is no rival
        ({"bo-qsa": HIGH, "sa": HIGH}, "not decided at this scale"),
        ({"sa": HIGH}, "fails"),
        ({"bo-qsa": [None, *HIGH[1:]]}, "not decided at this scale"),
    ],
)
def test_the_verdict_on_queries_follows_the_scores(changed: dict[str, list[float | None]], verdict: str):
    found = QueryInitialisation(seeds=3).conclude(outcomes(LOW | changed))
    assert found.verdict == verdict
    assert found.figures["sa"] == pytest.approx(np.mean(changed.get("sa", LOW["sa"])))


def test_the_table_has_every_row_beside_the_papers_figure_and_a_diverged_run_scores_zero():
    scores = LOW | {"qsa": [0.6, None, 0.9]}
    found = QueryInitialisation(seeds=3).conclude(outcomes(scores))
    (table,) = found.tables.values()
    assert [row["row"] for row in table] == list(ROWS)
    shown = {row["row"]: row for row in table}
    assert {row: shown[row]["paper (ShapeStacks) ARI-FG"] for row in PAPER} == {r: f[0] for r, f in PAPER.items()}
    assert shown[PLAIN]["paper (ShapeStacks) ARI-FG"] is None
    assert found.figures["qsa"] == pytest.approx(0.5)
    assert shown["qsa"]["diverged"] == 1
    assert found.figures["gain_over_queries_alone"] == pytest.approx(np.mean(scores[PLAIN]) - 0.5)
    assert set(found.pictures) == {"scores", "curves"}


def test_every_row_of_the_covariance_changes_its_own_factor_alone():
    specs = [specify("sa"), *(specify("smm", **changes) for row, (_, changes) in FACTORS.items() if row != "sa")]
    differences = [
        {name for name, value in columns(new).items() if columns(old)[name] != value} for old, new in pairwise(specs)
    ]
    assert differences == [{"bias", "epsilon"}, {"agreement"}, {"update"}, {"update"}, {"readout"}]
    assert [spec.update for spec in specs[2:]] == ["mean", "moments-uniform", "moments", "moments"]


def rated(experiment: AblationCovariance, failing: Mapping[str, float]) -> dict[str, Outcome]:
    """All rates, where those of a member at or above a rate diverge with the last seed."""
    last = experiment.rate_seeds - 1
    return outcomes(
        {
            f"{member}.rate-{rate:g}": [0.5] * last + [None if rate >= failing[member] else 0.5]
            for member in ablation_covariance.MEMBERS
            for rate in experiment.rates
        }
    )


@pytest.mark.parametrize(
    ("smm", "verdict"),
    [(HIGH, "holds"), ([0.1, 0.12, 0.14], "fails"), ([0.5, 0.53, 0.55], "not decided at this scale")],
)
def test_the_verdict_on_covariances_compares_smm_with_sa(smm: list[float], verdict: str):
    experiment = AblationCovariance(seeds=3)
    scores = {row: [0.5, 0.52, 0.54] for row in FACTORS} | {"smm": smm}
    found = experiment.conclude(outcomes(scores) | rated(experiment, {"psa-proj": 3e-3, "sa": 1.0}))
    assert found.verdict == verdict
    assert found.figures["highest_stable_rate_psa_proj"] == 1e-3
    assert found.figures["highest_stable_rate_sa"] == max(experiment.rates)
    factors, rates = found.tables.values()
    assert [row["row"] for row in factors] == list(FACTORS)
    diverged = {(row["member"], row["learning rate"]): row["diverged"] for row in rates}
    assert diverged["psa-proj", "0.001"] == diverged["sa", "0.1"] == "0 of 2"
    assert diverged["psa-proj", "0.003"] == "1 of 2"
    assert rates[2]["at step"] == "7"
