"""``psa bench``."""

from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from psa.cli.bench_steps import aggregate_suite, em_suite
from psa.cli.bench_training import train_suite
from psa.cli.common import JsonOption, number, print_json, progress_bar, result_console
from psa.errors import ConfigError
from psa.experiments.bench.data import DataProblem, bench_data
from psa.experiments.bench.fits import FitProblem, bench_fits
from psa.experiments.bench.fused import FusedProblem, bench_fused

SUITES = ("train", "em", "fits", "data", "aggregate", "fused")
BLOCKS = 7
PROBLEM = FitProblem()
FIT_BLOCKS = 10
FIT_THREADS = (2, 1)
DATA = DataProblem()
FUSED = FusedProblem()
FUSED_BLOCKS = 9
POMEGRANATE = find_spec("pomegranate") is not None


def bench(
    suite: Annotated[str, typer.Option(help=f"What to measure: {', '.join(SUITES)}.")] = "train",
    device: Annotated[str, typer.Option(help="A torch device: cpu, cuda.")] = "cpu",
    json: JsonOption = False,
) -> None:
    """Measure training steps, E/M steps, fits, reading, or reductions beside other libraries: medians and ranges."""
    if suite not in SUITES:
        raise ConfigError(f"--suite {suite}: expected one of {', '.join(SUITES)}")
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {device}: not to be had here ({str(error).splitlines()[0]})") from None
    suites = {
        "train": train_suite,
        "em": em_suite,
        "fits": _fits,
        "data": _data,
        "aggregate": aggregate_suite,
        "fused": _fused,
    }
    table, result = suites[suite](device)
    result_console.print(table)
    if json:
        print_json({"suite": suite, "device": device, "torch": torch.__version__, **result})


def _fits(device: str) -> tuple[Table, dict[str, Any]]:
    with progress_bar() as bar:
        task = bar.add_task("measuring", total=FIT_BLOCKS * len(FIT_THREADS), figures="")
        costs = bench_fits(
            PROBLEM,
            device,
            FIT_BLOCKS,
            FIT_THREADS,
            lambda name: bar.update(task, advance=1, figures=name),
            with_pomegranate=POMEGRANATE,
        )
    size = f"{PROBLEM.num_sets} token sets, N = {PROBLEM.num_tokens}, D = {PROBLEM.num_features}"
    caption = None if POMEGRANATE else "pomegranate is not installed (pip install psa-slots[bench]), so it is not here"
    table = Table(title=f"{size}, K = {PROBLEM.num_slots}, {PROBLEM.num_iterations} iterations", caption=caption)
    for heading in ("", "threads", "seconds", "range", "CPU s", "times faster", "range"):
        table.add_column(heading, justify="right" if heading else "left")
    for cost in costs:
        table.add_row(
            f"{cost.method} {cost.dtype} {cost.device}",
            str(cost.threads),
            f"{cost.seconds:.2f}",
            f"{cost.seconds_low:.2f} to {cost.seconds_high:.2f}",
            f"{cost.cpu_seconds:.2f}",
            f"{cost.speedup:.1f}",
            f"{cost.speedup_low:.1f} to {cost.speedup_high:.1f}",
        )
    about = {"scikit_learn": version("scikit-learn"), "problem": asdict(PROBLEM), "blocks": FIT_BLOCKS}
    about["pomegranate"] = version("pomegranate") if POMEGRANATE else None
    return table, {**about, "fits": [asdict(cost) for cost in costs]}


def _data(device: str) -> tuple[Table, dict[str, Any]]:
    if device != "cpu":
        raise ConfigError(f"--device {device}: expected cpu, where data are read")
    with progress_bar() as bar:
        task = bar.add_task("measuring", total=None, figures="")
        costs = bench_data(DATA, BLOCKS, lambda name: bar.update(task, advance=1, figures=name))
    table = Table(title="reading and making scenes, medians and ranges over blocks")
    for heading in ("", "by", "workers", "scenes/s", "range", "CPU ms", "times the first", "range"):
        table.add_column(heading, justify="left" if heading in ("", "by") else "right")
    for cost in costs:
        table.add_row(
            cost.task,
            cost.method,
            str(cost.workers),
            f"{cost.scenes_per_second:,.0f}",
            f"{cost.scenes_per_second_low:,.0f} to {cost.scenes_per_second_high:,.0f}",
            number(cost.cpu_ms, 3),
            number(cost.times, 2),
            "" if cost.times_low is None else f"{cost.times_low:.2f} to {cost.times_high:.2f}",
        )
    about = {name: version(name) for name in ("h5py", "tfrecord", "numpy")}
    return table, {**about, "problem": asdict(DATA), "blocks": BLOCKS, "costs": [asdict(cost) for cost in costs]}


def _fused(device: str) -> tuple[Table, dict[str, Any]]:
    with progress_bar() as bar:
        task = bar.add_task("measuring", total=5 * FUSED_BLOCKS, figures="")
        costs, errors = bench_fused(FUSED, device, FUSED_BLOCKS, lambda name: bar.update(task, advance=1, figures=name))
    sizes = f"B = {FUSED.batch}, N = {FUSED.num_tokens}, K = {FUSED.num_slots}, D = {FUSED.num_features}, {FUSED.dtype}"
    table = Table(title=f"an E-step with its moments, {sizes}; keys are values")
    for heading in ("", "ms", "range", "GB", "of copy", "times as fast"):
        table.add_column(heading, justify="right" if heading else "left")
    for cost in costs:
        table.add_row(
            cost.work,
            f"{cost.milliseconds:.3f}",
            f"{cost.low:.3f} to {cost.high:.3f}",
            f"{cost.gigabytes:.3f}",
            f"{cost.of_copy:.2f}",
            f"{cost.speedup:.1f}",
        )
    return table, {"problem": asdict(FUSED), "fused": [asdict(cost) for cost in costs], "errors": asdict(errors)}
