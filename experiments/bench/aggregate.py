"""`psa bench --suite aggregate`: reducing the slots of many images to a few components, beside scikit-learn.

Both take the same number of EM passes from means drawn by k-means++, diagonal covariances, the same slots. They differ
in what a slot is: ours is a Gaussian with a weight, read again from its source in every pass; scikit-learn's
GaussianMixture has points of equal weight in memory, so it gets the slots' means.
"""

import statistics
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from psa.experiments.bench.em import peak_bytes
from psa.inference.aggregate import reduce
from psa.inference.posterior_stream import SlotChunk
from psa.inference.reduction import ReductionOptions

AT_ONCE = 1000  # images of a chunk that the source gives


@dataclass(frozen=True)
class ReductionProblem:
    """How much is reduced.

    Attributes:
        num_images, num_slots, num_features: M, K, D: M K Gaussians.
        num_types: Clusters that their means are drawn about.
        num_components: G of the result.
        num_passes: Of EM over all slots.
    """

    num_images: int = 10_000
    num_slots: int = 7
    num_features: int = 32
    num_types: int = 16
    num_components: int = 16
    num_passes: int = 10


@dataclass(frozen=True)
class ReductionCost:
    """Cost of a reduction: medians over blocks.

    Attributes:
        method: ``psa`` or ``scikit-learn``.
        seconds, seconds_low, seconds_high: Wall time, start included.
        gaussians_per_second: Slots times passes a second.
        peak_bytes: Most memory that the method allocated for itself.
        speedup, speedup_low, speedup_high: scikit-learn's seconds over these of the same block.
    """

    method: str
    seconds: float
    seconds_low: float
    seconds_high: float
    gaussians_per_second: float
    peak_bytes: int
    speedup: float
    speedup_low: float
    speedup_high: float


def slot_source(problem: ReductionProblem) -> tuple[Callable[[], Iterator[SlotChunk]], Tensor]:
    """A re-readable source of posteriors, and the means of all slots, (M K, D)."""
    generator = torch.Generator().manual_seed(0)
    types = 2.0 * torch.randn(problem.num_types, problem.num_features, generator=generator)
    size = (problem.num_images, problem.num_slots)
    own = torch.randint(problem.num_types, size, generator=generator)
    loc = types[own] + torch.randn(*size, problem.num_features, generator=generator)
    var = 0.1 + 0.1 * torch.rand(loc.shape, generator=generator)
    weights = torch.rand(size, generator=generator).softmax(1)

    def read() -> Iterator[SlotChunk]:
        for first in range(0, problem.num_images, AT_ONCE):
            part = slice(first, first + AT_ONCE)
            yield SlotChunk(weights[part], loc[part], var[part])

    return read, loc.flatten(0, 1)


def bench_aggregate(
    problem: ReductionProblem = ReductionProblem(), blocks: int = 5, progress: Callable[[str], None] = lambda name: None
) -> list[ReductionCost]:
    """Time both in turns, after a turn that is not counted and in which memory is measured.

    Args:
        problem: How much is reduced.
        blocks: Turns that are counted.
        progress: Called with a name before each turn of a method.
    """
    source, means = slot_source(problem)
    points = means.numpy()
    options = ReductionOptions(num_passes=problem.num_passes, num_restarts=1, start_passes=1, tol=0.0)

    def ours() -> None:
        reduce(source, problem.num_components, options=options)

    def theirs() -> None:
        mixture = GaussianMixture(
            problem.num_components,
            covariance_type="diag",
            tol=0.0,
            max_iter=problem.num_passes,
            init_params="k-means++",
            random_state=0,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # all passes are meant
            mixture.fit(points)

    methods = {"psa": (ours, peak_bytes), "scikit-learn": (theirs, traced_peak)}
    peaks: dict[str, int] = {}
    times: dict[str, list[float]] = {name: [] for name in methods}
    for name, (work, peak) in methods.items():
        progress(f"{name}, memory")
        peaks[name] = peak(work)
    for block in range(blocks):
        for name, (work, _) in methods.items():
            progress(f"{name}, block {block + 1}")
            begun = perf_counter()
            work()
            times[name].append(perf_counter() - begun)
    total = problem.num_images * problem.num_slots * problem.num_passes
    return [_cost(name, spent, times["scikit-learn"], total, peaks[name]) for name, spent in times.items()]


def traced_peak(work: Callable[[], object]) -> int:
    """Most bytes that NumPy and Python allocated at once."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _cost(name: str, spent: list[float], theirs: list[float], total: int, peak: int) -> ReductionCost:
    speedup = [other / own for other, own in zip(theirs, spent, strict=True)]
    median = statistics.median(spent)
    return ReductionCost(
        name,
        median,
        min(spent),
        max(spent),
        total / median,
        peak,
        statistics.median(speedup),
        min(speedup),
        max(speedup),
    )
