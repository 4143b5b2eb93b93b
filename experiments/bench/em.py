"""`psa bench --suite em`: what T E/M steps cost, forward and backward, projections included.

psa-proj beside Slot Attention (the package, with and without the parts that psa-proj has no counterpart of) and beside
its own algorithm in broadcast form, which builds (B, K, N, D). All in one process, in turns, each twice in a turn, of
which the second counts. The roofline is the time
that the bytes which must move would take at the copy bandwidth, or the operations at the rate of a large product of
matrices, whichever is longer, both measured in the same run.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter, process_time
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from psa.experiments.bench.em_forms import Form, Size, forms

GRID = (Size(), Size(B=64, N=196), Size(B=16, N=256, K=5, D=16), Size(B=2, N=4096, K=11))
AXES: Mapping[str, Sequence[int]] = MappingProxyType(
    {"N": (1024, 2048, 4096, 8192), "K": (8, 16, 32, 64), "T": (3, 6, 12, 24), "D": (32, 64, 128, 256)}
)
OURS = "psa-proj"


@dataclass(frozen=True)
class EmCost:
    """Cost of one form at one size: medians over blocks.

    Attributes:
        form: ``psa-proj``, ``slot attention``, ``slot attention, whole``, ``broadcast``.
        size: Of the problem.
        ms, ms_low, ms_high: Wall time of a forward and backward pass; fastest and slowest block.
        ratio, ratio_low, ratio_high: This form's time over psa-proj's of the same block.
        cpu_ms: Processor time, all threads; on a shared machine it says more than wall time.
        cpu_ratio: Median of this form's over psa-proj's of the same block.
        peak_bytes: Most memory allocated at once, above what was held before.
        roofline_ms: Of psa-proj; 0 for the others.
    """

    form: str
    size: Size
    ms: float
    ms_low: float
    ms_high: float
    ratio: float
    ratio_low: float
    ratio_high: float
    cpu_ms: float
    cpu_ratio: float
    peak_bytes: int
    roofline_ms: float


@dataclass(frozen=True)
class Machine:
    """What the roofline is made of: copied bytes a second, read and written; float32 operations a second."""

    bandwidth: float
    flops: float


@dataclass(frozen=True)
class EmReport:
    """Costs over the grid, the machine, and exponents of psa-proj's time by axis."""

    costs: list[EmCost]
    machine: Machine
    exponents: dict[str, float]
    times: dict[str, dict[int, float]]


def must_move(size: Size) -> int:
    """Bytes of psa-proj, float32: tokens read; keys and values written, read by every step forward and backward.

    And their gradients written and read, the tokens read again and their gradient written. Responsibilities need not
    move.
    """
    passes = 1 + 2 + 2 * size.T + 2 * size.T + 2 + 2 + 1 + 1
    return 4 * passes * size.B * size.N * size.D


def must_compute(size: Size) -> int:
    """Operations of psa-proj: three products a projection; seven a step, of slots and twice the features."""
    projections = 2 * 3 * 2 * size.B * size.N * size.D**2
    return projections + size.T * 7 * 2 * size.B * size.N * size.K * 2 * size.D


def roofline_ms(size: Size, machine: Machine) -> float:
    """The least time of psa-proj on a machine."""
    return 1e3 * max(must_move(size) / machine.bandwidth, must_compute(size) / machine.flops)


def bench_em(
    device: str = "cpu",
    grid: Sequence[Size] = GRID,
    blocks: int = 9,
    axes: Mapping[str, Sequence[int]] = AXES,
    progress: Callable[[str], None] = lambda name: None,
) -> EmReport:
    """Time all forms at every size in turns, then psa-proj along every axis.

    Args:
        device: A torch device.
        grid: Sizes for all forms.
        blocks: Turns, after one that is not counted.
        axes: Values of one size while the others stay at the grid's first.
        progress: Called with a name before each block.
    """
    machine = measure_machine(device)
    costs = [cost for size in grid for cost in _compare(size, device, blocks, machine, progress)]
    times = {axis: _along(grid[0], axis, values, device, blocks, progress) for axis, values in axes.items()}
    return EmReport(costs, machine, {axis: exponent(found) for axis, found in times.items()}, times)


def exponent(times: dict[int, float]) -> float:
    """Slope of log time on log size."""
    return float(np.polyfit(np.log(list(times)), np.log(list(times.values())), 1)[0])


def measure_machine(device: str, repeats: int = 7, num_bytes: int = 1 << 27, width: int = 1024) -> Machine:
    """Copy bandwidth and the rate of a float32 product of square matrices: the best of some repeats."""
    source = torch.ones(num_bytes // 4, device=device)
    target, matrix = torch.empty_like(source), torch.ones(width, width, device=device)
    copied = min(_seconds(lambda: target.copy_(source), device)[0] for _ in range(repeats))
    product = torch.empty_like(matrix)
    multiplied = min(_seconds(lambda: torch.mm(matrix, matrix, out=product), device)[0] for _ in range(repeats))
    return Machine(2 * num_bytes / copied, 2 * width**3 / multiplied)


def _seconds(work: Callable[[], object], device: str) -> tuple[float, float]:
    """Wall and processor time."""
    _wait(device)
    begun, cpu_begun = perf_counter(), process_time()
    work()
    _wait(device)
    return perf_counter() - begun, process_time() - cpu_begun


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def _problem(size: Size, device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(size.B, size.N, size.D, generator=generator)
    slots = torch.randn(size.B, size.K, size.D, generator=generator)
    return tokens.to(device).requires_grad_(), slots.to(device).requires_grad_()


def run_once(form: Form, tokens: Tensor, slots: Tensor) -> None:
    """Forward and backward, gradients to tokens, slots and weights."""
    tokens.grad = slots.grad = None
    form(tokens, slots).square().sum().backward()


def _compare(size: Size, device: str, blocks: int, machine: Machine, progress: Callable[[str], None]) -> list[EmCost]:
    contenders, problem = forms(size, device), _problem(size, device)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for block in range(blocks + 1):
        progress(f"N {size.N}, block {block}")
        for name, form in contenders.items():
            run_once(form, *problem)  # what ran before it left the caches and the heap as it needed them
            seconds = _seconds(partial(run_once, form, *problem), device)
            if block > 0:
                times[name].append(seconds)
    costs = []
    for name, spent in times.items():
        (wall, cpu), (our_wall, our_cpu) = zip(*spent, strict=True), zip(*times[OURS], strict=True)
        ratios, cpu_ratios = (
            [one / ours for one, ours in zip(theirs, own, strict=True)]
            for theirs, own in ((wall, our_wall), (cpu, our_cpu))
        )
        least = roofline_ms(size, machine) if name == OURS else 0.0
        for tensor in problem:
            tensor.grad = None
        peak = peak_bytes(partial(run_once, contenders[name], *problem), device)
        costs.append(
            EmCost(
                form=name,
                size=size,
                ms=1e3 * statistics.median(wall),
                ms_low=1e3 * min(wall),
                ms_high=1e3 * max(wall),
                ratio=statistics.median(ratios),
                ratio_low=min(ratios),
                ratio_high=max(ratios),
                cpu_ms=1e3 * statistics.median(cpu),
                cpu_ratio=statistics.median(cpu_ratios),
                peak_bytes=peak,
                roofline_ms=least,
            )
        )
    return costs


def _along(
    base: Size, axis: str, values: Sequence[int], device: str, blocks: int, progress: Callable[[str], None]
) -> dict[int, float]:
    """psa-proj's median time in ms at every value, the values taking turns; processor time on a CPU."""
    cases = {}
    for value in values:
        size = replace(base, **{axis: value})
        cases[value] = forms(size, device, peers=False)[OURS], _problem(size, device)
    times: dict[int, list[float]] = {value: [] for value in values}
    for block in range(blocks + 1):
        progress(f"along {axis}, block {block}")
        for value, (form, problem) in cases.items():
            wall, cpu = _seconds(partial(run_once, form, *problem), device)
            if block > 0:
                times[value].append(1e3 * (cpu if device == "cpu" else wall))
    return {value: statistics.median(spent) for value, spent in times.items()}


def peak_bytes(work: Callable[[], object], device: str = "cpu") -> int:
    """Most bytes allocated at once by tensors, above what was held before: torch's profiler, or CUDA's own counter."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        _wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    results = profiler.profiler
    assert results is not None
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    held = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(held.max(initial=0))
