"""`psa bench --suite train`: images a second of a run that one process trains, and of the same run trained by two.

Whole runs of the demo's configuration, started as `psa train` starts them
(:func:`psa.inference.launching.train`): two processes are spawned, find each other, and sum their gradients after every
step. What is timed is the steps alone, by the first process's word of each; starting up is not.
"""

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch

from psa.inference.config import RECIPE, override
from psa.inference.interrupts import Interrupted
from psa.inference.launching import Request, train


@dataclass(frozen=True)
class Arrangement:
    """Who trains.

    Attributes:
        processes: How many.
        threads: Of each process.
        batch_size: Images of each process in a step.
    """

    processes: int
    threads: int
    batch_size: int


# One, with a thread and with two; two with the same images a step between them; two with as many each.
ARRANGEMENTS = (Arrangement(1, 1, 16), Arrangement(1, 2, 16), Arrangement(2, 1, 8), Arrangement(2, 1, 16))


@dataclass(frozen=True)
class ScalingProblem:
    """How it is measured.

    Attributes:
        arrangements: The first is what the others are held against.
        settings: Of the recipe, as ``key=value``.
        rounds: Runs of each arrangement, taking turns.
        warmup_steps: The first steps, not counted; the last one is not either, for an evaluation comes with it.
        steps: Counted.
    """

    arrangements: tuple[Arrangement, ...] = ARRANGEMENTS
    settings: tuple[str, ...] = ("data.num_scenes=512", "training.num_held_out=16")
    rounds: int = 3
    warmup_steps: int = 5
    steps: int = 30

    @property
    def num_runs(self) -> int:
        """Runs of all arrangements."""
        return len(self.arrangements) * self.rounds


@dataclass(frozen=True)
class ScalingCost:
    """Speed of an arrangement: medians over rounds.

    Attributes:
        processes, threads, batch_size: The arrangement.
        step_ms: Wall time of a step.
        images_per_second, images_per_second_low, images_per_second_high: Of all processes together.
        times, times_low, times_high: Images a second over the first arrangement's of the same round.
    """

    processes: int
    threads: int
    batch_size: int
    step_ms: float
    images_per_second: float
    images_per_second_low: float
    images_per_second_high: float
    times: float
    times_low: float
    times_high: float


def possible(arrangements: Sequence[Arrangement], device: str) -> tuple[Arrangement, ...]:
    """Those that there are devices for: processes share a CPU, and nothing else."""
    kind = torch.device(device).type
    most = {"cpu": None, "cuda": torch.cuda.device_count()}.get(kind, 1)
    return tuple(who for who in arrangements if most is None or who.processes <= most)


def bench_processes(
    problem: ScalingProblem = ScalingProblem(),
    device: str = "cpu",
    progress: Callable[[str], None] = lambda name: None,
) -> list[ScalingCost]:
    """Time the steps of whole runs; an arrangement that there are too few devices for is left out.

    Args:
        problem: How it is measured.
        device: A torch device.
        progress: Called before each run.

    Raises:
        PsaError: If a run fails.
    """
    threads = torch.get_num_threads()
    arrangements = possible(problem.arrangements, device)
    seconds: dict[Arrangement, list[float]] = {who: [] for who in arrangements}
    try:
        for _ in range(problem.rounds):
            for who in arrangements:
                progress(f"{who.processes} x {who.threads}")
                seconds[who].append(_step_seconds(problem, who, device))
    finally:
        torch.set_num_threads(threads)
    speeds = {who: [who.processes * who.batch_size / step for step in seconds[who]] for who in arrangements}
    return [_cost(who, speeds[who], speeds[arrangements[0]]) for who in arrangements]


def _step_seconds(problem: ScalingProblem, who: Arrangement, device: str) -> float:
    """Wall seconds of a step of one run."""
    settings = (
        *problem.settings,
        f"training.device={device}",
        f"training.devices={who.processes}",
        f"training.threads={who.threads}",
        f"training.batch_size={who.batch_size}",
        f"training.steps={problem.warmup_steps + problem.steps + 1}",
    )
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        request = Request(Path(folder) / "run", override(RECIPE, settings))
        try:
            train(request, lambda step, row: times.append(perf_counter()))
        except Interrupted:
            raise KeyboardInterrupt from None
    first, last = times[problem.warmup_steps - 1], times[-2]
    return (last - first) / problem.steps


def _cost(who: Arrangement, speeds: Sequence[float], others: Sequence[float]) -> ScalingCost:
    times = [speed / other for speed, other in zip(speeds, others, strict=True)]
    speed = statistics.median(speeds)
    return ScalingCost(
        processes=who.processes,
        threads=who.threads,
        batch_size=who.batch_size,
        step_ms=1e3 * who.processes * who.batch_size / speed,
        images_per_second=speed,
        images_per_second_low=min(speeds),
        images_per_second_high=max(speeds),
        times=statistics.median(times),
        times_low=min(times),
        times_high=max(times),
    )
