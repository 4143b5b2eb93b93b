"""Scene draws and independent draws from a prior whose components have roles."""

from pathlib import Path

import pytest
import scipy.stats
import torch
from contracts import draw
from tolerances import STANDARD_ERRORS, assert_close, assert_mean_is
from torch import Tensor

from psa.errors import RunError
from psa.models.aggregate import AggregatePrior
from psa.models.scene_prior import BACKGROUND, EMPTY, NO_COMPONENT, OBJECT, ScenePrior

ROLES = torch.tensor([OBJECT, BACKGROUND, EMPTY, OBJECT, BACKGROUND])
COUNTS = torch.tensor([0.1, 0.0, 0.6, 0.3], dtype=torch.float64)


def scene_prior(roles: Tensor = ROLES, counts: Tensor = COUNTS, full: bool = False) -> ScenePrior:
    loc, var = draw(5, 2, seed=1), draw(5, 2, seed=2).exp()
    weights = torch.tensor([0.3, 0.15, 0.1, 0.2, 0.25], dtype=torch.float64)
    spread = {"covariance": var.diag_embed()} if full else {"var": var}
    return ScenePrior(AggregatePrior(weights, loc, **spread, num_images=7), roles, counts)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_scene_is_one_background_and_objects_by_the_counts():
    prior = scene_prior()
    found = prior.draw_scenes(4000, seeded())
    role = ROLES[found.component.clamp(min=0)]
    assert bool((role[:, 0] == BACKGROUND).all())
    assert bool((role[:, 1:] == OBJECT)[found.active[:, 1:]].all())
    assert bool(found.active[:, 0].all())
    times = torch.bincount(found.active.sum(1) - 1, minlength=4)
    assert times[1] == 0
    assert scipy.stats.chisquare(times[[0, 2, 3]], 4000 * COUNTS[[0, 2, 3]]).pvalue > 1e-4


def test_slots_that_are_not_used_have_no_component_and_are_zero():
    found = scene_prior().draw_scenes(50, seeded())
    assert bool((found.component == NO_COMPONENT).eq(~found.active).all())
    assert not bool(found.slots[~found.active].any())


@pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_draws_are_those_of_the_component_that_is_named(full: bool, temperature: float):
    prior = scene_prior(full=full)
    var = draw(5, 2, seed=2).exp()
    for found in (
        prior.draw_scenes(20_000, seeded(), temperature),
        prior.draw_independent(5000, seeded(), temperature),
    ):
        component = found.component[found.active]
        away = (found.slots[found.active] - prior.aggregate.loc[component]) / (temperature * var[component]).sqrt()
        assert_mean_is(away, 0.0)
        assert_mean_is(away.square(), 1.0)


def test_temperature_0_draws_the_means():
    prior = scene_prior()
    found = prior.draw_scenes(20, seeded(), 0.0)
    assert_close(found.slots[found.active], prior.aggregate.loc[found.component[found.active]])


def test_components_of_a_role_come_by_their_weights_and_independent_draws_by_all():
    prior = scene_prior()
    _, component = prior.sample_role(BACKGROUND, (8000,), seeded())
    share = (component == 4).double().mean()
    assert abs(share - 0.25 / 0.4) < STANDARD_ERRORS * (0.25 * 0.15 / 0.16 / 8000) ** 0.5
    found = prior.draw_independent(2000, seeded())
    assert bool(found.active.all())
    times = torch.bincount(found.component.flatten(), minlength=5)
    assert scipy.stats.chisquare(times, 8000 * prior.aggregate.weights).pvalue > 1e-4


def test_equal_seeds_give_equal_scenes():
    one, other, another = (scene_prior().draw_scenes(9, seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(one.slots, other.slots)
    assert torch.equal(one.component, other.component)
    assert not torch.equal(one.slots, another.slots)


def test_a_prior_without_objects_draws_backgrounds_alone():
    prior = scene_prior(torch.full((5,), BACKGROUND), torch.tensor([1.0, 0.0, 0.0]))
    found = prior.draw_scenes(6, seeded())
    assert found.active.tolist() == [[True, False, False]] * 6


def test_what_is_saved_is_loaded_also_as_an_aggregate(tmp_path: Path):
    path = tmp_path / "prior.safetensors"
    prior = scene_prior()
    prior.save(path, step=12)
    loaded, step = ScenePrior.load(path)
    assert step == 12
    assert torch.equal(loaded.roles, prior.roles)
    assert torch.equal(loaded.counts, prior.counts)
    alone = AggregatePrior.load(path)
    assert torch.equal(alone.loc, prior.aggregate.loc)
    assert alone.num_images == loaded.aggregate.num_images == 7


def test_an_aggregate_alone_is_no_scene_prior(tmp_path: Path):
    scene_prior().aggregate.save(tmp_path / "prior.safetensors")
    with pytest.raises(RunError, match="without scenes"):
        ScenePrior.load(tmp_path / "prior.safetensors")


@pytest.mark.parametrize(
    ("roles", "counts", "message"),
    [
        (ROLES[:4], COUNTS, "roles must be of shape"),
        (ROLES + 1, COUNTS, "roles must be of shape"),
        (ROLES, 2 * COUNTS, "counts must be"),
        (torch.full((5,), OBJECT), COUNTS, "background"),
        (torch.full((5,), BACKGROUND), COUNTS, "object"),
    ],
)
def test_what_does_not_fit_is_refused(roles: Tensor, counts: Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        scene_prior(roles, counts)


def test_a_role_without_components_cannot_be_drawn():
    prior = scene_prior(torch.tensor([OBJECT, BACKGROUND, OBJECT, OBJECT, OBJECT]))
    with pytest.raises(ValueError, match="empty has none"):
        prior.sample_role(EMPTY, (2,))
