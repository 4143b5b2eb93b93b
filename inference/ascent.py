"""The loop of coordinate ascent: E-step, M-step, objective, until the objective stops rising."""

import math
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from psa.conjugate import NormalGamma
from psa.inference.conjugate_steps import conjugate_update, evidence_lower_bound, variational_natural
from psa.inference.em import MixtureState


@dataclass(frozen=True)
class Tokens:
    """Centred tokens as the loop needs them.

    Attributes:
        features: (B, terms, N), T(v_n) (:func:`psa.conjugate.token_features`).
        weights: (B, N), or None where all are 1.
        num_tokens: (B,), sum of the weights.
        prior: (B, 1) components' prior about the tokens' mean; of slots with types, those, (B, G).
    """

    features: Float[Tensor, "batch terms tokens"]
    weights: Float[Tensor, "batch tokens"] | None
    num_tokens: Float[Tensor, " batch"]
    prior: NormalGamma

    def __getitem__(self, index: Tensor) -> "Tokens":
        weights = None if self.weights is None else self.weights[index]
        prior = replace(self.prior, loc=self.prior.loc[index])
        return Tokens(self.features[index], weights, self.num_tokens[index], prior)


@dataclass(frozen=True)
class EStep:
    """Responsibilities and what the M-step and the objective need of them.

    Attributes:
        responsibilities: (B, K, N), sums to 1 over K.
        sums: (B, K, terms), sum_n w_n r_kn T(v_n).
        log_normaliser: (B,), sum_n w_n log sum_k exp(score_kn).
        entropy: (B,), - sum_nk w_n r log r: the normaliser less the expected scores, which are linear in the sums.
    """

    responsibilities: Float[Tensor, "batch slots tokens"]
    sums: Float[Tensor, "batch slots terms"]
    log_normaliser: Float[Tensor, " batch"]
    entropy: Float[Tensor, " batch"]


@runtime_checkable
class Rule(Protocol):
    """What is estimated: the scores, the M-step and the objective of one iteration.

    Attributes:
        late: Whether the objective is that of the state before the M-step.
    """

    @property
    def late(self) -> bool:
        """See above."""

    def natural(self, state: MixtureState) -> Float[Tensor, "batch slots terms"]:
        """The scores' parameters: scores = natural @ features."""

    def update(self, step: EStep, state: MixtureState, tokens: Tokens) -> MixtureState:
        """The M-step."""

    def objective(
        self, step: EStep, before: MixtureState, after: MixtureState, tokens: Tokens
    ) -> Float[Tensor, " batch"]:
        """What never falls, of the E-step and the states before and after the M-step."""


@dataclass(frozen=True)
class VariationalRule:
    """Variational Bayes: the conjugate update, and the ELBO.

    Attributes:
        concentration: alpha0.
        power: beta of the tempered E-step.
        coarsening: beta of the coarsened likelihood.
    """

    concentration: float
    power: float = 1.0
    coarsening: float = 1.0
    late = False

    def natural(self, state: MixtureState) -> Float[Tensor, "batch slots terms"]:
        """E[log pi_k] + power E[log Normal]."""
        return variational_natural(state, self.power)

    def update(self, step: EStep, state: MixtureState, tokens: Tokens) -> MixtureState:
        """q(pi, mu, lambda)."""
        return conjugate_update(step.sums, self.concentration, tokens.prior, self.coarsening)

    def objective(
        self, step: EStep, before: MixtureState, after: MixtureState, tokens: Tokens
    ) -> Float[Tensor, " batch"]:
        """The ELBO of the E-step's responsibilities and what was computed from them."""
        return evidence_lower_bound(
            step.entropy, after, self.concentration, tokens.prior, tokens.num_tokens, self.coarsening
        )


@dataclass(frozen=True)
class Ascent:
    """How a fit went: the course of its best restart.

    Attributes:
        objective_trace: (iterations, B), after each iteration; an image that converged keeps its last value.
        num_iterations: (B,), taken until convergence.
        converged: (B,), whether the objective changed by less than tol nats a token before the iterations ran out.
        restart_objectives: (R, B), what every restart ended with.
    """

    objective_trace: Float[Tensor, "iterations batch"]
    num_iterations: Int[Tensor, " batch"]
    converged: Tensor
    restart_objectives: Float[Tensor, "restarts batch"]


@dataclass(frozen=True)
class Result:
    """Where every image ended.

    Attributes:
        state: The state after the last M-step.
        responsibilities: (B, K, N), those from which the state was computed; of a late rule, its posterior.
        trace: (iterations, B), the objective; an image that converged keeps its last value.
        num_iterations: (B,).
        converged: (B,).
    """

    state: MixtureState
    responsibilities: Float[Tensor, "batch slots tokens"]
    trace: Float[Tensor, "iterations batch"]
    num_iterations: Int[Tensor, " batch"]
    converged: Bool[Tensor, " batch"]


def expect(tokens: Tokens, natural: Float[Tensor, "batch slots terms"]) -> EStep:
    """The E-step, in place on one (B, K, N) tensor: scores, their maximum off, exp, sum, quotient."""
    scores = natural @ tokens.features
    top = scores.amax(1, keepdim=True)
    # a product of three such numbers is still normal: denormals cost a factor of 40 on a CPU
    floor = math.log(torch.finfo(scores.dtype).tiny) / 3.0
    share = scores.sub_(top).clamp_(min=floor).exp_()
    torch.threshold_(share, 1.001 * math.exp(floor), 0.0)
    total = share.sum(1, keepdim=True)
    per_token = (total.log() + top)[:, 0]
    responsibilities = share.div_(total)
    weighted = responsibilities
    if tokens.weights is not None:
        weighted, per_token = responsibilities * tokens.weights[:, None], per_token * tokens.weights
    sums = weighted @ tokens.features.transpose(1, 2)
    log_normaliser = per_token.sum(-1)
    return EStep(responsibilities, sums, log_normaliser, log_normaliser - (natural * sums).sum((1, 2)))


@dataclass(frozen=True)
class _Left:
    """Images that left the batch, and what they ended with."""

    images: Tensor
    state: MixtureState
    responsibilities: Tensor


def ascend(tokens: Tokens, state: MixtureState, rule: Rule, num_iterations: int, tol: float) -> Result:
    """Iterate every image until its objective changes by less than ``tol`` nats a token; then it leaves the batch.

    What an image ends with does not depend on the others in the batch.

    Args:
        tokens: The images.
        state: Where they start.
        rule: What is estimated.
        num_iterations: At most these, >= 1.
        tol: >= 0; 0 never stops early.
    """
    images = torch.arange(len(tokens.num_tokens), device=tokens.features.device)
    trace = tokens.features.new_empty(num_iterations, len(images))
    taken = torch.full_like(images, num_iterations)
    converged = torch.zeros_like(images, dtype=torch.bool)
    before = torch.full_like(tokens.num_tokens, torch.inf)
    all_tokens = tokens
    left: list[_Left] = []
    for iteration in range(num_iterations):
        step = expect(tokens, rule.natural(state))
        start, state = state, rule.update(step, state, tokens)
        objective = rule.objective(step, start, state, tokens)
        trace[iteration, images] = objective
        still = (objective - before).abs() < tol * tokens.num_tokens
        before = objective
        if iteration < num_iterations - 1 and not bool(still.any()):
            continue
        out = still if iteration < num_iterations - 1 else torch.ones_like(still)
        gone = images[out]
        left.append(_Left(gone, state.map(lambda t, out=out: t[out]), step.responsibilities[out]))
        converged[gone], taken[gone] = still[out], iteration + 1
        trace[iteration + 1 :, gone] = objective[out]
        images, before, tokens, state = images[~out], before[~out], tokens[~out], state.map(lambda t, out=out: t[~out])
        if len(images) == 0:
            break
    result = Result(*_gather(left), trace, taken, converged)
    return _caught_up(result, rule, all_tokens) if rule.late else result


def _gather(left: list[_Left]) -> tuple[MixtureState, Tensor]:
    """Back in the order of the batch."""
    order = torch.cat([part.images for part in left]).argsort()
    first, *rest = (part.state for part in left)
    state = first.map(lambda *tensors: torch.cat(tensors)[order], *rest)
    return state, torch.cat([part.responsibilities for part in left])[order]


def _caught_up(result: Result, rule: Rule, tokens: Tokens) -> Result:
    """With the objective and the responsibilities of the state that is returned."""
    step = expect(tokens, rule.natural(result.state))
    objective = rule.objective(step, result.state, result.state, tokens)
    shifted = torch.cat([result.trace[1:], objective[None]])
    iteration = torch.arange(len(shifted), device=objective.device)[:, None]
    trace = torch.where(iteration >= result.num_iterations - 1, objective, shifted)
    return replace(result, trace=trace, responsibilities=step.responsibilities)
