"""Tables of ``psa bench --suite train``, in Markdown: docs/performance.md takes them as they are."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from psa.cli.common import progress_bar
from psa.experiments.bench.processes import ScalingCost, ScalingProblem, bench_processes
from psa.experiments.bench.train import PROBLEMS, StepCost, StepProblem, bench_train

SCALING = ScalingProblem()


def train_suite(device: str) -> tuple[RenderableType, dict[str, Any]]:
    """A training step at each size, and a run of one process beside one of two."""
    steps: dict[str, list[StepCost]] = {}
    with progress_bar() as bar:
        total = sum(problem.num_blocks for problem in PROBLEMS)
        task = bar.add_task("steps", total=total, figures="")
        for problem in PROBLEMS:
            steps[problem.name] = bench_train(problem, device, lambda name: bar.update(task, advance=1, figures=name))
        runs = bar.add_task("runs", total=SCALING.num_runs, figures="")
        scaling = bench_processes(SCALING, device, lambda name: bar.update(runs, advance=1, figures=name))
    tables = [steps_table(problem, steps[problem.name]) for problem in PROBLEMS]
    result = {
        "steps": [asdict(cost) for cost in steps[PROBLEMS[0].name]],
        **{f"{problem.name}_steps": [asdict(cost) for cost in steps[problem.name]] for problem in PROBLEMS[1:]},
        "processes": [asdict(cost) for cost in scaling],
        "problems": [asdict(problem) for problem in PROBLEMS],
        "scaling": asdict(SCALING),
    }
    return Group(*tables, scaling_table(scaling)), result


def steps_table(problem: StepProblem, costs: Sequence[StepCost]) -> Table:
    """A row a variant."""
    sizes = dict(setting.split("=") for setting in problem.settings)
    side, batch = problem.scenes.size, sizes["training.batch_size"]
    title = f"a training step of {problem.name}'s size, batch of {batch} images of {side} x {side}, one thread"
    table = Table(title=title, box=box.MARKDOWN)
    for heading in ("variant", "CPU ms", "range", "images/s", "range"):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    for cost in costs:
        table.add_row(
            cost.variant,
            f"{cost.cpu_ms:,.1f}",
            f"{cost.cpu_ms_low:,.1f} to {cost.cpu_ms_high:,.1f}",
            f"{cost.images_per_second:,.3g}",
            f"{cost.images_per_second_low:,.3g} to {cost.images_per_second_high:,.3g}",
        )
    return table


def scaling_table(costs: Sequence[ScalingCost]) -> Table:
    """A row an arrangement."""
    table = Table(title="runs of the demo's configuration, threads and batch of each process", box=box.MARKDOWN)
    for heading in ("processes", "threads", "batch", "images/s", "range", "times", "range"):
        table.add_column(heading, justify="right")
    for cost in costs:
        table.add_row(
            str(cost.processes),
            str(cost.threads),
            str(cost.batch_size),
            f"{cost.images_per_second:.0f}",
            f"{cost.images_per_second_low:.0f} to {cost.images_per_second_high:.0f}",
            f"{cost.times:.2f}",
            f"{cost.times_low:.2f} to {cost.times_high:.2f}",
        )
    return table
