"""Tables of ``psa bench``: E/M steps, and reductions of aggregates."""

from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from rich.table import Table

from psa.cli.common import progress_bar
from psa.experiments.bench.aggregate import ReductionProblem, bench_aggregate
from psa.experiments.bench.em import AXES, GRID, EmReport, bench_em

EM_BLOCKS = 9
REDUCTION = ReductionProblem()
REDUCTION_BLOCKS = 5
MIB = 1 << 20


def em_suite(device: str) -> tuple[Table, dict[str, Any]]:
    """Forms of the E/M steps over a grid of sizes, the roofline, and exponents."""
    with progress_bar() as bar:
        task = bar.add_task("measuring", total=(len(GRID) + len(AXES)) * (EM_BLOCKS + 1), figures="")
        report = bench_em(device, GRID, EM_BLOCKS, AXES, lambda name: bar.update(task, advance=1, figures=name))
    about: dict[str, Any] = {"threads": torch.get_num_threads(), "blocks": EM_BLOCKS}
    try:
        about["slot_attention"] = version("slot-attention")
    except PackageNotFoundError:
        about["slot_attention"] = None
    return em_table(report, about["slot_attention"] is not None), about | asdict(report)


def em_table(report: EmReport, with_package: bool) -> Table:
    """A row a form and size; below, what is not in rows."""
    machine, found = report.machine, ", ".join(f"{axis} {value:.2f}" for axis, value in report.exponents.items())
    caption = (
        f"copies {machine.bandwidth / 1e9:.1f} GB/s, products of matrices {machine.flops / 1e9:.0f} GFLOP/s; "
        f"exponents of psa-proj's time: {found}"
    )
    if not with_package:
        caption += "; the slot-attention package is not installed (pip install slot-attention), so it is not here"
    table = Table(title=f"forward and backward, {torch.get_num_threads()} threads", caption=caption)
    for heading in (
        "B x N x K x D, T",
        "form",
        "ms",
        "range",
        "times psa-proj",
        "range",
        "by CPU",
        "peak MiB",
        "roofline ms",
    ):
        table.add_column(heading, justify="left" if heading in ("B x N x K x D, T", "form") else "right")
    for cost in report.costs:
        size = cost.size
        table.add_row(
            f"{size.B} x {size.N} x {size.K} x {size.D}, {size.T}",
            cost.form,
            f"{cost.ms:.1f}",
            f"{cost.ms_low:.1f} to {cost.ms_high:.1f}",
            f"{cost.ratio:.2f}",
            f"{cost.ratio_low:.2f} to {cost.ratio_high:.2f}",
            f"{cost.cpu_ratio:.2f}",
            f"{cost.peak_bytes / MIB:.1f}",
            f"{cost.roofline_ms:.1f}" if cost.roofline_ms else "",
        )
    return table


def aggregate_suite(device: str) -> tuple[Table, dict[str, Any]]:
    """A reduction beside scikit-learn's mixture, on the CPU."""
    with progress_bar() as bar:
        task = bar.add_task("measuring", total=2 * (REDUCTION_BLOCKS + 1), figures="")
        costs = bench_aggregate(REDUCTION, REDUCTION_BLOCKS, lambda name: bar.update(task, advance=1, figures=name))
    size = f"{REDUCTION.num_images:,} images of {REDUCTION.num_slots} slots, D = {REDUCTION.num_features}"
    table = Table(title=f"{size}, to {REDUCTION.num_components} components in {REDUCTION.num_passes} passes")
    for heading in ("", "seconds", "range", "million Gaussians/s", "peak MiB", "times faster", "range"):
        table.add_column(heading, justify="right" if heading else "left")
    for cost in costs:
        table.add_row(
            cost.method,
            f"{cost.seconds:.2f}",
            f"{cost.seconds_low:.2f} to {cost.seconds_high:.2f}",
            f"{cost.gaussians_per_second / 1e6:.2f}",
            f"{cost.peak_bytes / MIB:.1f}",
            f"{cost.speedup:.2f}",
            f"{cost.speedup_low:.2f} to {cost.speedup_high:.2f}",
        )
    about = {"scikit_learn": version("scikit-learn"), "threads": torch.get_num_threads()}
    return table, {**about, "problem": asdict(REDUCTION), "costs": [asdict(cost) for cost in costs]}
