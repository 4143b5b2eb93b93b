"""The race against scikit-learn is fair: same start, same steps, same bound. Speed itself is left to ``psa bench``."""

import importlib
import json
import math

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info
from tolerances import FLOAT32, assert_close

from psa.cli import main
from psa.experiments.bench.fits import (
    PRIOR,
    FitProblem,
    bench_fits,
    first_tokens,
    fit_ours,
    fit_theirs,
    limited_to,
    start_state,
    token_sets,
)
from psa.experiments.bench.pomegranate_fits import MIN_VARIANCE, fit_pomegranate
from psa.inference.em import MixtureState
from psa.inference.variational import FitOptions, fit_local_mixture

LINE = FitProblem(num_sets=4, num_tokens=40, num_features=1, num_slots=3)
PLANE = FitProblem(num_sets=4, num_tokens=30, num_features=2, num_slots=3, num_iterations=5)


def both(problem: FitProblem, ours: int, theirs: int):
    tokens = token_sets(problem)
    fit = fit_ours(tokens, first_tokens(problem), ours)
    return fit, fit_theirs(tokens.numpy(), range(problem.num_sets), problem.num_slots, theirs)


@pytest.mark.parametrize("iterations", [1, 5, 100])
def test_in_one_dimension_responsibilities_are_those_of_scikit_learn(iterations: int):
    """Ours come from the state before the last update, theirs from the state after it."""
    fit, mixtures = both(LINE, iterations, iterations - 1)
    expected = np.stack([m.predict_proba(v).T for m, v in zip(mixtures, token_sets(LINE).numpy(), strict=True)])
    assert_close(fit.responsibilities, torch.from_numpy(expected))


@pytest.mark.parametrize("iterations", [1, 5, 100])
def test_in_one_dimension_parameters_are_those_of_scikit_learn(iterations: int):
    fit, mixtures = both(LINE, iterations, iterations)
    for ours, theirs in (
        (fit.concentration, "weight_concentration_"),
        (fit.loc, "means_"),
        (fit.loc_strength, "mean_precision_"),
        (2.0 * fit.precision_shape, "degrees_of_freedom_"),
        (fit.precision_rate / fit.precision_shape[..., None], "covariances_"),
    ):
        assert_close(ours, torch.from_numpy(np.stack([getattr(m, theirs) for m in mixtures])))
    assert [m.n_iter_ for m in mixtures] == fit.ascent.num_iterations.tolist() == [iterations] * 4


def test_in_one_dimension_the_bound_rises_as_much_as_that_of_scikit_learn():
    """Theirs leaves constants out."""
    fit, last = both(LINE, 5, 5)
    _, first = both(LINE, 1, 1)
    rise = [b.lower_bound_ - a.lower_bound_ for a, b in zip(first, last, strict=True)]
    assert min(rise) > 1.0
    assert_close(fit.elbo_trace[4] - fit.elbo_trace[0], torch.tensor(rise))


def test_in_two_dimensions_all_iterations_are_taken_from_the_same_start():
    fit, mixtures = both(PLANE, 5, 0)
    state = start_state(token_sets(PLANE), first_tokens(PLANE))
    assert_close(state.loc, torch.from_numpy(np.stack([m.means_ for m in mixtures])))
    assert_close(state.var, torch.from_numpy(np.stack([m.covariances_ for m in mixtures])))
    assert fit.elbo_trace.shape == (5, 4)
    _, mixtures = both(PLANE, 1, 5)
    assert [m.n_iter_ for m in mixtures] == [5] * 4


def test_threads_are_limited_and_given_back():
    """Those of torch, of its MKL, and of the BLAS of NumPy and SciPy."""
    before = torch.__config__.parallel_info(), threadpool_info()
    with limited_to(1):
        assert {pool["num_threads"] for pool in threadpool_info()} == {1}
    with limited_to(2):
        assert torch.get_num_threads() == 2
    assert (torch.__config__.parallel_info(), threadpool_info()) == before


def test_costs_are_positive_and_in_order():
    seen: list[str] = []
    costs = bench_fits(PLANE, blocks=2, threads=(2, 1), progress=seen.append)
    assert len(seen) == 4
    assert [(c.method, c.dtype, c.threads) for c in costs] == [
        (method, dtype, threads)
        for threads in (2, 1)
        for method, dtype in (("scikit-learn", "float64"), ("psa", "float64"), ("psa", "float32"))
    ]
    for cost in costs:
        assert 0 < cost.seconds_low <= cost.seconds <= cost.seconds_high < math.inf
        assert 0 < cost.speedup_low <= cost.speedup <= cost.speedup_high < math.inf
        assert cost.cpu_seconds > 0
        assert cost.method == "psa" or cost.speedup == 1.0


def test_blocks_share_the_sets_and_are_scaled_to_all_of_them(monkeypatch: pytest.MonkeyPatch):
    """A clock by which the loop needs a second for all four sets, and a quarter of one where all are fitted at once."""
    fits = importlib.import_module("psa.experiments.bench.fits")
    clock, seen, tokens = [0.0], [], token_sets(PLANE).numpy()

    def slowly(sets, seeds, *rest):
        assert np.array_equal(sets, tokens[seeds])
        seen.extend(seeds)
        clock[0] += len(sets) / 4

    monkeypatch.setattr(fits, "fit_theirs", slowly)
    monkeypatch.setattr(fits, "fit_ours", lambda *given: clock.__setitem__(0, clock[0] + 0.25))
    for name in ("perf_counter", "process_time"):
        monkeypatch.setattr(fits, name, lambda: clock[0])
    loop, ours, _ = bench_fits(PLANE, blocks=2, threads=(1,))
    assert (loop.seconds, loop.cpu_seconds, ours.seconds, ours.speedup) == (1.0, 1.0, 0.25, 4.0)
    assert sorted(seen[1:]) == [0, 1, 2, 3]  # the first is to warm up


def test_pomegranate_takes_the_steps_of_maximum_likelihood():
    pytest.importorskip("pomegranate")
    tokens, owned = token_sets(PLANE), first_tokens(PLANE)
    weights = torch.full(owned.shape, 1 / 3, dtype=torch.float64)
    loc = tokens.gather(1, owned[..., None].expand(-1, -1, 2))
    start = MixtureState(loc, torch.ones_like(loc), weights.log())
    options = FitOptions(start=start, estimate="ml", variance_floor=MIN_VARIANCE)
    fit = fit_local_mixture(tokens, PRIOR, 3, num_iterations=5, tol=0.0, options=options)
    for b, (means, variances) in enumerate(fit_pomegranate(tokens, owned, 5)):
        assert_close(means, fit.loc[b], FLOAT32)
        assert_close(variances, fit.var[b], FLOAT32)


@pytest.mark.parametrize("blocks", [0, 5])
def test_blocks_without_sets_are_refused(blocks: int):
    with pytest.raises(ValueError, match=f"blocks must be from 1 to the 4 sets, got {blocks}"):
        bench_fits(PLANE, blocks=blocks)


def test_the_command_prints_a_table_and_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    command = importlib.import_module("psa.cli.bench")
    for name, value in (("PROBLEM", PLANE), ("FIT_BLOCKS", 2), ("FIT_THREADS", (1,)), ("POMEGRANATE", False)):
        monkeypatch.setattr(command, name, value)
    with pytest.raises(SystemExit) as caught:
        main(["bench", "--suite", "fits", "--json"])
    lines = capsys.readouterr().out.splitlines()
    assert caught.value.code == 0
    assert "N = 30, D = 2, K = 3, 5 iterations" in lines[0] + lines[1]
    result = json.loads(lines[-1])
    assert [row["method"] for row in result["fits"]] == ["scikit-learn", "psa", "psa"]
    assert result["problem"]["num_sets"] == 4
    assert all(row["seconds"] > 0 for row in result["fits"])
