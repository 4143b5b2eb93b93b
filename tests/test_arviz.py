"""The ArviZ adapter: what tests/arviz_checks.py holds, here and with the other ArviZ, and how it refuses and fails."""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import arviz_checks
import h5py
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import psa.arviz
from psa.arviz import BEFORE_1, inference_data, loo, psis, read_netcdf, rhat, write_netcdf
from psa.errors import DataError

ROOT = Path(__file__).resolve().parents[1]
OTHER = os.environ.get("PSA_ARVIZ1_PYTHON", "")
# What ArviZ 0.23 itself calls, and pandas 3.1 and matplotlib 3.11 have deprecated.
OF_ARVIZ = (
    pytest.mark.filterwarnings("ignore:The inplace keyword:DeprecationWarning:arviz"),
    pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping:DeprecationWarning:arviz"),
)


@pytest.fixture
def no_screen() -> Iterator[None]:
    with matplotlib.rc_context():
        plt.switch_backend("agg")
        yield
        plt.close("all")


@pytest.mark.parametrize(
    "check", [pytest.param(check, id=check.__name__, marks=OF_ARVIZ) for check in arviz_checks.CHECKS]
)
@pytest.mark.usefixtures("no_screen")
def test_it_holds_here_that(check, tmp_path):
    check(tmp_path)


@pytest.mark.skipif(not OTHER, reason="PSA_ARVIZ1_PYTHON names no interpreter with ArviZ 1")
def test_the_same_holds_with_arviz_1_and_each_reads_what_the_other_wrote(tmp_path):
    ours, theirs, work = tmp_path / "ours.nc", tmp_path / "theirs.nc", tmp_path / "work"
    work.mkdir()
    write_netcdf(arviz_checks.normal_data(), ours)
    code = [OTHER, "-W", "error", str(ROOT / "tests/arviz_checks.py"), str(work), str(ours), str(theirs)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    found = subprocess.run(code, env=environment, cwd=work, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stdout + found.stderr
    assert f"{len(arviz_checks.CHECKS) + 1} checks, arviz 1." in found.stdout
    arviz_checks.assert_is_the_normal_model(read_netcdf(theirs))


def test_importing_it_is_silent_and_brings_no_torch(tmp_path):
    """On the first import of a day, when ArviZ 0.23 has not yet left its mark in the cache."""
    code = "import psa.arviz, sys; assert 'torch' not in sys.modules"
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_the_command_line_does_not_wait_for_arviz():
    code = "import psa.cli, sys; sys.exit('arviz' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_no_room_reads_an_inference_of_pyros_by_itself():
    """ArviZ 1 has no from_pyro; and it would run the model again to get what we hand over."""
    calls = [path for room in ("psa", "models", "inference", "experiments") for path in (ROOT / room).rglob("*.py")]
    assert calls
    assert not [path for path in calls if "from_pyro" in path.read_text()]


def small(**changes: Any) -> dict[str, dict[str, Any]]:
    """Two chains of 5 draws, 3 tokens of 2 features; changes replace whole groups."""
    rng = np.random.default_rng(0)
    return {
        "posterior": {"loc": rng.normal(size=(2, 5, 4, 2))},
        "log_likelihood": {"values": rng.normal(size=(2, 5, 3))},
        "sample_stats": {"lp": rng.normal(size=(2, 5))},
        "observed_data": {"values": rng.normal(size=(3, 2))},
        **changes,
    }


DIMS = {"loc": ["slot", "feature"], "values": ["token", "feature"]}


def test_detached_tensors_are_arrays():
    tensors = {group: {name: torch.from_numpy(a) for name, a in found.items()} for group, found in small().items()}
    of_tensors, of_arrays = inference_data(tensors, DIMS), inference_data(small(), DIMS)
    for group, variables in small().items():
        for name in variables:
            assert of_tensors[group][name].identical(of_arrays[group][name])
    assert psis(torch.zeros(30))[1] == psis(np.zeros(30))[1]
    chains = torch.randn(2, 50, dtype=torch.float64)
    assert rhat(chains) == rhat(chains.numpy())


def test_a_log_likelihood_lacks_the_axes_it_is_joint_over():
    data = inference_data(small(), DIMS)
    assert data["log_likelihood"]["values"].dims == ("chain", "draw", "token")
    assert data["observed_data"]["values"].dims == ("token", "feature")


def test_a_statistic_called_log_likelihood_is_no_mistake():
    stats = {"log_likelihood": np.zeros((2, 5))}
    assert set(inference_data(small(sample_stats=stats), DIMS)["sample_stats"].data_vars) == {"log_likelihood"}


@pytest.mark.parametrize("shape", [(1, 70), (3, 2)])
def test_arviz_is_not_asked_about_a_run_too_short_which_it_would_log(shape, monkeypatch):
    monkeypatch.delattr(psa.arviz.arviz, "rhat")
    assert np.isnan(rhat(np.zeros(shape)))


def test_a_prior_has_draws_of_its_own():
    data = inference_data(small(prior={"loc": np.zeros((1, 7, 4, 2))}), DIMS)
    assert dict(data["prior"].sizes) == {"chain": 1, "draw": 7, "slot": 4, "feature": 2}


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({}, r"groups: expected some of posterior, .*, got none"),
        (small(posterior_predicitve={}), r"groups: expected some of .*posterior_predicitve"),
        (small(posterior={}), r"groups\['posterior'\]: expected variables, got none"),
        (small(posterior={"loc": np.full((2, 5, 4, 2), "a")}), r"posterior\['loc'\]: expected real numbers.*got <U1"),
        (small(posterior={"loc": np.zeros((2, 5, 4, 2), complex)}), r"posterior\['loc'\]: expected real.*complex"),
        (small(sample_stats={"lp": np.zeros((2, 6))}), r"sample_stats\['lp'\]: .* sizes \(2, 5\).*got \(2, 6\)"),
        (small(log_likelihood={"values": np.zeros((5, 2, 3))}), r"log_likelihood\['values'\]: .*got \(5, 2\)"),
        (small(sample_stats={"lp": np.zeros(5)}), r"sample_stats\['lp'\]: expected axes \(chain, draw\).*got \(5,\)"),
        (
            small(prior={"loc": np.zeros((1, 7, 4, 2))}, prior_predictive={"values": np.zeros((1, 8, 3, 2))}),
            r"prior_predictive\['values'\]: .* sizes \(1, 7\).*got \(1, 8\)",
        ),
        (small(posterior={"other": np.zeros((2, 5, 4))}), r"posterior\['other'\]: expected the axes \[\] of dims"),
        (
            small(posterior={"loc": np.zeros((2, 5, 4))}),
            r"posterior\['loc'\]: .*\['slot', 'feature'\].*got sizes \(4,\)",
        ),
        (small(observed_data={"values": np.zeros(3)}), r"observed_data\['values'\]: .*'token', 'feature'.*\(3,\)"),
        (small(posterior={"loc": np.zeros((2, 5, 4, 3))}), r"observed_data\['values'\]: expected 3 along 'feature'"),
        (small(log_likelihood={"values": np.zeros((2, 5, 2))}), r"observed_data\['values'\]: expected 2 along 'token'"),
        (small(sample_stats={"token": np.zeros((2, 5))}), r"dims: expected names that no variable has, got token"),
        (small(sample_stats={"draw": np.zeros((2, 5))}), r"dims: expected names that no variable has, got draw"),
    ],
)
def test_groups_that_do_not_fit_are_refused_by_name(groups, message):
    with pytest.raises(ValueError, match=message):
        inference_data(groups, DIMS)


@pytest.mark.parametrize("axes", [["slot", "slot"], ["chain", "slot"], ["slot", "draw"]])
def test_names_of_axes_differ_from_each_other_and_from_chain_and_draw(axes):
    with pytest.raises(ValueError, match=r"dims\['loc'\]: expected different names"):
        inference_data(small(), DIMS | {"loc": axes})


@pytest.mark.usefixtures("unchecked")
def test_a_word_is_no_list_of_names():
    with pytest.raises(ValueError, match=r"dims\['loc'\]: expected different names.*got 'sf'"):
        inference_data(small(), DIMS | {"loc": "sf"})


@pytest.mark.parametrize(("coords", "got"), [({"slot": ["a", "b"]}, r"\(4,\), got \(2,\)"), ({"x": [1]}, "a name in")])
def test_labels_fit_their_axis(coords, got):
    with pytest.raises(ValueError, match=rf"coords\['(slot|x)'\]: expected shape .*{got}"):
        inference_data(small(), DIMS, coords=coords)


@pytest.mark.parametrize("note", [True, None, [1]])
@pytest.mark.usefixtures("unchecked")
def test_notes_are_what_a_file_can_hold(note):
    with pytest.raises(TypeError, match=r"attrs\['x'\]: expected text or a number, got"):
        inference_data(small(), DIMS, attrs={"x": note})


@pytest.mark.parametrize("older", [True, False])
def test_a_write_that_fails_half_way_leaves_what_was_there(tmp_path, older):
    path = tmp_path / "fit.nc"
    if older:
        path.write_bytes(b"older")
    data = inference_data(small(), DIMS)
    data["observed_data"].attrs["nothing netCDF holds"] = object()  # the last group: the others are written by then
    with pytest.raises(TypeError, match="nothing netCDF holds"):
        write_netcdf(data, path)
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [("fit.nc", b"older")] * older


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write_netcdf(inference_data(small(), DIMS), tmp_path / "file" / "fit.nc")


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_netcdf(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: expected ")
    assert "\n" not in message
    return message


def test_a_file_cut_short_anywhere_is_a_data_error(tmp_path):
    path = tmp_path / "fit.nc"
    write_netcdf(inference_data(small(), DIMS), path)
    whole = path.read_bytes()
    for length in range(0, len(whole), len(whole) // 12):
        path.write_bytes(whole[:length])
        assert "netCDF file of ArviZ groups, got" in refused(path)


def test_a_path_without_a_file_is_a_data_error(tmp_path):
    assert "found none of that name" in refused(tmp_path / "none.nc")
    assert "found none of that name" in refused(tmp_path)


def test_a_file_of_other_content_is_a_data_error(tmp_path):
    with h5py.File(tmp_path / "scenes.h5", "w") as handle:
        handle["image"] = np.zeros((2, 3))
    refused(tmp_path / "scenes.h5")
    with h5py.File(tmp_path / "groups.h5", "w") as handle:
        handle.create_group("images")
    assert "found none" in refused(tmp_path / "groups.h5")


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("fit.nc").write_bytes(pickle.dumps(Bomb()))
    refused(Path("fit.nc"))
    assert os.listdir() == ["fit.nc"]


@pytest.mark.parametrize("shape", [(5,), (2, 5, 1)])
@pytest.mark.parametrize("function", [psa.arviz.rhat, psa.arviz.ess])
def test_a_diagnostic_wants_chains_and_draws(function, shape):
    with pytest.raises(ValueError, match=r"array: expected axes \(chain, draw\), got shape"):
        function(np.zeros(shape))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
def test_psis_wants_a_draw(shape):
    with pytest.raises(ValueError, match=r"log_ratios: expected axes \(\.\.\., draw\) and a draw, got shape"):
        psis(np.zeros(shape))


def test_loo_names_what_it_lacks():
    spoilt = small()["log_likelihood"]["values"]
    spoilt[0, 0, 0] = -np.inf
    short = {group: {name: a[:, :3] for name, a in small()[group].items()} for group in ("posterior", "log_likelihood")}
    for groups, message in (
        ({"posterior": small()["posterior"]}, "posterior and log_likelihood, got posterior"),
        (small(log_likelihood={"values": spoilt, "lp": spoilt[..., 0]}), "one variable in log_likelihood, got 2"),
        (small(log_likelihood={"values": spoilt}), "finite log_likelihood"),
        (short, "at least 4 draws"),
    ):
        with pytest.raises(ValueError, match=message):
            loo(inference_data(groups, DIMS))


@pytest.mark.parametrize("num_tokens", [1, 6])
def test_loo_reports_a_heavy_tail_and_warns_of_nothing(num_tokens):
    rng = np.random.default_rng(8)
    likelihood = -rng.exponential(size=(4, 100, num_tokens))
    likelihood[..., -1] *= 5  # its importance ratios have no mean
    found = loo(inference_data({"posterior": {"x": rng.normal(size=(4, 100))}, "log_likelihood": {"v": likelihood}},
                               {"v": ["token"]}))  # fmt: skip
    assert found.pareto_k.shape == found.pointwise.shape == (num_tokens,)
    assert found.max_pareto_k == found.pareto_k[-1] > 1
    assert np.isnan(found.se) == (num_tokens == 1)


@pytest.mark.skipif(not BEFORE_1, reason="ArviZ 1 knows the log scale alone")
def test_loo_is_in_nats_whatever_the_user_has_set():
    data = arviz_checks.normal_data()
    expected = loo(data).elpd
    with psa.arviz.arviz.rc_context({"stats.ic_scale": "deviance"}):
        assert loo(data).elpd == expected
