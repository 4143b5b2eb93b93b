"""The 2-D study: its scores against exact pairs, the rules of its verdicts, and its smoke scales' tables."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tolerances import CONVERGED, FLOAT32, assert_close

from psa.data.mixture_2d import Mixture2d, Mixture2dOptions
from psa.experiments import aggregate_2d, violated_assumptions
from psa.experiments.aggregate_2d import Aggregate2d, has_types, picture
from psa.experiments.experiment import Outcome, require_units
from psa.experiments.point_scores import RowScores, point_agreement, slot_agreement
from psa.experiments.point_study import Folded, PointRow, StudySize, farthest_type, measure_row, recovered_types
from psa.experiments.violated_assumptions import FLOORS, VIOLATED, ViolatedAssumptions, judged
from psa.inference.point_slots import PointSlots
from psa.inference.point_training import PointTraining

TURN = torch.tensor([[0.6, 0.8], [-1.6, 1.2]], dtype=torch.float64)
PLAIN = Mixture2dOptions(num_points=10)
SHORT = PointTraining(steps=2, batch_size=3)
TINY = StudySize(num_images=20, num_held_out=24, num_pointwise=8, trial=SHORT, training=SHORT)


def run(noise: float = 0.0, seed: int = 0, figures: dict[str, float] | None = None) -> Outcome:
    """Slots and points of planted images, turned and stretched where seed is not 0, its slots in another order."""
    images = Mixture2d(PLAIN, "test", 40).images
    generator = torch.Generator().manual_seed(seed)
    matrix = TURN if seed else torch.eye(2, dtype=torch.float64)
    order = torch.rand(40, 3, generator=generator).argsort(1) if seed else torch.arange(3).expand(40, 3)
    loc = images.loc[images.which] @ matrix + 2.0 * seed
    loc = loc + noise * torch.randn(loc.shape, generator=generator, dtype=torch.float64)
    masks = torch.nn.functional.one_hot(images.labels).mT
    tensors = {
        "loc": loc.take_along_dim(order[..., None], 1),
        "var": torch.full((40, 3, 2), 0.01, dtype=torch.float64),
        "weights": torch.full((40, 3), 1 / 3, dtype=torch.float64),
        "responsibilities": masks.take_along_dim(order[..., None], 1),
        "latent": images.tokens @ matrix + 2.0 * seed,
        "types": images.which.take_along_dim(order, 1),
    }
    truth = {"smcc": 1.0, "r2": 1.0, "points": 1.0, "within": 1.0, "null_smcc": 0.0, "types": 5, "away": 0.1}
    return Outcome(truth | (figures or {}), tensors)


def test_affine_pairs_in_another_order_score_one_with_and_without_slots():
    scores = RowScores.of([run(seed=seed) for seed in (0, 1, 2)], 3)
    assert len(scores.pairs) == 3
    for name in ("smcc", "r2", "points", "within"):
        assert_close(scores.between(name), 1.0, CONVERGED)
    assert abs(scores.between("null_smcc")) < 0.5


def test_points_within_objects_see_what_their_places_hide():
    """Every object mirrored about its own mean: R2 over all points hardly falls, within objects nothing is left."""
    points = run().tensors["latent"].unflatten(1, (3, 10))
    mean = points.mean(2, keepdim=True)
    mirrored = mean + (points - mean) * torch.tensor([-1.0, 1.0], dtype=torch.float64)
    over_all, within = point_agreement(points.flatten(1, 2), mirrored.flatten(1, 2), 3)
    assert over_all > 0.9
    assert within < 0.2


def test_point_agreement_is_that_of_numpys_least_squares_on_the_other_half():
    a = run().tensors["latent"]
    b = a @ TURN + a.sin()
    rows = [np.concatenate([side[:20].reshape(-1, 2), np.ones((20 * 30, 1))], 1) for side in (a.numpy(),)]
    solution = np.linalg.lstsq(rows[0], b[:20].reshape(-1, 2).numpy(), rcond=None)[0]
    held = np.concatenate([a[20:].reshape(-1, 2).numpy(), np.ones((20 * 30, 1))], 1) @ solution
    true = b[20:].reshape(-1, 2).numpy()
    expected = np.mean(1 - ((true - held) ** 2).sum(0) / ((true - true.mean(0)) ** 2).sum(0))
    assert_close(point_agreement(a, b, 3)[0], float(expected))


def test_the_recovered_aggregate_of_planted_slots_has_their_types():
    tensors = run(noise=0.1).tensors
    prior = recovered_types(tensors)
    assert prior.num_components == 5
    away = farthest_type(prior.loc, Mixture2d(PLAIN, "test", 1).images.loc)
    assert away is not None
    assert away < 0.1


def test_the_farthest_type_is_matched_and_none_where_one_has_no_component():
    planted = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    found = planted[[2, 0, 1]] + torch.tensor([[0.0, 0.5], [0.0, 0.0], [0.3, 0.4]], dtype=torch.float64)
    assert_close(farthest_type(found, planted), 0.5)
    assert_close(farthest_type(torch.cat([found, found + 9]), planted), 0.5)
    assert farthest_type(found[:2], planted) is None


def test_a_folded_decoder_takes_a_point_and_its_mirror_for_the_same():
    decoder = Folded(torch.nn.Linear(2, 2))
    z = torch.randn(5, 2)
    assert torch.equal(decoder(z), decoder(-z))
    assert torch.equal(decoder(z), decoder(z * torch.tensor([1.0, -1.0])))


def test_the_identity_scores_one_against_the_truth_and_mixing_takes_it_down():
    plain = measure_row(PointRow("identity", PLAIN, "identity"), 0, 0, TINY, "cpu", lambda *_: None)
    assert plain.figures["smcc"] > 0.99
    assert_close(plain.figures["points"], 1.0, FLOAT32)
    assert_close(plain.figures["within"], 1.0, FLOAT32)
    assert_close(plain.tensors["responsibilities"].sum(1), torch.ones(24, 30), 1e-2)
    row = PointRow("mixed", replace(PLAIN, mixed=True), "identity")
    mixed = measure_row(row, 0, 0, TINY, "cpu", lambda *_: None)
    assert mixed.figures["points"] < 0.95
    assert mixed.figures["within"] < 0.8


def test_spare_slots_are_left_out_against_the_truth():
    row = PointRow("five", PLAIN, "identity", PointSlots(num_slots=5, num_restarts=2))
    found = measure_row(row, 0, 0, TINY, "cpu", lambda *_: None)
    assert found.tensors["loc"].shape == (24, 5, 2)
    assert bool(((found.tensors["types"] >= 0).sum(1) == 3).all())
    assert found.figures["smcc"] > 0.9


def test_a_unit_is_reproducible_by_itself():
    row = PointRow("vae", PLAIN)
    first, again, other = (measure_row(row, 0, seed, TINY, "cpu", lambda *_: None) for seed in (3, 3, 4))
    assert first.figures == again.figures
    assert all(torch.equal(first.tensors[name], again.tensors[name]) for name in first.tensors)
    assert not torch.equal(first.tensors["loc"], other.tensors["loc"])


def figure_4(noise: float = 0.0, figures: dict[str, float] | None = None, **settings: object) -> tuple[str, str]:
    """Verdict and reason where every run has these slots."""
    experiment = Aggregate2d(**({"data_sets": (0, 1, 2), "seeds": (0, 1, 2, 3, 4)} | settings))
    outcomes = {unit: run(noise, int(unit[-1]), figures) for unit in experiment.units()}
    found = experiment.conclude(outcomes)
    return found.verdict, found.reason


@pytest.mark.parametrize(
    ("settings", "verdict"),
    [
        ({}, "holds"),
        ({"noise": 6.0}, "fails"),
        ({"figures": {"smcc": 0.97}}, "fails"),
        ({"figures": {"r2": 0.94}}, "fails"),
        ({"figures": {"types": 6}}, "fails"),
        ({"figures": {"away": 3.1}}, "fails"),
        ({"figures": {"away": None}}, "fails"),
        ({"data_sets": (0, 1)}, "not decided at this scale"),
        ({"seeds": (0, 1, 2, 3)}, "not decided at this scale"),
    ],
)
def test_the_verdict_about_figure_4_follows_its_rule(settings, verdict, monkeypatch):
    only = (aggregate_2d.MAIN[0],)
    monkeypatch.setattr(aggregate_2d, "MAIN", only)
    monkeypatch.setattr(aggregate_2d, "HARDER", ())
    assert figure_4(**settings)[0] == verdict


def test_types_count_only_where_each_is_nearest_to_its_own():
    assert has_types(run(), PLAIN)
    assert not has_types(run(figures={"types": 4}), PLAIN)
    assert not has_types(run(figures={"away": 3.0}), PLAIN)


def test_smoke_figures_and_table_have_every_row_and_the_papers_figures():
    experiment = aggregate_2d.SCALES["smoke"]
    units = require_units(experiment)
    assert len(units) == 2 * (len(aggregate_2d.MAIN) + len(aggregate_2d.HARDER)) == 2 * 9
    found = experiment.conclude({unit: run(0.1, int(unit[-1])) for unit in units})
    assert found.verdict == "not decided at this scale"
    assert {"smcc", "r2", "null_smcc", "truth_smcc", "untrained_smcc", "mixed_identity_truth_within"} <= set(
        found.figures
    )
    assert all(math.isfinite(value) for value in found.figures.values())
    table = next(iter(found.tables.values()))
    assert [row["row"] for row in table][-1] == "paper: PSA, figure 4"
    assert (table[-1]["SMCC"], table[-1]["R2"]) == ("0.93 ± 0.04", "0.50 ± 0.08")


def test_runs_are_mapped_onto_the_first_in_the_picture():
    figure = picture([run(0.1, seed) for seed in (0, 1)])
    own, mapped = (figure.axes[2 + place].collections[0].get_offsets() for place in (0, 1))
    gap = torch.cdist(torch.tensor(np.asarray(mapped)), torch.tensor(np.asarray(own))).min(1).values
    assert float(gap.median()) < 0.2
    raw = torch.tensor(np.asarray(figure.axes[1].collections[0].get_offsets()))
    assert float(torch.cdist(raw, torch.tensor(np.asarray(own))).min(1).values.median()) > 0.5


def judge(broken: tuple[str, ...], floors: tuple[str, ...] = (), seeds: int = 5) -> tuple[str, dict[str, str]]:
    """The verdict, and what is found of each row, where the named rows have noisy slots and the named floors none."""
    experiment = ViolatedAssumptions(seeds=tuple(range(seeds)))
    untrained = [row.name for row in FLOORS]
    outcomes = {}
    for unit in require_units(experiment):
        name, seed = unit.split(".seed-")
        noisy = name in broken or (name in untrained and name not in floors)
        outcomes[unit] = run(6.0 if noisy else 0.0, int(seed))
    found = experiment.conclude(outcomes)
    assert found.figures["smcc"] == pytest.approx(found.figures["smcc"])
    return found.verdict, {str(row["violated"]): str(row["found"]) for row in found.tables["What breaks"]}


def test_the_verdict_about_assumptions_follows_its_rule():
    names = tuple(row.name for row in VIOLATED)
    assert judge(names)[0] == "holds"
    verdict, found = judge(names[:2] + names[3:])
    assert (verdict, found["two-types"], found["three-types"]) == ("fails", "does not break", "breaks")
    verdict, found = judge(names[:2] + names[3:], floors=("two-types-untrained",))
    assert (verdict, found["two-types"]) == ("not decided at this scale", "cannot tell")
    assert judge((*names, "control"))[0] == "not decided at this scale"
    assert judge(names, seeds=4)[0] == "not decided at this scale"


def test_every_violation_has_a_floor_on_its_own_data():
    scores = {row.name: RowScores.of([run(seed=0), run(seed=1)], 3) for row in (*VIOLATED, *FLOORS)}
    assert {judged(row, scores) for row in VIOLATED} == {"cannot tell"}
    assert violated_assumptions.SCALES["cpu"].units()[0] == "control.seed-0"


def test_slot_agreement_holds_out_the_same_images_each_time():
    a, b = run(0.5, 1).tensors, run(0.5, 2).tensors
    assert slot_agreement(a, b).smcc == slot_agreement(a, b).smcc
