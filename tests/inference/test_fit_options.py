"""What fit_local_mixture refuses, by the name of the argument, what was expected and what came."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from contracts import draw
from tolerances import CONVERGED, assert_close
from torch import Tensor

from psa.inference.em import MixtureState
from psa.inference.fits import LocalMixtureFit
from psa.inference.starts import STARTS
from psa.inference.variational import FitOptions, fit_local_mixture
from psa.models.local_mixture import LocalMixturePrior

pytestmark = pytest.mark.usefixtures("unchecked")

TOKENS = draw(2, 6, 3, seed=1)
NAN = float("nan")


def refused(message: str, **settings: Any) -> None:
    settings = {"tokens": TOKENS, "prior": LocalMixturePrior(), "num_slots": 2} | settings
    with pytest.raises(ValueError, match=re.escape(message)):
        fit_local_mixture(**settings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimate": "mle"}, "estimate must be one of variational, map, ml, got 'mle'"),
        ({"covariance": "spherical"}, "covariance must be one of diagonal, full, got 'spherical'"),
        ({"start": "k-means"}, f"start must be one of {', '.join(STARTS)}, got 'k-means'"),
        ({"power": 0.0}, "power must be a positive number, got 0.0"),
        ({"power": NAN}, "power must be a positive number, got nan"),
        ({"coarsening": -1.0}, "coarsening must be a positive number, got -1.0"),
        ({"coarsening": float("inf")}, "coarsening must be a positive number, got inf"),
        ({"variance_floor": 0.0}, "variance_floor must be a positive number, got 0.0"),
        (
            {"estimate": "map", "power": 0.5},
            "power must be 1 under map, where a tempered E-step raises no density, got 0.5",
        ),
        ({"estimate": "ml", "coarsening": 2.0}, "coarsening must be 1 under ml, where it changes nothing, got 2.0"),
    ],
)
def test_options_outside_their_support_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        FitOptions(**options)


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (LocalMixturePrior(0.9, precision_shape=1.0), "concentration must be at least 1 under map, got 0.9"),
        (LocalMixturePrior(1.0, precision_shape=0.5), "precision_shape must be above 1/2 under map, got 0.5"),
    ],
)
def test_map_needs_a_mode(prior: LocalMixturePrior, message: str):
    refused(message, prior=prior, options=FitOptions(estimate="map"))
    for estimate in ("variational", "ml"):
        fit_local_mixture(TOKENS, prior, 2, num_iterations=1, options=FitOptions(estimate=estimate))
    border = LocalMixturePrior(1.0, precision_shape=0.51)
    fit_local_mixture(TOKENS, border, 2, num_iterations=1, options=FitOptions(estimate="map"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_slots": 0}, "num_slots must be an integer of at least 1, got 0"),
        ({"num_slots": 2.0}, "num_slots must be an integer of at least 1, got 2.0"),
        ({"num_iterations": 0}, "num_iterations must be an integer of at least 1, got 0"),
        ({"num_restarts": 0}, "num_restarts must be an integer of at least 1, got 0"),
        ({"num_restarts": True}, "num_restarts must be an integer of at least 1, got True"),
        ({"tol": -1e-9}, "tol must be a number of at least 0, got -1e-09"),
        ({"tol": NAN}, "tol must be a number of at least 0, got nan"),
        ({"prior": LocalMixturePrior(loc=torch.zeros(2))}, "loc has 2 axes, the tokens have 3"),
        ({"prior": LocalMixturePrior(precision_rate=torch.eye(3))}, "precision_rate must be a number or (D,) where"),
    ],
)
def test_settings_outside_their_support_are_refused(settings: dict[str, Any], message: str):
    refused(message, **settings)


@pytest.mark.parametrize(
    ("tokens", "came"),
    [
        (TOKENS[0], "torch.float64 (6, 3)"),
        (TOKENS[:, :0], "torch.float64 (2, 0, 3)"),
        (TOKENS[:0], "torch.float64 (0, 6, 3)"),
        (TOKENS[..., :0], "torch.float64 (2, 6, 0)"),
        (TOKENS.long(), "torch.int64 (2, 6, 3)"),
    ],
)
def test_tokens_of_another_shape_or_type_are_refused(tokens: Tensor, came: str):
    refused(f"tokens must be floating point (batch, tokens, features), got {came}", tokens=tokens)


def weights_with(value: float) -> Tensor:
    weights = torch.ones(2, 6, dtype=torch.float64)
    weights[1, 4] = value
    return weights


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2, 5) > 0, "mask must be bool or weights of shape (2, 6), got torch.bool (2, 5)"),
        (torch.ones(2, 6, 1), "mask must be bool or weights of shape (2, 6), got torch.float32 (2, 6, 1)"),
        (torch.ones(2, 6).long(), "mask must be bool or weights of shape (2, 6), got torch.int64 (2, 6)"),
        (weights_with(-0.1), "mask must hold finite weights of at least 0"),
        (weights_with(NAN), "mask must hold finite weights of at least 0"),
        (weights_with(float("inf")), "mask must hold finite weights of at least 0"),
        (torch.tensor([[1.0], [0.0]]).repeat(1, 6), "mask must keep at least one token an image, image 1 has none"),
        (torch.tensor([[False], [True]]).repeat(1, 6), "mask must keep at least one token an image, image 0 has none"),
    ],
)
def test_masks_are_refused(mask: Tensor, message: str):
    refused(message, mask=mask)


@pytest.mark.parametrize("value", [NAN, float("inf"), -float("inf")])
def test_a_token_that_is_not_finite_is_refused_by_its_number(value: float):
    tokens = TOKENS.clone()
    tokens[1, 4, 2] = value
    refused("tokens must be finite, token 4 of image 1 is not", tokens=tokens)
    refused("tokens must be finite, token 4 of image 1 is not", tokens=tokens, mask=weights_with(1e-3))
    for mask in (weights_with(0.0), weights_with(0.0) > 0):
        found = fit_local_mixture(tokens, LocalMixturePrior(), 2, mask=mask, num_iterations=2)
        assert isinstance(found, LocalMixtureFit)
        assert bool(found.elbo.isfinite().all())


def state_of(loc: Tensor) -> MixtureState:
    return MixtureState(loc, torch.ones_like(loc), torch.zeros_like(loc[..., 0]))


@pytest.mark.parametrize("wrap", [lambda loc: loc, state_of], ids=["means", "state"])
@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 2, 3), (2, 3, 3), (2, 3)])
def test_a_start_of_another_shape_is_refused(wrap: Any, shape: tuple[int, ...]):
    options = FitOptions(start=wrap(draw(*shape, seed=2)))
    refused(f"start must have means (2, 2, 3), got {shape}", options=options)


@pytest.mark.parametrize("wrap", [lambda loc: loc, state_of], ids=["means", "state"])
def test_a_given_start_has_no_restarts(wrap: Any):
    options = FitOptions(start=wrap(TOKENS[:, :2]))
    refused("num_restarts must be 1 where the start is given, got 2", options=options, num_restarts=2)


def test_a_posterior_of_other_covariances_is_refused_and_a_point_is_not():
    for ours, theirs in (("diagonal", "full"), ("full", "diagonal")):
        for estimate in ("variational", "ml"):
            options = FitOptions(covariance=theirs, estimate=estimate)
            start = fit_local_mixture(TOKENS, LocalMixturePrior(), 2, options=options).slot_posterior()
            wanted = FitOptions(start=start, covariance=ours)
            if estimate == "variational":
                refused(f"start must have {ours} covariances, as options.covariance says", options=wanted)
            else:
                fit_local_mixture(TOKENS, LocalMixturePrior(), 2, options=wanted)
            point = replace(wanted, estimate="ml")
            fit_local_mixture(TOKENS, LocalMixturePrior(), 2, options=point)


@pytest.mark.parametrize("estimate", ["variational", "map", "ml"])
@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_every_device_finds_the_same(estimate: str, covariance: str, device: torch.device):
    tokens, prior = 2 * draw(3, 40, 2, seed=1), LocalMixturePrior(1.5, 0.0, 0.1, 2.0, 1.0)
    options = FitOptions(estimate=estimate, covariance=covariance)
    mask = draw(3, 40, seed=2) > -1
    settings = {"num_iterations": 10, "tol": 0.0, "num_restarts": 1, "options": options}
    ours = fit_local_mixture(tokens.to(device), prior, 3, mask=mask.to(device), **settings)
    expected = fit_local_mixture(tokens, prior, 3, mask=mask, **settings)
    assert ours.loc.device.type == device.type
    assert_close(ours.loc, expected.loc, CONVERGED)
    assert_close(ours.ascent.objective_trace, expected.ascent.objective_trace, CONVERGED)
    if isinstance(ours, LocalMixtureFit):
        assert isinstance(expected, LocalMixtureFit)
        assert_close(ours.log_evidence_bound, expected.log_evidence_bound, CONVERGED)
        assert_close(ours.log_evidence_estimate, expected.log_evidence_estimate, CONVERGED)
        assert_close(ours.num_occupied(5).sum(1), torch.ones(3))


def test_autocast_does_not_reach_the_fit():
    tokens = 2 * draw(1, 20, 2, seed=1, dtype=torch.float32)
    plain = fit_local_mixture(tokens, LocalMixturePrior(), 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = fit_local_mixture(tokens, LocalMixturePrior(), 2)
    assert_close(cast.loc, plain.loc, 0.0)


def test_tokens_are_left_as_they_were_and_nothing_is_differentiated():
    tokens = draw(2, 12, 3, seed=1).requires_grad_()
    before = tokens.detach().clone()
    found = fit_local_mixture(tokens, LocalMixturePrior(), 2, num_iterations=3)
    assert torch.equal(tokens.detach(), before)
    assert not found.loc.requires_grad
