"""Issue 4: p(x) of sa, smm and psa on the demo's scenes, two seeds each, and of a run stopped early (half an hour)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from psa.experiments.model_evidence import member_rows, train_runs
from psa.experiments.tables import markdown
from psa.inference.run_comparison import Settings
from psa.inference.run_differences import Comparison, compare_runs


def show(runs: Mapping[str, Sequence[Path]], found: Comparison) -> None:
    """Print the tables, and check that the stopped copy loses."""
    record = found.record()
    print(record["method"], f"{record['images']} images, {record['samples']} samples", sep=", ")
    print(markdown(member_rows(runs, found)))
    print("stacking:", ", ".join(f"{Path(row['run']).name} {row['weight']:.2f}" for row in record["runs"]))
    if "acceptance" in record["runs"][0]:
        print("accepted:", ", ".join(f"{Path(row['run']).name} {row['acceptance']:.2f}" for row in record["runs"]))
    ends = (str(runs["psa"][0]), str(runs["stopped"][0]))
    (pair,) = (pair for pair in record["pairs"] if (pair["run"], pair["other"]) == ends)
    assert pair["difference"] > 2 * pair["difference_se"] > 0
    assert [len(model["seeds"]) for model in record["models"]] == [2, 2, 2, 1]


@pytest.mark.slow
def test_held_out_scenes_tell_trained_runs_apart(tmp_path: Path):
    torch.set_num_threads(1)
    runs = train_runs(tmp_path)
    paths = [path for member in runs.values() for path in member]
    drawn = compare_runs(paths, Settings("iwae"))
    show(runs, replace(drawn, settings=Settings("elbo")))  # of the same draws
    show(runs, drawn)
    show(runs, compare_runs(paths, Settings("annealed", num_images=12)))


@pytest.mark.slow
def test_a_run_compared_with_itself_differs_by_exactly_nothing(tmp_path: Path):
    torch.set_num_threads(1)
    path = train_runs(tmp_path, steps=10)["psa"][0]
    for method in ("elbo", "iwae", "annealed"):
        record = compare_runs([path, path], Settings(method, num_images=4, num_samples=4)).record()
        (pair,) = record["pairs"]
        assert (pair["difference"], pair["difference_se"]) == (0.0, 0.0)
