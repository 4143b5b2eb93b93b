"""`psa bench --suite fits`: many small mixtures at once, against a loop of scikit-learn's BayesianGaussianMixture.

And of pomegranate's mixture, which is fitted by maximum likelihood, where it is installed.

Same tokens, prior, start and number of iterations, and a bound in every iteration on both sides. The models differ in
one term: scikit-learn's diagonal covariances keep the Wishart's degrees of freedom, so that axis d has expected log
precision digamma((nu - d) / 2) where ours has digamma(a), nu = 2 a. In one dimension they are one model.
"""

import itertools
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter, process_time

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import BayesianGaussianMixture
from threadpoolctl import threadpool_limits
from torch import Tensor

from psa.conjugate import token_features
from psa.experiments.bench.pomegranate_fits import fit_pomegranate
from psa.inference.conjugate_steps import conjugate_update
from psa.inference.em import MixtureState
from psa.inference.fits import LocalMixtureFit
from psa.inference.variational import FitOptions, fit_local_mixture
from psa.models.local_mixture import LocalMixturePrior

PRIOR = LocalMixturePrior()
SPREAD = 4.0  # of the clusters' centres, in standard deviations of a cluster


@dataclass(frozen=True)
class FitProblem:
    """How much is fitted.

    Attributes:
        num_sets: B token sets.
        num_tokens, num_features, num_slots: N, D, K.
        num_iterations: All are taken.
    """

    num_sets: int = 1000
    num_tokens: int = 384
    num_features: int = 2
    num_slots: int = 5
    num_iterations: int = 100


@dataclass(frozen=True)
class FitCost:
    """Cost of fitting all token sets: medians over blocks.

    Attributes:
        method: ``psa``, ``scikit-learn`` or ``pomegranate``.
        dtype, device, threads: Where it ran; ``threads`` limits torch and the BLAS alike.
        seconds: Wall time; a block of scikit-learn's is a part of the sets, scaled to all of them.
        seconds_low, seconds_high: Fastest and slowest block.
        cpu_seconds: Processor time, all threads.
        speedup: scikit-learn's seconds, with as many threads, over these seconds of the same block.
        speedup_low, speedup_high: Least and greatest of a block.
    """

    method: str
    dtype: str
    device: str
    threads: int
    seconds: float
    seconds_low: float
    seconds_high: float
    cpu_seconds: float
    speedup: float
    speedup_low: float
    speedup_high: float


def token_sets(problem: FitProblem) -> Float64[Tensor, "batch tokens features"]:
    """Sets of K equally likely clusters of unit variance, centres Normal(0, SPREAD^2)."""
    generator = torch.Generator().manual_seed(0)
    shape = (problem.num_sets, problem.num_tokens)
    centres = SPREAD * torch.randn(
        problem.num_sets, problem.num_slots, problem.num_features, generator=generator, dtype=torch.float64
    )
    cluster = torch.randint(problem.num_slots, shape, generator=generator)
    own = centres.gather(1, cluster[..., None].expand(-1, -1, problem.num_features))
    return own + torch.randn(own.shape, generator=generator, dtype=torch.float64)


def first_tokens(problem: FitProblem) -> Int64[Tensor, "batch slots"]:
    """The one token that each slot owns at the start, as ``random_from_data`` draws it from the set's number."""
    draws = (np.random.RandomState(seed) for seed in range(problem.num_sets))
    return torch.from_numpy(
        np.stack([draw.choice(problem.num_tokens, size=problem.num_slots, replace=False) for draw in draws])
    )


def start_state(tokens: Float[Tensor, "batch tokens features"], owned: Int64[Tensor, "batch slots"]) -> MixtureState:
    """The M-step after every slot was given its one token, and the other tokens to none."""
    features = token_features(tokens, full=False)
    sums = features.gather(2, owned[:, None].expand(-1, features.shape[1], -1)).transpose(1, 2)
    return conjugate_update(sums, PRIOR.concentration, PRIOR.components(tokens))


def fit_ours(
    tokens: Float[Tensor, "batch tokens features"], owned: Int64[Tensor, "batch slots"], num_iterations: int
) -> LocalMixtureFit:
    """All sets as one batch; waits for the device."""
    options = FitOptions(start=start_state(tokens, owned))
    fit = fit_local_mixture(tokens, PRIOR, owned.shape[1], num_iterations=num_iterations, tol=0.0, options=options)
    assert isinstance(fit, LocalMixtureFit)
    fit.elbo.cpu()  # nothing is returned before the device is done
    return fit


def fit_theirs(
    sets: Float64[np.ndarray, "batch tokens features"], seeds: Sequence[int], num_slots: int, num_iterations: int
) -> list[BayesianGaussianMixture]:
    """A loop over sets; Gamma(a, b) on a precision is a Wishart with 2 a degrees of freedom and inverse scale 2 b."""
    num_features = sets.shape[2]
    fits = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # all iterations are meant
        for values, seed in zip(sets, seeds, strict=True):
            mixture = BayesianGaussianMixture(
                n_components=num_slots,
                covariance_type="diag",
                tol=0.0,
                reg_covar=0.0,
                max_iter=num_iterations,
                init_params="random_from_data",
                weight_concentration_prior_type="dirichlet_distribution",
                weight_concentration_prior=PRIOR.concentration,
                mean_precision_prior=PRIOR.loc_strength,
                mean_prior=np.full(num_features, PRIOR.loc),
                degrees_of_freedom_prior=2.0 * PRIOR.precision_shape,
                covariance_prior=np.full(num_features, 2.0 * PRIOR.precision_rate),
                random_state=seed,
            )
            fits.append(mixture.fit(values))
    return fits


@contextmanager
def limited_to(threads: int) -> Iterator[None]:
    """As many threads for torch, and for the BLAS of NumPy and SciPy."""
    before = torch.get_num_threads()
    try:
        with threadpool_limits(limits=threads):
            torch.set_num_threads(threads)
            yield
    finally:
        torch.set_num_threads(before)


Place = tuple[str, str, str]  # method, dtype, device
Work = Callable[[range], float]  # fits these sets, or all; says which part of all it did


def bench_fits(
    problem: FitProblem = FitProblem(),
    device: str = "cpu",
    blocks: int = 10,
    threads: Sequence[int] = (2, 1),
    progress: Callable[[str], None] = lambda block: None,
    with_pomegranate: bool = False,
) -> list[FitCost]:
    """Time both in turns: a block is a part of scikit-learn's loop, then all sets at once by ours.

    Args:
        problem: How much is fitted.
        device: A torch device; where it is not the CPU, ours is timed there as well.
        blocks: Parts into which scikit-learn's loop is cut, each set in one of them.
        threads: Each number of threads is a round of its own.
        progress: Called with the block's name before each.
        with_pomegranate: Whether pomegranate fits one set of every block, too; its time is scaled to all.

    Raises:
        ValueError: If there are more blocks than sets.
    """
    if not 1 <= blocks <= problem.num_sets:
        raise ValueError(f"blocks must be from 1 to the {problem.num_sets} sets, got {blocks}")
    contenders = _contenders(problem, ("cpu",) if device == "cpu" else ("cpu", device))
    if with_pomegranate:
        contenders["pomegranate", "float32", "cpu"] = _pomegranate(problem)
    costs = []
    for count in threads:
        with limited_to(count):
            for work in contenders.values():
                work(range(1))
            times: dict[Place, list[tuple[float, float]]] = {place: [] for place in contenders}
            for block in range(blocks):
                progress(f"threads {count}, block {block + 1}")
                for place, work in contenders.items():
                    times[place].append(_timed(work, range(block, problem.num_sets, blocks)))
        costs += _costs(times, count)
    return costs


def _contenders(problem: FitProblem, devices: Sequence[str]) -> dict[Place, Work]:
    tokens, owned = token_sets(problem), first_tokens(problem)
    sets = tokens.numpy()

    def loop(part: range) -> float:
        fit_theirs(sets[part], part, problem.num_slots, problem.num_iterations)
        return len(part) / problem.num_sets

    def batch(given: Tensor, first: Tensor) -> Work:
        def work(part: range) -> float:
            fit_ours(given, first, problem.num_iterations)
            return 1.0

        return work

    contenders: dict[Place, Work] = {("scikit-learn", "float64", "cpu"): loop}
    for device, dtype in itertools.product(devices, (torch.float64, torch.float32)):
        place = ("psa", str(dtype).removeprefix("torch."), device)
        contenders[place] = batch(tokens.to(device, dtype), owned.to(device))
    return contenders


def _pomegranate(problem: FitProblem) -> Work:
    tokens, owned = token_sets(problem).float(), first_tokens(problem)

    def one(part: range) -> float:
        chosen = list(part[:1])
        fit_pomegranate(tokens[chosen], owned[chosen], problem.num_iterations)
        return 1.0 / problem.num_sets

    return one


def _timed(work: Work, part: range) -> tuple[float, float]:
    """Wall and processor time in seconds, scaled to all sets."""
    cpu_start, wall_start = process_time(), perf_counter()
    share = work(part)
    return (perf_counter() - wall_start) / share, (process_time() - cpu_start) / share


def _costs(times: dict[Place, list[tuple[float, float]]], threads: int) -> list[FitCost]:
    """scikit-learn is the first contender."""
    loop, *_ = times.values()
    costs = []
    for (method, dtype, device), spent in times.items():
        wall, cpu = zip(*spent, strict=True)
        speedup = [theirs / seconds for (theirs, _), seconds in zip(loop, wall, strict=True)]
        median = statistics.median
        costs.append(
            FitCost(
                method,
                dtype,
                device,
                threads,
                median(wall),
                min(wall),
                max(wall),
                median(cpu),
                median(speedup),
                min(speedup),
                max(speedup),
            )
        )
    return costs
