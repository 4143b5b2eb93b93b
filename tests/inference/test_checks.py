"""Predictive checks: uniform on data from the model, small on planted misfits, and what they refuse."""

import json
import math
import warnings
from dataclasses import replace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.stats
import torch
from tiny import WITH_KL, WITHOUT_KL, tiny_autoencoder
from tolerances import FLOAT32, assert_close, assert_mean_is

from psa.inference import checks
from psa.inference.check_statistics import (
    FIT_STATISTICS,
    IMAGE_STATISTICS,
    SLOT_STATISTICS,
    TOKEN_STATISTICS,
    of_fit,
    scene_statistics,
    token_statistics,
)
from psa.inference.checks import (
    CheckOptions,
    calibrated_check,
    check_groups,
    held_out_check,
    posterior_predictive_check,
    prior_predictive_check,
)
from psa.inference.replicates import SceneRun, TokenModel, fit_draw
from psa.inference.variational import FitOptions, fit_local_mixture
from psa.models.local_mixture import LocalMixturePrior

import arviz  # isort: skip

PRIOR = LocalMixturePrior(1.0, 0.0, 0.1, 3.0, 1.0)
MODEL = TokenModel(PRIOR, 2, num_iterations=20)
SPREAD = {"spread": TOKEN_STATISTICS["token_spread"]}
FEW = CheckOptions(19, 19)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def token_sets(count: int, num_tokens: int = 12, seed: int = 0) -> torch.Tensor:
    like = torch.zeros(count, num_tokens, 2, dtype=torch.float64)
    return MODEL.prior_draw(like, generator(seed))(1)[0]


def uniform_p(check: checks.Check) -> float:
    return float(scipy.stats.kstest(check.p_value.numpy(), "uniform").pvalue)


def test_prior_predictive_p_values_are_uniform_on_data_from_the_model_and_of_a_count_too():
    found = prior_predictive_check(MODEL, token_sets(300), token_statistics(MODEL), FEW, generator(1))
    assert set(found) == {*TOKEN_STATISTICS, *FIT_STATISTICS}
    assert len(found["slots_in_use"].observed.unique()) <= 2
    assert all(uniform_p(check) > 0.001 for check in found.values())
    assert {check.provenance.uniform for check in found.values()} == {"exactly"}


def test_raw_p_values_of_data_used_twice_are_not_uniform_are_labelled_so_and_calibration_makes_them_uniform():
    data = token_sets(300)
    raw = posterior_predictive_check(MODEL, data, SPREAD, FEW, generator(1))["spread"]
    calibrated = calibrated_check(MODEL, data, SPREAD, FEW, generator(1))["spread"]
    assert uniform_p(raw) < 1e-6
    assert raw.provenance.uniform == "no"
    assert uniform_p(calibrated) > 0.001
    assert calibrated.provenance.uniform == "exactly"
    assert calibrated.raw is not None
    assert calibrated.raw.provenance == raw.provenance
    assert calibrated.reference.shape == (19, 300)


def test_held_out_p_values_are_about_uniform_and_not_of_the_tokens_that_were_fitted():
    data = token_sets(300)
    seen = []

    def spread(tokens: torch.Tensor) -> torch.Tensor:
        seen.append(tokens.shape[1])
        return SPREAD["spread"](tokens)

    check = held_out_check(MODEL, data, {"spread": spread}, FEW, generator(1), share=0.25)["spread"]
    assert set(seen) == {3}
    assert check.provenance.uniform == "approximately"
    assert uniform_p(check) > 1e-4


def test_tokens_are_fitted_or_left_out_whole_and_never_both(monkeypatch):
    data, fitted, compared = token_sets(3), [], []
    fit = TokenModel.fit

    def recorded(model: TokenModel, tokens: torch.Tensor, *rest: object) -> object:
        fitted.append(tokens)
        return fit(model, tokens, *rest)

    monkeypatch.setattr(TokenModel, "fit", recorded)
    held_out_check(
        MODEL, data, {"sum": lambda tokens: compared.append(tokens) or tokens.sum((1, 2))}, FEW, generator(), 0.25
    )
    both = torch.cat([fitted[0], compared[0]], dim=1)
    order = both[..., :1].argsort(1), data[..., :1].argsort(1)
    assert_close(*(x.gather(1, i.expand_as(x)) for x, i in zip((both, data), order, strict=True)))
    assert len(fitted) == 1


MISFITS = {
    "token_nearest_distance": (TokenModel(LocalMixturePrior(1.0, 0.0, 0.01, 1.0, 2.0), 2), 5),
    "token_kurtosis": (TokenModel(LocalMixturePrior(1.0, 0.0, 0.01, 1.0, 2.0), 1), 1),
}


@pytest.mark.parametrize("statistic", MISFITS)
@pytest.mark.parametrize("source", ["prior", "fit"])
def test_a_calibrated_check_catches_a_planted_misfit(statistic, source):
    """5 components fitted with 2 by the nearest distance; Student t fitted with a Gaussian by the kurtosis."""
    model, num_clusters = MISFITS[statistic]
    rng = np.random.default_rng(0)
    angle = np.arange(100) % num_clusters * 2 * np.pi / num_clusters
    centres = 6.0 * np.stack([np.cos(angle), np.sin(angle)], -1) * (num_clusters > 1)
    noise = rng.normal(size=(100, 2)) if num_clusters > 1 else rng.standard_t(3, (100, 2))
    options = CheckOptions(19, 299)
    named = {statistic: TOKEN_STATISTICS[statistic]}
    found = calibrated_check(model, torch.tensor(centres + noise)[None], named, options, generator(), source)
    assert float(found[statistic].p_value) < 0.01


@pytest.fixture(scope="module")
def autoencoder():
    """Untrained, with noise well above what its decoder draws at random."""
    return tiny_autoencoder(WITH_KL, "objective.sigma=1.0").eval()


def test_image_p_values_are_uniform_on_the_runs_own_images_and_halved_noise_is_caught(autoencoder, monkeypatch):
    torch.manual_seed(0)
    run = SceneRun(autoencoder)
    data = run.prior_draw(torch.zeros(150, 3, 16, 16))(1)[0]
    found = prior_predictive_check(run, data, IMAGE_STATISTICS, CheckOptions(9))
    assert all(uniform_p(check) > 0.001 for check in found.values())
    monkeypatch.setattr(autoencoder.model, "sigma", 0.5)
    options = CheckOptions(299, 299, pooled=True)
    named = {"high_frequency_variance": IMAGE_STATISTICS["high_frequency_variance"]}
    wrong = prior_predictive_check(run, data[:4], named, options)["high_frequency_variance"]
    calibrated = calibrated_check(run, data[:4], named, replace(options, num_replicates=9))["high_frequency_variance"]
    assert max(float(wrong.p_value), float(calibrated.p_value)) < 0.01
    assert float(wrong.observed) > float(wrong.reference.max())


def test_replicates_of_images_have_the_noise_of_the_likelihood_about_the_decoded_slots():
    """Of points (no sampling) the mean is the reconstruction; with drawn slots their spread comes on top."""
    torch.manual_seed(0)
    points = tiny_autoencoder(WITHOUT_KL, "objective.sigma=0.2").eval()
    images = torch.rand(2, 3, 16, 16)
    drawn = SceneRun(points).posterior_draw(images)(400)
    mean = points.decode(points.encode(images)[1]).mean
    assert_mean_is(drawn.flatten(1), mean.flatten())
    assert_mean_is((drawn - mean).square().flatten(1), 0.04)
    sharp = tiny_autoencoder(WITH_KL, "objective.sigma=0.01").eval()
    assert float(SceneRun(sharp).posterior_draw(images)(50).var(0).mean()) > 2 * 0.01**2


def test_replicated_tokens_have_the_moments_of_the_prior_and_of_the_fit():
    like = torch.zeros(1, 1, 2, dtype=torch.float64)
    tokens = MODEL.prior_draw(like, generator())(20_000)[:, 0, 0]
    # E[1/lambda] = b0 / (a0 - 1), and of the mean as much again over kappa0
    assert_mean_is(tokens, 0.0)
    assert_mean_is(tokens.square(), (1.0 + 1.0 / 0.1) * 1.0 / (3.0 - 1.0))
    data = token_sets(1, 40)
    fit = MODEL.fit(data, generator())
    replicates = fit_draw(fit, 3, generator())(20_000)
    assert replicates.shape == (20_000, 1, 3, 2)
    weights = fit.concentration / fit.concentration.sum()
    assert_mean_is(replicates[:, 0, 0], (weights[..., None] * fit.loc).sum(1)[0])


def test_statistics_of_a_fit_are_those_of_its_labels():
    tokens = torch.cat([torch.randn(1, 30, 2, generator=generator()) + 20 * k for k in range(2)], dim=1).double()
    fit = MODEL.fit(tokens, generator())
    found = of_fit(fit)
    assert float(found["slots_in_use"]) == 2
    assert_close(float(found["weight_entropy"]), math.log(2))
    centred = (tokens.reshape(2, 30, 2) - fit.loc[0, fit.labels[0, ::30]][:, None]) / (
        fit.precision_rate / fit.precision_shape[..., None]
    ).sqrt()[0, fit.labels[0, ::30]][:, None]
    kurtosis = float((centred**4).mean() / (centred**2).mean() ** 2)
    assert_close(float(found["residual_kurtosis"]), kurtosis)


def test_scene_statistics_are_of_the_runs_own_masks_in_chunks(autoencoder, monkeypatch):
    images = torch.rand(5, 3, 16, 16)
    whole = scene_statistics(autoencoder)(images)
    assert set(whole) == {*IMAGE_STATISTICS, *SLOT_STATISTICS}
    monkeypatch.setattr("psa.inference.check_statistics.CHUNK", 2)
    for name, value in scene_statistics(autoencoder)(images).items():
        assert_close(value, whole[name], FLOAT32, name)
    masks = autoencoder.encode(images)[2]
    assert_close(whole["mask_overlap"], 1 - masks.square().sum(1).mean((1, 2)))


def test_pooling_averages_a_statistic_over_the_batch_of_data_and_of_each_replicate():
    data = token_sets(6)
    alone = prior_predictive_check(MODEL, data, SPREAD, CheckOptions(50), generator(3))["spread"]
    pooled = prior_predictive_check(MODEL, data, SPREAD, CheckOptions(50, pooled=True), generator(3))["spread"]
    assert_close(pooled.observed, alone.observed.mean()[None])
    assert_close(pooled.reference, alone.reference.mean(1, keepdim=True))
    calibrated = calibrated_check(MODEL, data, SPREAD, CheckOptions(5, 7, pooled=True), generator())["spread"]
    assert calibrated.reference.shape == (7, 1)
    assert calibrated.p_value.shape == (1,)


def test_a_budget_of_memory_changes_only_which_draws_are_made(monkeypatch):
    data = token_sets(2)
    monkeypatch.setattr(checks, "MAX_ENTRIES", 3 * data.numel())
    found = posterior_predictive_check(MODEL, data, SPREAD, CheckOptions(10), generator())["spread"]
    assert found.reference.shape == (10, 2)
    assert len(found.reference.unique()) == 20
    calibrated = calibrated_check(MODEL, data, SPREAD, CheckOptions(2, 5), generator())["spread"]
    assert calibrated.reference.shape == (5, 2)


def test_the_same_seed_gives_the_same_p_values():
    data = token_sets(3)
    one, other = (calibrated_check(MODEL, data, SPREAD, FEW, generator(5))["spread"].p_value for _ in range(2))
    assert torch.equal(one, other)


def test_the_tail_is_that_of_the_statistic_also_after_calibration():
    """Heavy tails have too large a kurtosis: small p above, large p below, raw and calibrated."""
    model, _ = MISFITS["token_kurtosis"]
    heavy = torch.tensor(np.random.default_rng(0).standard_t(3, (1, 100, 2)))
    named = {"kurtosis": TOKEN_STATISTICS["token_kurtosis"]}
    for tail, low, high in (("upper", 0.0, 0.05), ("lower", 0.95, 1.0)):
        options = CheckOptions(39, 39, tail)
        for found in (
            posterior_predictive_check(model, heavy, named, options, generator()),
            calibrated_check(model, heavy, named, options, generator()),
        ):
            assert low <= float(found["kurtosis"].p_value) <= high
            assert found["kurtosis"].tail == tail


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({"all": lambda batch: batch}, r"statistics\['all'\] must be a number for each of 2 sets, got torch.float64"),
        ({"one": lambda batch: batch.sum()[None]}, "must be a number for each of 2 sets"),
        ({"nan": lambda batch: batch.sum((1, 2)) * math.nan}, r"statistics\['nan'\] must not be NaN"),
    ],
)
def test_a_statistic_that_is_no_number_a_set_is_refused_by_name(statistics, message):
    with pytest.raises(ValueError, match=message):
        prior_predictive_check(MODEL, token_sets(2), statistics, FEW, generator())


def test_settings_outside_their_support_are_refused():
    with pytest.raises(ValueError, match="num_replicates must be"):
        CheckOptions(0)
    with pytest.raises(ValueError, match="num_simulations must be"):
        CheckOptions(1, 0)
    with pytest.raises(ValueError, match="tail must be one of two-sided, upper, lower, got 'both'"):
        CheckOptions(tail="both")
    with pytest.raises(ValueError, match="num_slots must be"):
        TokenModel(PRIOR, 0)
    with pytest.raises(ValueError, match="source must be one of prior, fit, got 'data'"):
        calibrated_check(MODEL, token_sets(1), SPREAD, FEW, generator(), "data")
    for share, num_tokens in ((0.0, 5), (1.0, 5), (0.5, 1)):
        with pytest.raises(ValueError, match=r"share must be in \(0, 1\) and tokens at least 2"):
            held_out_check(MODEL, token_sets(1, num_tokens), SPREAD, FEW, generator(), share)
    full = fit_local_mixture(token_sets(1), PRIOR, 2, options=FitOptions(covariance="full"))
    with pytest.raises(ValueError, match="fit must have diagonal covariances"):
        fit_draw(full, 3)(1)


@pytest.fixture
def no_screen():
    with matplotlib.rc_context():
        plt.switch_backend("agg")
        yield
        plt.close("all")


@pytest.mark.usefixtures("no_screen")
@pytest.mark.parametrize("kind", ["prior", "posterior", "calibrated"])
def test_arviz_plots_the_groups(kind):
    data = token_sets(3)
    function = {"prior": prior_predictive_check, "calibrated": calibrated_check}.get(kind, posterior_predictive_check)
    found = list(function(MODEL, data, SPREAD, FEW, generator()).values())
    replicates = MODEL.prior_draw(data, generator())(19)
    groups = check_groups(found, (data, replicates))
    group = "prior_predictive" if kind == "prior" else "posterior_predictive"
    shown = found[0].raw or found[0]
    assert_close(torch.tensor(groups[group]["spread"].values[0]), shown.reference)
    assert_close(torch.tensor(groups["observed_data"]["spread"].values), shown.observed)
    assert groups[group]["values"].shape == (1, 19, 3, 12, 2)
    note = json.loads(groups.attrs["p_values"])["spread"]
    assert note["p_value"] == found[0].p_value.tolist()
    assert note["uniform"] == {"posterior": "no"}.get(kind, "exactly")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what ArviZ 0.23 calls of matplotlib and pandas is deprecated there
        arviz.plot_ppc(groups, group=kind if kind == "prior" else "posterior", var_names=["values"])
        if kind != "prior":
            arviz.plot_bpv(groups, var_names=["spread"], kind="p_value")


def test_groups_of_several_kinds_are_refused():
    data = token_sets(1)
    mixed = [
        *prior_predictive_check(MODEL, data, SPREAD, FEW, generator()).values(),
        *posterior_predictive_check(MODEL, data, SPREAD, FEW, generator()).values(),
    ]
    for wrong in ([], mixed):
        with pytest.raises(ValueError, match="checks must be some of one kind"):
            check_groups(wrong)
