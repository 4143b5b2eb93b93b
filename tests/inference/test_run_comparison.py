import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_close
from torch import Tensor

import psa
from psa.arviz import read_netcdf, write_netcdf
from psa.errors import ConfigError, DataError, PsaError, RunError
from psa.inference.annealed_scenes import Schedule
from psa.inference.autoencoder import build_autoencoder
from psa.inference.config import RunConfig
from psa.inference.data_config import DataConfig
from psa.inference.run_comparison import (
    RunEvidence,
    Settings,
    TrainedRun,
    choose_sigma,
    open_runs,
    run_evidence,
    shared_images,
)
from psa.inference.run_differences import Comparison, compare_runs, models_of, paired, stacking_weights
from psa.inference.scene_evidence import estimate
from psa.runs import RunDirectory, save_tensors

STEPS = 60
BRIEF = Settings(num_samples=8, num_images=24, sigma="0.3")


def write_run(path: Path, values: dict[str, Any] = tiny.WITH_KL, *settings: str) -> Path:
    return write_config(path, tiny.tiny_config(values, *settings))


def write_config(path: Path, config: RunConfig) -> Path:
    """A run directory without training."""
    run = RunDirectory(path)
    run.create()
    run.write_config(config.to_toml())
    torch.manual_seed(config.training.seed)
    size = config.data.size
    size = (size, size) if isinstance(size, int) else size
    assert size is not None
    save_tensors(run.checkpoint, build_autoencoder(config, size).state_dict(), {"size": list(size), "step": 7})
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    """A run, and its copy at a tenth of its steps."""
    folder = tmp_path_factory.mktemp("runs")
    settings = (f"training.steps={STEPS}", f"training.evaluate_every={STEPS}", "training.learning_rate=4e-3")
    trainer = tiny.tiny_trainer(tiny.WITH_KL, *settings, path=folder / "run", num_images=200)
    trainer.fit(STEPS // 10)
    shutil.copytree(folder / "run", folder / "stopped")
    trainer.fit()
    return folder / "run", folder / "stopped"


@pytest.fixture
def runs(tmp_path) -> list[TrainedRun]:
    """Two seeds of one configuration, another variant, and the first again."""
    paths = [write_run(tmp_path / f"{seed}", tiny.WITH_KL, f"training.seed={seed}") for seed in (0, 1)]
    other = write_run(tmp_path / "sa", {"slots": {"variant": "sa"}, "objective": tiny.WITH_KL["objective"]})
    return open_runs([*paths, other, paths[0]])


def comparison(runs: Sequence[TrainedRun], log_weights: Tensor, method: str = "iwae") -> Comparison:
    return Comparison(runs, [RunEvidence(0.7, one, None) for one in log_weights], Settings(method))


def random_weights(*shape: int) -> Tensor:
    return -10 + torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", ["elbo", "iwae", "annealed"])
def test_a_run_differs_from_itself_by_exactly_nothing(trained, method):
    settings = Settings(method, num_samples=2, num_images=3)
    runs = open_runs([trained[0], trained[0]])
    images = shared_images(runs, settings)
    schedule = Schedule(num_temperatures=3, num_leapfrog=1)
    found = Comparison(runs, [run_evidence(run, images, settings, schedule=schedule) for run in runs], settings)
    (pair,) = found.record()["pairs"]
    assert (pair["difference"], pair["difference_se"]) == (0.0, 0.0)
    assert [row["weight"] for row in found.record()["runs"]] == pytest.approx([0.5, 0.5])
    assert len(found.log_evidence[0].unique()) == 3


def test_a_copy_stopped_at_a_tenth_of_the_steps_loses_by_more_than_two_standard_errors(trained):
    found = compare_runs(trained, BRIEF).record()
    (pair,) = found["pairs"]
    assert pair["difference"] > 2 * pair["difference_se"] > 0
    assert found["best"] == str(trained[0])
    assert [row["step"] for row in found["runs"]] == [STEPS, STEPS // 10]
    assert len(found["models"]) == 2
    assert found["runs"][0]["weight"] > 0.9


def test_differences_are_paired_by_image():
    one, other = random_weights(2, 50)
    shift = torch.linspace(-1, 1, 50, dtype=torch.float64)
    mean, error = paired(one + 100 * shift, one + 100 * shift + other)
    assert_close(mean, -other.mean())
    assert_close(error, np.std(other.numpy(), ddof=1) / math.sqrt(50))
    assert paired(one, one) == (0.0, 0.0)


def test_records_hold_means_errors_and_pairs_of_what_was_found(runs):
    weights = random_weights(4, 20, 5)
    found = comparison(runs, weights)
    record = json.loads(json.dumps(found.record(), allow_nan=False))
    values = torch.stack([estimate(one, "iwae")[0] for one in weights])
    for row, own in zip(record["runs"], values, strict=True):
        assert_close(row["log_evidence"], own.mean())
        assert_close(row["standard_error"], own.std() / math.sqrt(20))
        assert_close(row["bits_per_dimension"], -own.mean() / (16 * 16 * 3 * math.log(2)))
        assert_close(row["difference"], own.mean() - values.mean(1).max())
    assert record["best"] == runs[int(values.mean(1).argmax())].name
    assert [(pair["run"], pair["other"]) for pair in record["pairs"]] == [
        (runs[i].name, runs[j].name) for i in range(4) for j in range(i + 1, 4)
    ]
    assert_close(record["pairs"][0]["difference"], (values[0] - values[1]).mean())
    assert sum(row["weight"] for row in record["runs"]) == pytest.approx(1.0)


def test_seeds_are_replicates_and_a_seed_that_comes_again_is_not(runs):
    assert models_of(runs) == [[0, 1], [2], [3]]
    later = TrainedRun(runs[1].name, runs[1].autoencoder, runs[1].step + 1)
    assert models_of([runs[0], later]) == [[0], [1]]
    weights = random_weights(4, 20, 5)
    rows = comparison(runs, weights).record()["models"]
    means = torch.stack([estimate(one, "iwae")[0].mean() for one in weights])
    assert (rows[0]["seeds"], rows[0]["runs"]) == ([0, 1], [runs[0].name, runs[1].name])
    assert_close(rows[0]["log_evidence"], means[:2].mean())
    assert_close(rows[0]["between_seeds"], (means[0] - means[1]).abs() / math.sqrt(2))
    assert [row["between_seeds"] for row in rows[1:]] == [None, None]
    assert sum(row["weight"] for row in rows) == pytest.approx(1.0)


@given(seed=st.integers(0, 1000), num_runs=st.integers(2, 3), spread=st.sampled_from([0.3, 3.0, 300.0]))
def test_stacking_weights_reach_the_best_of_a_brute_force_grid(seed, num_runs, spread):
    generator = torch.Generator().manual_seed(seed)
    log_evidence = -2000 + spread * torch.randn(num_runs, 30, dtype=torch.float64, generator=generator)
    found = stacking_weights(log_evidence)
    assert_close(found.sum(), 1.0)
    assert bool((found >= 0).all())
    steps = torch.linspace(0, 1, 101, dtype=torch.float64)
    grid = torch.stack([steps, 1 - steps], 1)
    if num_runs == 3:
        grid = torch.cartesian_prod(steps, steps)
        grid = grid[grid.sum(1) <= 1]
        grid = torch.cat([grid, 1 - grid.sum(1, keepdim=True)], 1)

    def score(weights: Tensor) -> Tensor:
        return (weights.clamp(min=0).log()[..., None] + log_evidence).logsumexp(-2).mean(-1)

    assert float(score(found)) >= float(score(grid).max()) - 1e-7


def test_a_run_that_is_better_everywhere_takes_all_the_weight():
    log_evidence = torch.stack([random_weights(20), random_weights(20) - 50, random_weights(20) - 5000])
    assert_close(stacking_weights(log_evidence), [1.0, 0.0, 0.0], 1e-6)


def test_the_netcdf_file_has_runs_images_and_samples(runs, tmp_path):
    weights = random_weights(4, 20, 5)
    found = comparison(runs, weights)
    write_netcdf(found.inference_data(), tmp_path / "compare.nc")
    data = read_netcdf(tmp_path / "compare.nc")
    stored = data["log_likelihood"]["log_weight"]
    assert stored.dims == ("chain", "draw", "run", "image")
    assert list(stored["run"].values) == [run.name for run in runs]
    np.testing.assert_array_equal(stored.values[0], weights.permute(2, 0, 1))
    for name, expected in (("log_evidence", found.log_evidence), ("sampling_error", found.sampling_error)):
        assert data["observed_data"][name].dims == ("run", "image")
        np.testing.assert_array_equal(data["observed_data"][name].values, expected)
    assert data.attrs["units"] == "nats an image"


def test_sigma_is_the_runs_own_a_number_or_fitted_on_other_images(runs, monkeypatch):
    run = runs[0]
    assert choose_sigma(run, Settings()) == 0.7
    assert choose_sigma(run, Settings(sigma="0.25")) == 0.25
    seen: list[str] = []
    opened = psa.inference.sessions.open_split
    monkeypatch.setattr(
        psa.inference.sessions, "open_split", lambda data, split: (seen.append(split), opened(data, split))[1]
    )
    monkeypatch.setattr(psa.inference.run_comparison, "FIT_IMAGES", 2)
    monkeypatch.setattr(psa.inference.run_comparison, "FIT_SAMPLES", 4)
    fitted = choose_sigma(run, Settings(sigma="fit"))
    choose_sigma(run, Settings(sigma="fit", split="val"))
    assert seen == ["val", "train"]

    def mean_bound(sigma: float) -> float:
        data = run.autoencoder.config.data
        images = psa.inference.images.read_images(opened(data, "val"), 2).images
        scenes = psa.inference.scene_evidence.SceneEvidence(run.autoencoder, sigma, 0)
        weights = [scenes.importance_weights(image, index, 4) for index, image in enumerate(images)]
        return float(estimate(torch.stack(weights), "iwae")[0].mean())

    assert mean_bound(fitted) > max(mean_bound(fitted * 1.1), mean_bound(fitted / 1.1))


def test_images_of_one_file_under_two_names_are_the_same_images(tmp_path):
    first = write_run(tmp_path / "a")
    other = write_run(tmp_path / "b", tiny.WITH_KL, "data.num_scenes=300")
    assert len(shared_images(open_runs([first, other]), Settings(num_images=5))) == 5
    folder = tiny.write_folder(tmp_path / "scenes", 12)
    images = shared_images(open_runs([first, other]), Settings(data=str(folder), split="all"))
    assert len(images) == 12


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("data.min_visible=0.1",), "images are not those of .*data.min_visible"),
        (("data.seed=5",), "images are not those of .*data.seed"),
        (("data.size=24",), "expected images of 16 x 16 as .*, got 24 x 24"),
    ],
)
def test_runs_of_other_images_are_refused(tmp_path, settings, words):
    runs = open_runs([write_run(tmp_path / "a"), write_run(tmp_path / "b", tiny.WITH_KL, *settings)])
    with pytest.raises(DataError, match=words):
        shared_images(runs, Settings(num_images=20))


def test_other_preparation_of_the_same_folder_is_refused(tmp_path):
    folder = tiny.write_folder(tmp_path / "scenes", 12, size=24)
    paths = []
    for crop in ("none", "center"):
        data = DataConfig(source=str(folder), size=(16, 20), crop=crop)
        paths.append(write_config(tmp_path / crop, tiny.tiny_config(tiny.WITH_KL).model_copy(update={"data": data})))
    with pytest.raises(DataError, match=r"its images are not those of .* \(data.crop\)"):
        shared_images(open_runs(paths), Settings(split="all", data=str(folder)))


def test_a_run_of_points_has_no_density_and_is_refused(tmp_path):
    paths = [write_run(tmp_path / "a"), write_run(tmp_path / "b", tiny.WITHOUT_KL)]
    with pytest.raises(RunError, match=r"b: its slots are points \(objective.sample = false\), so it has no density"):
        open_runs(paths)


def test_a_run_that_leaves_slots_undecoded_is_refused(tmp_path):
    paths = [write_run(tmp_path / "a"), write_run(tmp_path / "b", tiny.WITH_KL, "decoder.relevance=information")]
    with pytest.raises(RunError, match=r"b: its decoder leaves slots out \(decoder.relevance = information\)"):
        open_runs(paths)


def test_more_slots_than_orders_can_be_summed_over_are_refused(tmp_path):
    paths = [write_run(tmp_path / "a", tiny.WITH_KL, "slots.num_slots=15"), write_run(tmp_path / "b")]
    with pytest.raises(RunError, match="a: expected at most 14 slots, got 15"):
        open_runs(paths)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "bic"}, "--method bic: expected one of elbo, iwae, annealed"),
        ({"ends": "half"}, "--ends half: expected one of closed, open"),
        ({"num_samples": 1}, "--samples 1: expected at least 2"),
        ({"num_images": 0}, "--images 0: expected at least 2"),
        ({"sigma": "0"}, "--sigma 0: expected run, fit or a number above 0"),
        ({"sigma": "nan"}, "--sigma nan"),
        ({"sigma": "inf"}, "--sigma inf"),
        ({"sigma": "wide"}, "--sigma wide"),
        ({"sigma": "fit", "split": "all"}, "--sigma fit: expected a --split that leaves images"),
    ],
)
def test_settings_outside_their_support_are_named(changes, words):
    with pytest.raises(PsaError, match=words):
        Settings(**changes)


def test_one_run_is_nothing_to_compare(tmp_path):
    with pytest.raises(ConfigError, match="expected at least two runs to compare, got 1"):
        open_runs([tmp_path])


def test_runs_of_different_numbers_of_images_do_not_compare(runs):
    with pytest.raises(ValueError, match="evidence: expected one of equal shape for each run"):
        Comparison(runs[:2], [RunEvidence(0.7, random_weights(n, 3), None) for n in (4, 5)], Settings())
