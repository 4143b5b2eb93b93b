"""Coordinate ascent of a batch in chunks that fit the cache, several starts an image side by side, the best kept."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from psa.conjugate import NormalGamma, token_features
from psa.inference.ascent import Ascent, EStep, Rule, Tokens, ascend
from psa.inference.em import MixtureState
from psa.inference.starts import nearest, token_scale

CACHED_BYTES = 1 << 20  # of responsibilities at once on a CPU: a chunk that leaves the cache costs half as much again
DEVICE_BYTES = 1 << 28


@dataclass(frozen=True)
class Images:
    """Centred tokens (B, N, D), their weights (B, N) or None, and the components' prior about the same origin.

    The prior is (B, 1), or (B, G) where slots have types.
    """

    values: Float[Tensor, "batch tokens features"]
    weights: Float[Tensor, "batch tokens"] | None
    prior: NormalGamma

    def __getitem__(self, index: slice) -> "Images":
        weights = None if self.weights is None else self.weights[index]
        return Images(self.values[index], weights, replace(self.prior, loc=self.prior.loc[index]))

    def repeated(self, times: int) -> "Images":
        """Every image ``times`` times in a row."""
        if times == 1:
            return self
        weights = None if self.weights is None else self.weights.repeat_interleave(times, 0)
        prior = replace(self.prior, loc=self.prior.loc.repeat_interleave(times, 0))
        return Images(self.values.repeat_interleave(times, 0), weights, prior)

    def tokens(self) -> Tokens:
        """As the loop needs them."""
        values, weights = self.values, self.weights
        num_tokens = values.new_full(values.shape[:1], values.shape[1]) if weights is None else weights.sum(1)
        return Tokens(token_features(values, self.prior.full), weights, num_tokens, self.prior)


@dataclass(frozen=True)
class Outcome:
    """The best restart of every image.

    Attributes:
        state: About the tokens' mean.
        responsibilities: (B, K, N).
        initial_loc: (B, K, D), about the tokens' mean.
        ascent: How it went.
    """

    state: MixtureState
    responsibilities: Float[Tensor, "batch slots tokens"]
    initial_loc: Float[Tensor, "batch slots features"]
    ascent: Ascent


def fit_images(images: Images, start: Tensor | MixtureState, rule: Rule, num_iterations: int, tol: float) -> Outcome:
    """Fit every image from every start and keep the best.

    Args:
        images: The images.
        start: Means (B, R, K, D) to whose nearest each token is given first, or a state (B, ...).
        rule: What is estimated.
        num_iterations: Most iterations.
        tol: Nats a token.
    """
    num_restarts, num_slots = (start.shape[1:3]) if isinstance(start, Tensor) else (1, start.loc.shape[1])
    values = images.values
    room = CACHED_BYTES if values.device.type == "cpu" else DEVICE_BYTES
    size = max(1, room // (num_restarts * num_slots * values.shape[1] * values.element_size()))
    outcomes = []
    for first in range(0, len(values), size):
        part = slice(first, first + size)
        begin = start[part] if isinstance(start, Tensor) else start.map(lambda t, part=part: t[part])
        outcomes.append(_fit_chunk(images[part], begin, rule, num_iterations, tol))
    return _joined(outcomes)


def _fit_chunk(images: Images, start: Tensor | MixtureState, rule: Rule, num_iterations: int, tol: float) -> Outcome:
    num_restarts = start.shape[1] if isinstance(start, Tensor) else 1
    repeated = images.repeated(num_restarts)
    tokens = repeated.tokens()
    if isinstance(start, MixtureState):
        initial, state = start.loc, start
    else:
        initial = start.flatten(0, 1)
        state = _given_to_nearest(repeated, tokens, initial, rule)
    result = ascend(tokens, state, rule, num_iterations, tol)
    objectives = result.trace[-1].reshape(-1, num_restarts)
    best = objectives.argmax(1) + num_restarts * torch.arange(len(objectives), device=objectives.device)
    ascent = Ascent(result.trace[:, best], result.num_iterations[best], result.converged[best], objectives.T)
    return Outcome(result.state.map(lambda t: t[best]), result.responsibilities[best], initial[best], ascent)


def _given_to_nearest(images: Images, tokens: Tokens, means: Tensor, rule: Rule) -> MixtureState:
    """The M-step after every token went to its nearest mean."""
    responsibilities = nearest(images.values, images.weights, means)
    weighted = responsibilities if images.weights is None else responsibilities * images.weights[:, None]
    zero = torch.zeros_like(tokens.num_tokens)
    step = EStep(responsibilities, weighted @ tokens.features.transpose(1, 2), zero, zero)
    var = token_scale(images.values, images.weights).square().expand_as(means)
    log_weights = means.new_full(means.shape[:2], 1.0 / means.shape[1]).log()
    covariance = var.diag_embed() if images.prior.full else None
    return rule.update(step, MixtureState(means, var, log_weights, covariance), tokens)


def _joined(outcomes: list[Outcome]) -> Outcome:
    first, *rest = (outcome.state for outcome in outcomes)
    ascents = [outcome.ascent for outcome in outcomes]
    return Outcome(
        first.map(lambda *tensors: torch.cat(tensors), *rest),
        torch.cat([outcome.responsibilities for outcome in outcomes]),
        torch.cat([outcome.initial_loc for outcome in outcomes]),
        Ascent(
            torch.cat([ascent.objective_trace for ascent in ascents], dim=1),
            torch.cat([ascent.num_iterations for ascent in ascents]),
            torch.cat([ascent.converged for ascent in ascents]),
            torch.cat([ascent.restart_objectives for ascent in ascents], dim=1),
        ),
    )
