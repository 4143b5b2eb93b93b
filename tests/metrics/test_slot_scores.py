"""MCC and SIS, against scikit-learn pair by pair and on latents whose score is known."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler
from tolerances import CONVERGED, assert_close
from torch import Tensor

from psa.metrics import mcc, sis


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def in_place(factors: Tensor) -> Tensor:
    """The matching of slots that stand as their objects do."""
    return torch.arange(factors.shape[1]).expand(factors.shape[:2])


@given(st.integers(1, 6), st.integers(0, 10**6))
def test_permuted_scaled_and_reversed_features_score_one_with_and_without_the_map(features, seed):
    a = draw(60, features, seed=seed)
    scale = draw(features, seed=seed + 1)
    scale = torch.where(scale.abs() < 0.1, 1.0, scale)
    b = a[:, torch.randperm(features, generator=seeded(seed))] * scale + 4
    found = mcc(a, b, generator=seeded(seed))
    assert_close(found.plain, 1.0)
    assert_close(found.affine, 1.0)


def test_a_rotation_needs_the_map():
    angle = math.pi / 4
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    found = mcc(draw(20_000, 2), draw(20_000, 2) @ turn, generator=seeded())
    assert abs(found.plain - math.sqrt(0.5)) < 0.02
    assert_close(found.affine, 1.0)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 10**6))
def test_mcc_is_the_best_of_all_assignments(features, mapped, seed):
    a, b = draw(30, features, seed=seed), draw(30, mapped, seed=seed + 1)
    held = ~(torch.randperm(30, generator=seeded(seed)) < 15)
    r = np.abs(np.corrcoef(a[held], b[held], rowvar=False)[:features, features:])
    r = r if features <= mapped else r.T
    number = min(features, mapped)
    best = max(np.mean(r[range(number), list(order)]) for order in itertools.permutations(range(r.shape[1]), number))
    assert_close(mcc(a, b, generator=seeded(seed)).plain, float(best))


def test_mcc_refuses_what_has_no_rank_or_does_not_vary():
    a = draw(40, 3)
    with pytest.raises(ValueError, match=r"rows_a: expected training rows of rank D \+ 1 = 7, came rank 4"):
        mcc(torch.cat([a, a], dim=1), a, generator=seeded())
    with pytest.raises(ValueError, match="rows_b: expected features that vary over held-out rows, feature 0 does not"):
        mcc(a, torch.zeros_like(a), generator=seeded())
    with pytest.raises(ValueError, match=r"rows_a: expected at least D \+ 1 = 31 training rows .*, came 20"):
        mcc(draw(40, 30), a, generator=seeded())


# SIS


def test_a_slot_that_says_its_object_and_no_other_scores_one():
    factors = draw(4000, 3, 2)
    slots = factors @ draw(2, 4, seed=1) + torch.arange(3)[:, None]
    order = torch.rand(4000, 3, generator=seeded()).argsort(1)
    found = sis(slots.take_along_dim(order[..., None], 1), factors, order.argsort(1), generator=seeded())
    assert_close(found.matched, 1.0, CONVERGED)
    assert 0.99 < found.sis <= 1.0  # what remains is chance on 2,000 held-out images
    # the wrong matching says nothing
    assert sis(slots.roll(1, 1), factors, in_place(factors), generator=seeded()).sis < 0.01


def test_slots_that_say_every_object_and_slots_that_say_none_score_zero():
    factors = draw(200, 2, 2)
    everything = factors.flatten(1)[:, None].expand(-1, 2, -1)
    found = sis(everything, factors, in_place(factors), generator=seeded())
    assert_close(found.r2, torch.ones(2, 2))
    assert found.sis < CONVERGED
    for nothing in (torch.zeros(200, 2, 3), torch.full((200, 2, 3), 0.1)):
        found = sis(nothing, factors, in_place(factors), generator=seeded())
        assert found.sis == found.matched == 0.0


@pytest.mark.parametrize("regressor", ["affine", "rbf"])
def test_sis_is_scikit_learns_regression_of_every_pair(regressor):
    """Slot j is told 2 of its own and a little of object 0; object 2 is in a part of the images."""
    factors = draw(120, 3, 2)
    slots = torch.tanh(factors @ draw(2, 3, seed=1)) + 0.3 * factors[:, :1] @ draw(2, 3, seed=2)
    present = torch.ones(120, 3, dtype=torch.bool)
    present[40:, 2] = torch.rand(80, generator=seeded()) < 0.5
    shown = torch.where(present[..., None], factors, math.nan)
    found = sis(slots, shown, in_place(factors), regressor=regressor, present=present, generator=seeded(5))
    train = (torch.randperm(120, generator=seeded(5)) < 60).numpy()
    expected = np.zeros((3, 3))
    for o, j in itertools.product(range(3), range(3)):
        kept = (present[:, o] & present[:, j]).numpy()
        x, y, fit, held = slots[:, j].numpy(), factors[:, o].numpy(), kept & train, kept & ~train
        if regressor == "affine":
            predicted = LinearRegression().fit(x[fit], y[fit]).predict(x[held])
        else:
            standard_x, standard_y = StandardScaler().fit(x[fit]), StandardScaler().fit(y[fit])
            model = KernelRidge(kernel="rbf").fit(standard_x.transform(x[fit]), standard_y.transform(y[fit]))
            predicted = standard_y.inverse_transform(model.predict(standard_x.transform(x[held])))
        expected[o, j] = max(0.0, r2_score(y[held], predicted))
    assert_close(found.r2, torch.tensor(expected), CONVERGED)
    own = expected.diagonal()
    other = np.array([max(expected[o, j] for j in range(3) if j != o) for o in range(3)])
    assert_close(found.sis, float(np.maximum(own - other, 0).mean()), CONVERGED)
    assert_close(found.matched, float(own.mean()), CONVERGED)
    assert_close(found.other, float(other.mean()), CONVERGED)


def test_a_bent_slot_needs_the_kernel():
    """An angle on a circle: its factor is no affine function of the point."""
    factors = 5.8 * torch.rand(600, 2, 1, generator=seeded(), dtype=torch.float64)
    slots = torch.cat([factors.cos(), factors.sin()], dim=2)
    matching = in_place(factors)
    affine, rbf = (sis(slots, factors, matching, regressor=r, generator=seeded()).sis for r in ("affine", "rbf"))
    assert affine < 0.8
    assert rbf > 0.95


def test_one_object_scores_its_r_squared():
    factors = draw(100, 1, 2)
    found = sis(factors + 0.5 * draw(100, 1, 2, seed=1), factors, in_place(factors), generator=seeded())
    assert found.sis == found.matched
    assert found.other == 0.0


def test_sis_refuses_what_cannot_be_fitted():
    factors = draw(30, 2, 1)
    given = {"slots": draw(30, 2, 3), "factors": factors, "matching": in_place(factors), "generator": seeded()}
    for change, message in (
        ({"regressor": "mlp"}, "regressor: expected one of affine, rbf, came 'mlp'"),
        ({"matching": in_place(factors) + 1}, "matching: expected slots from 0 to 1"),
        ({"slots": draw(30, 2, 20)}, r"slots: expected at least D \+ 1 = 21 training rows .*, came 15"),
        ({"factors": torch.ones(30, 2, 1)}, "factors of object 0: expected features that vary"),
        ({"train_fraction": 0.0}, "train_fraction: expected a number between 0 and 1, came 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            sis(**given | change)
