"""`psa bench --suite fused`: the fused kernels on a CUDA device, beside the plain path and a copy of the same memory.

Keys are values, as where a member has no projections. The plain path gets its tokens in float32, as a member hands them
to it. What must move is each token once forward, and once more, with its gradient, backward.
"""

import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from psa.errors import ConfigError
from psa.inference.fused_moments import SETTING, unfit
from psa.inference.slot_moments import SlotMoments, slot_moments

Work = Callable[[], object]


@dataclass(frozen=True)
class FusedProblem:
    """Sizes; ``copied`` is the bytes of the copy that bandwidth is measured by."""

    batch: int = 64
    num_tokens: int = 16384
    num_slots: int = 11
    num_features: int = 64
    dtype: str = "bfloat16"
    copied: int = 1 << 32
    repeats: int = 20


@dataclass(frozen=True)
class FusedCost:
    """Time of an E-step, or of the copy; medians over blocks.

    Attributes:
        work: ``copy``, or forward, or forward and backward, ``fused`` or ``plain``.
        milliseconds, low, high: Median, fastest and slowest block.
        gigabytes: What must move; for the copy, bytes read and bytes written.
        of_copy: Those gigabytes a second, over the copy's.
        speedup: The plain path's time over this one's.
    """

    work: str
    milliseconds: float
    low: float
    high: float
    gigabytes: float
    of_copy: float
    speedup: float


@dataclass(frozen=True)
class FusedErrors:
    """Largest distances of the fused kernels from double precision, on the first two images.

    Attributes:
        moments: |x - reference| / (1 + |reference|) of masses, means and second moments.
        natural: The parameters' gradient, relative to its largest entry.
        tokens: The tokens' gradient, in units of the last place of its dtype.
    """

    moments: float
    natural: float
    tokens: float


@contextmanager
def fused_is(setting: str) -> Iterator[None]:
    """PSA_FUSED for a while."""
    before = os.environ.get(SETTING)
    os.environ[SETTING] = setting
    try:
        yield
    finally:
        if before is None:
            del os.environ[SETTING]
        else:
            os.environ[SETTING] = before


def draw_problem(problem: FusedProblem, device: str) -> tuple[Tensor, Tensor]:
    """Normal tokens (B, N, D) and parameters (B, K, 2 D + 1) of unit variance about normal means."""
    generator = torch.Generator().manual_seed(0)
    shape = (problem.batch, problem.num_tokens, problem.num_features)
    tokens = torch.randn(shape, generator=generator).to(device, getattr(torch, problem.dtype))
    loc = torch.randn(problem.batch, problem.num_slots, problem.num_features, generator=generator)
    natural = torch.cat([torch.full_like(loc, -0.5), loc, -0.5 * loc.square().sum(-1, keepdim=True)], dim=-1)
    return tokens, natural.to(device)


def bench_fused(
    problem: FusedProblem = FusedProblem(),
    device: str = "cuda",
    blocks: int = 9,
    progress: Callable[[str], None] = lambda name: None,
) -> tuple[list[FusedCost], FusedErrors]:
    """Time the copy, the kernels and the plain path in turns.

    Raises:
        ConfigError: If the kernels cannot run there; the message says why.
    """
    sample = torch.empty(1, 1, problem.num_features, dtype=getattr(torch, problem.dtype), device=device)
    if reason := unfit(sample, sample, problem.num_slots):
        raise ConfigError(f"--suite fused: {reason}")
    tokens, natural = draw_problem(problem, device)
    errors = distances(tokens[:2].clone(), natural[:2].clone())
    works = _works(problem, tokens, natural)
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(blocks):
        for name, work in works.items():
            progress(name)
            times[name].append(_milliseconds(work, problem.repeats, tokens.is_cuda))
    return _costs(times, problem, tokens.numel() * tokens.element_size()), errors


def distances(tokens: Tensor, natural: Tensor) -> FusedErrors:
    """How far the kernels are from the plain path in double precision."""
    generator = torch.Generator().manual_seed(1)
    batch, num_slots, terms = natural.shape
    sizes = ((batch, num_slots), *[(batch, num_slots, terms // 2)] * 2)
    incoming = [torch.randn(size, generator=generator).to(natural.device) for size in sizes]
    with fused_is("always"):
        found, gradients = _with_gradients(tokens, natural, incoming)
    with fused_is("never"):
        true, references = _with_gradients(tokens.double(), natural.double(), [g.double() for g in incoming])
    assert found.second is not None
    assert true.second is not None
    pairs = [(found.log_mass, true.log_mass), (found.mean, true.mean), (found.second, true.second)]
    moments = max(float(((one - other).abs() / (1.0 + other.abs())).max()) for one, other in pairs)
    of_tokens, of_natural = references
    least = of_tokens.abs().max() * 2.0**-16
    unit = 2.0 ** of_tokens.abs().clamp(min=float(least)).log2().floor() * torch.finfo(tokens.dtype).eps
    return FusedErrors(
        moments,
        float((gradients[1] - of_natural).abs().max() / of_natural.abs().max()),
        float(((gradients[0].double() - of_tokens).abs() / unit).max()),
    )


def _with_gradients(tokens: Tensor, natural: Tensor, incoming: list[Tensor]) -> tuple[SlotMoments, tuple[Tensor, ...]]:
    tokens, natural = tokens.detach().requires_grad_(), natural.detach().requires_grad_()
    found = slot_moments(tokens, tokens, natural)
    assert found.second is not None
    results = [found.log_mass, found.mean, found.second]
    return found, torch.autograd.grad(results, [tokens, natural], incoming)


def _works(problem: FusedProblem, tokens: Tensor, natural: Tensor) -> dict[str, Work]:
    source = torch.empty(problem.copied // 4, device=tokens.device).normal_()
    target = torch.empty_like(source)
    wide = tokens.float()
    incoming = [torch.ones_like(natural[..., 0]), *torch.ones_like(natural[..., :-1]).chunk(2, dim=-1)]
    works: dict[str, Work] = {"copy": lambda: target.copy_(source)}
    for name, setting, given in (("fused", "always", tokens), ("plain", "never", wide)):

        def forward(setting: str = setting, given: Tensor = given) -> object:
            with fused_is(setting), torch.no_grad():
                return slot_moments(given, given, natural)

        def both(setting: str = setting, given: Tensor = given) -> object:
            with fused_is(setting):
                return _with_gradients(given, natural, incoming)

        works |= {f"{name}, forward": forward, f"{name}, forward and backward": both}
    return {name: _replayed(work) if tokens.is_cuda else work for name, work in works.items()}


def _replayed(work: Work) -> Work:
    """The work as a CUDA graph, so that launches from Python are not what is timed."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def _milliseconds(work: Work, repeats: int, cuda: bool) -> float:
    """Of one call."""
    if not cuda:
        start = perf_counter()
        work()
        return 1e3 * (perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    work()
    begin.record()
    for _ in range(repeats):
        work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / repeats


def _costs(times: dict[str, list[float]], problem: FusedProblem, token_bytes: int) -> list[FusedCost]:
    median = {name: statistics.median(spent) for name, spent in times.items()}
    bandwidth = 2 * problem.copied / median["copy"]
    costs = []
    for name, spent in times.items():
        passes = 3 if name.endswith("backward") else 1
        moved = 2 * problem.copied if name == "copy" else passes * token_bytes
        costs.append(
            FusedCost(
                name,
                median[name],
                min(spent),
                max(spent),
                1e-9 * moved,
                moved / median[name] / bandwidth,
                median[name.replace("fused", "plain")] / median[name],
            )
        )
    return costs
