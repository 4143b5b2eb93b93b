"""EM on weighted Gaussians: many slots' posteriors become a mixture of few (docs/aggregate.md, model.md section 4).

A slot i of weight w_i stands for its whole Normal(mu_i, diag var_i), so its expected features
E_i[T(s)] = (mu_i^2 + var_i, mu_i, 1) take the place of a token's, and the E and M steps are those of maximum likelihood
(:mod:`psa.inference.point_estimates`). Sums over slots are additive: they are taken a block at a time, in float64, and
over processes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from psa.inference.ascent import EStep, Tokens, expect
from psa.inference.em import MixtureState
from psa.inference.initialisers import KMeansPlusPlus, TokenView
from psa.inference.point_estimates import MaximumLikelihoodRule
from psa.inference.posterior_stream import SlotStream
from psa.inference.starts import token_scale
from psa.inference.survey import Group, Survey, sample_images, summed

CACHED_BYTES = 1 << 23  # of a block on a CPU: more is not faster
DEVICE_BYTES = 1 << 28
START_SLOTS = 1 << 15  # a larger sample does not make a better start
START_VARIANCE = 1e-4  # of the slots' own: the first E-step gives each slot to its nearest mean


@dataclass(frozen=True)
class ReductionOptions:
    """How to reduce.

    Attributes:
        num_passes: Most readings of the whole source by EM, >= 1; two more are made before it.
        tol: EM ends when the objective changed by less, in nats a slot, >= 0; 0 takes all passes.
        num_restarts: Starts, each followed by EM on a sample of the slots; the best goes on, >= 1.
        start_passes: Most EM steps on the sample, >= 1.
        memory: Bytes that may be held beside a chunk of the source: the sample takes at most half of them.
        seed: Of the sample and the starts.

    Raises:
        ValueError: If a value is outside its support.
    """

    num_passes: int = 20
    tol: float = 1e-6
    num_restarts: int = 4
    start_passes: int = 50
    memory: int = 1 << 29
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_passes", "num_restarts", "start_passes", "memory"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.tol >= 0:
            raise ValueError(f"tol must be >= 0, got {self.tol}")


DEFAULTS = ReductionOptions()


@dataclass(frozen=True)
class Climb:
    """How EM went.

    Attributes:
        state: (1, G), about the survey's origin, what the last M-step made; weight 0 where a component owned nothing.
        objective_trace: sum_i w_i log sum_g w_g exp E_i[log Normal_g] over sum_i w_i, in nats, of the state before each
            M-step; it never falls.
    """

    state: MixtureState
    objective_trace: list[float]


def accumulate(
    blocks: Iterable[Tokens], natural: Float[Tensor, "1 components terms"], group: Group = None
) -> tuple[EStep, Tokens]:
    """An E-step over all blocks and processes: a record of the last block, with sums and weight of all."""
    total = step = tokens = None
    for tokens in blocks:
        step = expect(tokens, natural)
        part = torch.cat([step.sums.flatten(), step.log_normaliser, tokens.num_tokens])
        total = part if total is None else total.add_(part)
    assert total is not None
    assert step is not None
    assert tokens is not None
    sums, log_normaliser, weight = summed(total, group).split([natural.numel(), 1, 1])
    step = replace(step, sums=sums.view_as(natural), log_normaliser=log_normaliser)
    return step, replace(tokens, num_tokens=weight)


def climb(
    blocks: Callable[[], Iterable[Tokens]],
    state: MixtureState,
    rule: MaximumLikelihoodRule,
    num_passes: int,
    tol: float,
    group: Group = None,
) -> Climb:
    """EM, each pass a new reading of the blocks, until the objective changes by less than ``tol``."""
    trace: list[float] = []
    for _ in range(num_passes):
        step, tokens = accumulate(blocks(), rule.natural(state), group)
        state = rule.update(step, state, tokens)
        trace.append(float(step.log_normaliser / tokens.num_tokens))
        if len(trace) > 1 and abs(trace[-1] - trace[-2]) < tol:
            break
    return Climb(state, trace)


def block_images(seen: Survey, num_components: int, memory: int) -> int:
    """Images whose E-step fits a quarter of the memory, and on a CPU the cache.

    Raises:
        ValueError: If not even one image's does.
    """
    image = 8 * seen.num_slots * (2 * seen.num_terms + 4 * num_components)
    if memory < 4 * image:
        raise ValueError(f"memory must be at least {4 * image} bytes, for one image at a time, got {memory}")
    room = CACHED_BYTES if seen.origin.device.type == "cpu" else DEVICE_BYTES
    return max(1, min(room, memory // 4) // image)


def starting_state(sample: list[Tokens], num_components: int, generator: torch.Generator, full: bool) -> MixtureState:
    """Means drawn by k-means++ from the slots' means in units of their standard deviation; narrow, of equal weight."""
    num_features = sample[0].prior.loc.shape[-1]
    values = torch.cat([tokens.features[0, -1 - num_features : -1].T for tokens in sample])[None]
    weights = torch.cat([tokens.weights for tokens in sample if tokens.weights is not None], dim=1)
    scale = token_scale(values, weights)
    draw = KMeansPlusPlus(num_components, num_features)
    loc = draw(TokenView(values / scale, weights), num_components, generator) * scale
    var = (START_VARIANCE * scale.square()).expand_as(loc)
    log_weights = loc.new_full(loc.shape[:2], 1.0 / num_components).log()
    return MixtureState(loc, var, log_weights, var.diag_embed() if full else None)


def reduce_stream(
    stream: SlotStream, seen: Survey, num_components: int, options: ReductionOptions, group: Group = None
) -> Climb:
    """The mixture of at most G components that EM finds for all slots of a source.

    Args:
        stream: This process's images; those of a group are consecutive shares of the data set, in order of rank.
        seen: What :func:`psa.inference.survey.survey` saw of it.
        num_components: G >= 1.
        options: Passes, restarts, memory.
        group: The processes that share the work; all get the same result.

    Raises:
        ValueError: If the memory does not hold the work on a single image.
    """
    size = block_images(seen, num_components, options.memory)
    rows = min(START_SLOTS, options.memory // (16 * (seen.num_terms + 6 * seen.num_features)))
    chosen = sample_images(stream, seen, max(1, rows // seen.num_slots), options.seed, group)
    sample = [seen.tokens(chosen[first : first + size]) for first in range(0, len(chosen), size)]
    rule = MaximumLikelihoodRule(seen.least_var)
    generator = torch.Generator(seen.origin.device).manual_seed(options.seed)
    starts = (
        climb(
            lambda: sample,
            starting_state(sample, num_components, generator, seen.full),
            rule,
            options.start_passes,
            options.tol,
        )
        for _ in range(options.num_restarts)
    )
    best = max(starts, key=lambda start: start.objective_trace[-1])
    return climb(
        lambda: map(seen.tokens, stream.blocks(size)), best.state, rule, options.num_passes, options.tol, group
    )
