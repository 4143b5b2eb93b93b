"""What holds of psa.arviz with either ArviZ, against a model whose every number is known in closed form.

tests/test_arviz.py runs the checks in the tests' own environment. Run as a script they want an interpreter with ArviZ
alone: the folder to work in, a file that another ArviZ wrote, and where to write one for it. No torch, no pytest.
"""

import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import arviz
import h5py
import matplotlib.pyplot as plt
import numpy as np

from psa.arviz import BEFORE_1, Loo, ess, inference_data, loo, psis, read_netcdf, rhat, write_netcdf

CHAINS, DRAWS, TOKENS = 4, 1000, 12
PRIOR_VAR, NOISE_VAR = 4.0, 1.0
STANDARD_ERRORS = 6.0  # as tests/tolerances.py, which imports torch
DIMS = {"mean": [], "shift": ["slot"], "values": ["token"], "pair": ["slot", "feature"]}


def log_normal(value: Any, loc: Any, var: float) -> Any:
    return -0.5 * (math.log(2 * math.pi * var) + (value - loc) ** 2 / var)


def observations() -> np.ndarray:
    return np.random.default_rng(1).normal(0.7, NOISE_VAR**0.5, TOKENS)


def conjugate(values: np.ndarray) -> tuple[float, float]:
    """Mean and variance of mu given values ~ Normal(mu, 1), mu ~ Normal(0, 4)."""
    var = 1 / (1 / PRIOR_VAR + len(values) / NOISE_VAR)
    return var * values.sum() / NOISE_VAR, var


def normal_groups(extra_noise: float = 0.0) -> dict[str, dict[str, np.ndarray]]:
    """Independent exact draws; extra_noise is what the likelihood has too much of, a worse model."""
    rng, values = np.random.default_rng(2), observations()
    loc, var = conjugate(values)
    mean = rng.normal(loc, var**0.5, (CHAINS, DRAWS))
    likelihood = log_normal(values, mean[..., None], NOISE_VAR + extra_noise)
    return {
        "posterior": {"mean": mean, "shift": mean[..., None] + np.array([0.0, 1.0]), "pair": rng.normal(
            size=(CHAINS, DRAWS, 2, 3)
        ).astype(np.float32)},
        "posterior_predictive": {"values": mean[..., None] + rng.normal(size=(CHAINS, DRAWS, TOKENS))},
        "log_likelihood": {"values": likelihood},
        "sample_stats": {"lp": likelihood.sum(-1), "diverging": mean > loc + 2 * var**0.5},
        "observed_data": {"values": values},
        "prior": {"mean": rng.normal(0, PRIOR_VAR**0.5, (1, 50))},
        "prior_predictive": {"values": rng.normal(0, 3, (1, 50, TOKENS))},
    }  # fmt: skip


def normal_data(extra_noise: float = 0.0) -> Any:
    return inference_data(
        normal_groups(extra_noise),
        DIMS,
        coords={"slot": ["left", "right"], "token": np.arange(TOKENS) * 10},
        attrs={"model": "normal", "seed": 2, "noise": extra_noise},
    )


def assert_is_the_normal_model(data: Any) -> None:
    """Every array, its type, the names and labels of its axes, and the notes."""
    groups = normal_groups()
    assert set(data) == set(groups), set(data)
    for group, variables in groups.items():
        assert set(data[group].data_vars) == set(variables), group
        sampled = [] if group == "observed_data" else ["chain", "draw"]
        for name, expected in variables.items():
            found = data[group][name]
            assert list(found.dims) == [*sampled, *DIMS.get(name, [])], (group, name, found.dims)
            assert found.dtype == expected.dtype, (group, name, found.dtype)
            np.testing.assert_array_equal(found.values, expected)
    np.testing.assert_array_equal(data["posterior"]["shift"].coords["slot"].values.astype(str), ["left", "right"])
    np.testing.assert_array_equal(data["log_likelihood"]["values"].coords["token"].values, np.arange(TOKENS) * 10)
    np.testing.assert_array_equal(data["posterior"]["pair"].coords["feature"].values, [0, 1, 2])
    assert {name: data.attrs[name] for name in ("model", "seed", "noise")} == {"model": "normal", "seed": 2, "noise": 0}


def through_a_file(data: Any, folder: Path, name: str = "fit.nc") -> Any:
    write_netcdf(data, folder / name)
    return read_netcdf(folder / name)


def a_file_gives_back_what_was_written(folder: Path) -> None:
    assert_is_the_normal_model(normal_data())
    path = folder / "new" / "folder" / "fit.nc"
    again = through_a_file(through_a_file(normal_data(), path.parent), path.parent)
    assert os.listdir(path.parent) == ["fit.nc"]
    h5py.File(path, "r+").close()  # HDF5 refuses it of a file that is still open for reading
    path.unlink()
    assert_is_the_normal_model(again)


def more_chains_than_draws_are_no_mistake(_: Path) -> None:
    data = inference_data({"posterior": {"x": np.zeros((9, 4))}}, {})
    assert dict(data["posterior"].sizes) == {"chain": 9, "draw": 4}


def loo_is_the_exact_leave_one_out_density(folder: Path) -> None:
    found: Loo = loo(through_a_file(normal_data(), folder))
    values, likelihood = observations(), normal_groups()["log_likelihood"]["values"].reshape(-1, TOKENS)
    exact = np.empty(TOKENS)
    for index, value in enumerate(values):
        loc, var = conjugate(np.delete(values, index))
        exact[index] = log_normal(value, loc, NOISE_VAR + var)
    ratios = np.exp(-likelihood)
    error = ratios.std(0) / ratios.mean(0) / len(ratios) ** 0.5
    assert np.all(np.abs(found.pointwise - exact) < STANDARD_ERRORS * error), (found.pointwise - exact) / error
    assert error.max() < 0.02, "the draws say too little"
    np.testing.assert_allclose(found.elpd, found.pointwise.sum(), rtol=1e-10)
    np.testing.assert_allclose(found.se, (TOKENS * found.pointwise.var(ddof=1)) ** 0.5, rtol=1e-10)
    density = np.log(np.exp(likelihood).mean(0))
    np.testing.assert_allclose(found.p_loo, (density - found.pointwise).sum(), rtol=1e-8)
    loc, var = conjugate(values)
    parameters = log_normal(values, loc, NOISE_VAR + var).sum() - exact.sum()
    np.testing.assert_allclose(found.p_loo, parameters, atol=STANDARD_ERRORS * (error**2).sum() ** 0.5)
    assert found.pareto_k.shape == (TOKENS,)
    assert found.max_pareto_k == found.pareto_k.max() < 0.7


def psis_finds_the_tail_index_of_pareto_ratios(_: Path) -> None:
    """(1 - U) ** -k has the generalised Pareto tail of index k: its logarithm is k times a unit exponential."""
    num_draws = 20_000
    for tail_index in (0.2, 0.5, 0.9):
        ratios = tail_index * np.random.default_rng(3).exponential(size=(2, 3, num_draws))
        before = ratios.copy()
        weights, found = psis(ratios)
        assert weights.shape == ratios.shape
        assert found.shape == (2, 3)
        error = (1 + tail_index) / (3 * num_draws**0.5) ** 0.5
        assert np.all(np.abs(found - tail_index) < STANDARD_ERRORS * error), (tail_index, found)
        assert abs(found.mean() - tail_index) < 0.09, (tail_index, found)
        np.testing.assert_allclose(np.exp(weights).sum(-1), 1.0, rtol=1e-10)
        np.testing.assert_array_equal(ratios, before)


def psis_smooths_the_tail_alone_and_keeps_the_order(_: Path) -> None:
    ratios = 0.6 * np.random.default_rng(4).exponential(size=2000) + 100.0
    weights, _tail = psis(ratios)
    order = np.argsort(ratios)
    assert np.all(np.diff(weights[order]) >= 0)
    body = order[: 2000 - 3 * math.ceil(2000**0.5) - 1]
    shift = weights[body] - ratios[body]
    np.testing.assert_allclose(shift, shift[0], atol=1e-10)
    assert np.ptp(weights - ratios) > 1e-3


def psis_says_what_it_cannot_fit(_: Path) -> None:
    rng = np.random.default_rng(5)
    for few in (1, 2, 24):
        weights, found = psis(rng.normal(size=few))
        assert found == np.inf, (few, found)
        np.testing.assert_allclose(np.exp(weights).sum(), 1.0, rtol=1e-10)
    weights, found = psis(np.zeros(100))
    assert found == np.inf
    np.testing.assert_allclose(weights, -math.log(100), rtol=1e-10)
    weights, found = psis(400 * rng.normal(size=(200, 400)))  # hundreds of nats apart
    assert found.min() > 0.7
    np.testing.assert_allclose(np.exp(weights).sum(-1), 1.0, rtol=1e-10)
    assert not np.isnan(psis(rng.exponential(size=(50, 25)))[1]).any(), "the shortest tail"
    spoilt = rng.normal(size=(4, 100))
    spoilt[1, 0], spoilt[2, 0], spoilt[3] = np.nan, np.inf, -np.inf
    weights, found = psis(spoilt)
    assert np.isfinite(found).tolist() == [True, False, False, False]
    assert np.isnan(found[1:]).all()
    assert np.isnan(weights[1:]).all()


def rhat_and_ess_know_independent_chains_from_shifted_and_slow_ones(_: Path) -> None:
    rng = np.random.default_rng(6)
    chains = rng.normal(size=(4, 5000))
    assert 0.999 < rhat(chains) < 1.002
    assert 0.9 < ess(chains) / chains.size < 1.1
    shifted = chains + np.array([0.0, 0.0, 0.0, 3.0])[:, None]
    assert rhat(shifted) > 1.4
    assert ess(shifted) < 20
    drifting = chains + np.linspace(0, 3, 5000)  # all chains the same: only their halves differ
    assert rhat(drifting) > 1.2
    slow, persistence = np.zeros((4, 20_000)), 0.8  # an AR(1) of n draws is worth n (1 - p) / (1 + p)
    for step in range(1, 20_000):
        slow[:, step] = persistence * slow[:, step - 1] + rng.normal(size=4)
    assert 0.85 < ess(slow) / (slow.size / 9) < 1.15
    np.testing.assert_allclose(rhat(np.exp(chains)), rhat(chains), rtol=0.002, err_msg="ranks of the bulk are the same")


def rhat_and_ess_are_nan_where_not_defined(_: Path) -> None:
    chains = np.random.default_rng(7).normal(size=(4, 100))
    spoilt = chains.copy()
    spoilt[0, 0] = np.inf
    for array in (chains[:1], chains[:, :3], spoilt, np.ones((4, 100))):
        assert np.isnan(rhat(array)), array.shape
    for array in (chains[:, :3], spoilt, chains[:0]):
        assert np.isnan(ess(array)), array.shape
    assert np.isfinite(ess(chains[:1]))
    assert ess(np.ones((4, 100))) == 400
    assert rhat(np.arange(4.0)[:, None] * np.ones((4, 50))) == np.inf, "each chain stands still at a place of its own"


def arviz_summarises_what_was_read(folder: Path) -> None:
    data = through_a_file(normal_data(), folder)
    table = arviz.summary(data, var_names=["mean", "shift"], round_to="none")
    assert list(table.index) == ["mean", "shift[left]", "shift[right]"], table
    draws = normal_groups()["posterior"]["mean"]
    np.testing.assert_allclose(table.loc["mean", "mean"], draws.mean(), rtol=1e-10)
    np.testing.assert_allclose(table.loc["mean", "sd"], draws.std(ddof=1), rtol=1e-3)
    np.testing.assert_allclose(table.loc["mean", "r_hat"], rhat(draws), rtol=1e-10)
    np.testing.assert_allclose(table.loc["mean", "ess_bulk"], ess(draws), rtol=1e-10)


def arviz_compares_what_was_read(folder: Path) -> None:
    good, poor = (through_a_file(normal_data(noise), folder, f"{noise}.nc") for noise in (0.0, 8.0))
    table = arviz.compare({"poor": poor, "good": good}, **({} if BEFORE_1 else {"round_to": "none"}))
    assert list(table.index) == ["good", "poor"], table
    elpds = [loo(data).elpd for data in (good, poor)]
    np.testing.assert_allclose(table["elpd_loo" if BEFORE_1 else "elpd"].astype(float), elpds, rtol=1e-10)


def arviz_draws_what_was_read(folder: Path) -> None:
    data = through_a_file(normal_data(), folder)
    names = ["mean", "shift", "pair"]
    for name in ("plot_forest", "plot_trace", "plot_trace_dist"):
        draw = vars(arviz).get(name)
        if draw is None:
            assert name == "plot_trace_dist", name  # 0.x: it is what plot_trace draws
            continue
        draw(data, var_names=names)
        assert plt.get_fignums(), f"{name} drew nothing"
        plt.gcf().savefig(folder / f"{name}.png")
        plt.close("all")


CHECKS: tuple[Callable[[Path], None], ...] = (
    a_file_gives_back_what_was_written,
    more_chains_than_draws_are_no_mistake,
    loo_is_the_exact_leave_one_out_density,
    psis_finds_the_tail_index_of_pareto_ratios,
    psis_smooths_the_tail_alone_and_keeps_the_order,
    psis_says_what_it_cannot_fit,
    rhat_and_ess_know_independent_chains_from_shifted_and_slow_ones,
    rhat_and_ess_are_nan_where_not_defined,
    arviz_summarises_what_was_read,
    arviz_compares_what_was_read,
    arviz_draws_what_was_read,
)


def main(folder: Path, foreign: Path, own: Path) -> None:
    assert "torch" not in sys.modules
    assert_is_the_normal_model(read_netcdf(foreign))
    write_netcdf(normal_data(), own)
    for check in CHECKS:
        check(folder)
        print(check.__name__)
    print(f"{len(CHECKS) + 1} checks, arviz {arviz.__version__}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
