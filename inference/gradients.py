"""How gradients reach the initialiser through the iterations: the gradient column of model.md section 2."""

from collections.abc import Callable
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from psa.inference.em import MixtureState

GRADIENTS = ("unrolled", "implicit", "straight-through")


@runtime_checkable
class HasState(Protocol):
    """A step's result; only its state goes into the next step."""

    @property
    def state(self) -> MixtureState:
        """The state after the step."""
        ...


Result = TypeVar("Result", bound=HasState)


def iterate(
    step: Callable[[MixtureState], Result],
    start: MixtureState,
    num_iterations: int,
    gradient: str,
    last: Callable[[MixtureState], Result] | None = None,
) -> Result:
    """Run ``num_iterations`` steps, the last one included, and return the last step's result.

    - ``unrolled``: through every step.
    - ``implicit``: detached before the last step; the initialiser gets no gradient at all (Chang et al. 2022).
    - ``straight-through``: s <- stop(s) + s_0 - stop(s_0) before the last step; the gradient to s_0 is the last step's
      Jacobian only (BO-QSA algorithm 1, whose T is num_iterations - 1).

    Args:
        step: One E and M step.
        start: The initial state s_0.
        num_iterations: At least 1.
        gradient: One of :data:`GRADIENTS`.
        last: The last step, where it finds more than the others.
    """
    state = start
    with torch.set_grad_enabled(torch.is_grad_enabled() and gradient == "unrolled"):
        for _ in range(num_iterations - 1):
            state = step(state).state
    if gradient == "implicit":
        state = state.map(Tensor.detach)
    elif gradient == "straight-through":
        state = state.map(_straight_through, start)
    return (last or step)(state)


def _straight_through(current: Tensor, start: Tensor) -> Tensor:
    # The log weight of a slot that owns nothing is minus infinity, whose difference from itself is no number.
    passing = torch.where(start.isfinite(), start - start.detach(), torch.zeros_like(start))
    return current.detach() + passing
