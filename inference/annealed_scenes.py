"""log p(x) by annealed importance sampling in slot space (Neal 2001): from q to the posterior, moved by HMC.

The path is q(s)^(1 - beta) p(x, s)^beta with q averaged over the orders of the slots, so that all K! copies of the
posterior are approached alike and no log K! is added. Each chain's weight has the mean p(x), whatever the number of
temperatures; more of them bring its logarithm closer to log p(x) from below. A pilot of two chains an image finds the
step size of every temperature; the chains that are weighted use those as they are, and are independent of the pilot.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float64, UInt8
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from psa.inference.scene_evidence import LogLikelihood, SceneEvidence, SlotProposal, log_joint, normal, stream

Streams = Sequence[torch.Generator]
"""One an image: what an image's chains see does not depend on the images beside it."""


@dataclass(frozen=True)
class Schedule:
    """How chains are annealed.

    Attributes:
        num_temperatures: T >= 1; beta_t is a sigmoid of t, rescaled to run from 0 to 1 (Wu et al. 2017).
        num_leapfrog: Leapfrog steps of an HMC move; there is one move at each of the T - 1 inner temperatures.
        steepness: The sigmoid runs from minus to plus this; small values make the temperatures equidistant.
        first_step: Step size at which the pilot starts, in standard deviations of q.
        acceptance: What the pilot's step size aims at.
        rate: log step size changes by this times the excess of the pilot's acceptance.
        num_pilots: Chains of the pilot, an image.
    """

    num_temperatures: int = 50
    num_leapfrog: int = 5
    steepness: float = 4.0
    first_step: float = 0.4
    acceptance: float = 0.7
    rate: float = 0.3
    num_pilots: int = 2

    def betas(self) -> Float64[Tensor, " temperatures_and_start"]:
        """0 = beta_0 < ... < beta_T = 1."""
        curve = (self.steepness * torch.linspace(-1.0, 1.0, self.num_temperatures + 1, dtype=torch.float64)).sigmoid()
        return (curve - curve[0]) / (curve[-1] - curve[0])


@dataclass(frozen=True)
class Point:
    """Where chains are: slots, log q and log p(x, s) there, and their gradients."""

    slots: Float64[Tensor, "rows slots features"]
    log_q: Float64[Tensor, " rows"]
    log_p: Float64[Tensor, " rows"]
    grad_q: Float64[Tensor, "rows slots features"]
    grad_p: Float64[Tensor, "rows slots features"]

    def tempered(self, beta: float) -> Float64[Tensor, " rows"]:
        """Log density of the path, up to its constant."""
        return (1.0 - beta) * self.log_q + beta * self.log_p

    def slope(self, beta: float) -> Float64[Tensor, "rows slots features"]:
        """Gradient of :meth:`tempered`."""
        return (1.0 - beta) * self.grad_q + beta * self.grad_p

    def where(self, chosen: Bool[Tensor, " rows"], other: "Point") -> "Point":
        """This point in the chosen rows, the other elsewhere."""
        pairs = {name: (mine, getattr(other, name)) for name, mine in vars(self).items()}
        return Point(
            **{
                name: torch.where(chosen.view(-1, *[1] * (mine.ndim - 1)), mine, theirs)
                for name, (mine, theirs) in pairs.items()
            }
        )


@dataclass(frozen=True)
class Chains:
    """Annealed chains.

    Attributes:
        log_weights: (R,), nats; the mean of their exponentials is p(x).
        acceptance: (R,), mean acceptance probability of the HMC moves; NaN without moves.
        steps: (T - 1, R), step sizes used, in standard deviations of q.
    """

    log_weights: Float64[Tensor, " rows"]
    acceptance: Float64[Tensor, " rows"]
    steps: Float64[Tensor, "moves rows"]


def anneal(
    proposal: SlotProposal,
    prior: TorchDistributionMixin,
    log_likelihood: LogLikelihood,
    streams: Streams,
    schedule: Schedule,
    steps: Float64[Tensor, "moves rows"] | None = None,
) -> Chains:
    """One annealed chain a row, from a draw of q.

    Args:
        proposal: q of every row; rows of one image stand together, as many for each image.
        prior: p(s), over one slot.
        log_likelihood: log p(x | s) of every row.
        streams: Random numbers of every image.
        schedule: Temperatures and moves.
        steps: Step sizes; left out, they are adapted on the way, and the weights are then not exactly unbiased.
    """
    rows, betas = len(proposal.loc), schedule.betas().tolist()
    each = rows // len(streams)

    def point(slots: Tensor) -> Point:
        return _point(slots, proposal.log_density, lambda s: log_joint(s, prior, log_likelihood))

    now = point(proposal.at(_normal(proposal.loc, streams)))
    weights, accepted = torch.zeros_like(now.log_q), torch.zeros_like(now.log_q)
    log_step = torch.full_like(weights, math.log(schedule.first_step))
    used = []
    for move, (last, beta) in enumerate(pairwise(betas)):
        weights = weights + (beta - last) * (now.log_p - now.log_q)
        if move == schedule.num_temperatures - 1:
            break
        used.append(log_step.exp() if steps is None else steps[move])
        scale = used[-1][:, None, None] * proposal.scale
        now, probability = _hmc(point, now, beta, scale, schedule.num_leapfrog, streams)
        accepted = accepted + probability
        excess = probability.unflatten(0, (-1, each)).mean(1).repeat_interleave(each) - schedule.acceptance
        log_step = log_step + schedule.rate * excess
    empty = weights.new_empty(0, rows)
    return Chains(weights, accepted / len(used) if used else weights * math.nan, torch.stack(used) if used else empty)


def piloted(
    problem: Callable[[int], tuple[SlotProposal, LogLikelihood]],
    prior: TorchDistributionMixin,
    num_chains: int,
    streams: tuple[Streams, Streams],
    schedule: Schedule,
) -> Chains:
    """Step sizes from a pilot, then the chains that count.

    Args:
        problem: q and log p(x | s) for so many rows an image.
        prior: p(s), over one slot.
        num_chains: Chains an image.
        streams: Random numbers of the pilot and of the chains, one an image each.
        schedule: Temperatures and moves.
    """
    proposal, log_likelihood = problem(schedule.num_pilots)
    pilot = anneal(proposal, prior, log_likelihood, streams[0], schedule)
    steps = pilot.steps[:, :: schedule.num_pilots].repeat_interleave(num_chains, 1)
    proposal, log_likelihood = problem(num_chains)
    return anneal(proposal, prior, log_likelihood, streams[1], schedule, steps)


def annealed_weights(
    scenes: SceneEvidence,
    images: UInt8[Tensor, "images height width channels"],
    first: int,
    num_chains: int,
    schedule: Schedule | None = None,
) -> tuple[Float64[Tensor, "images chains"], Float64[Tensor, "images chains"]]:
    """Log weights (nats) and acceptance of the chains of some images; all of them are in memory at once.

    Args:
        scenes: The run.
        images: (B, H, W, 3), 0 to 255.
        first: Place of the first image in the data set; with the seed it fixes the random numbers.
        num_chains: Chains an image.
        schedule: Temperatures and moves; the defaults of :class:`Schedule` otherwise.
    """
    purposes = iter(range(2, 6))  # 0 and 1 are taken by importance sampling

    def streams() -> list[torch.Generator]:
        purpose = next(purposes)
        return [stream(scenes.seed, first + i, purpose, device=scenes.device) for i in range(len(images))]

    def problem(rows: int) -> tuple[SlotProposal, LogLikelihood]:
        parts = [scenes.proposal(image, rows, g) for image, g in zip(images, streams(), strict=True)]
        proposal = SlotProposal(torch.cat([part.loc for part in parts]), torch.cat([part.scale for part in parts]))
        levels = images.movedim(-1, 1).repeat_interleave(rows, 0).to(scenes.device)
        return proposal, scenes.log_likelihood(levels)

    pilot, chains = streams(), streams()
    found = piloted(problem, scenes.prior, num_chains, (pilot, chains), schedule or Schedule())
    return found.log_weights.unflatten(0, (-1, num_chains)), found.acceptance.unflatten(0, (-1, num_chains))


def _hmc(
    point: Callable[[Tensor], Point],
    start: Point,
    beta: float,
    scale: Float64[Tensor, "rows slots features"],
    num_leapfrog: int,
    streams: Streams,
) -> tuple[Point, Float64[Tensor, " rows"]]:
    """One Hamiltonian move that leaves the path's density at ``beta`` as it is, and its acceptance probability.

    ``scale`` is the step size times the standard deviations of q: unit masses in whitened slots (Neal 2011).
    """
    momentum = begun = _normal(scale, streams)
    end = start
    for _ in range(num_leapfrog):
        momentum = momentum + 0.5 * scale * end.slope(beta)
        end = point(end.slots + scale * momentum)
        momentum = momentum + 0.5 * scale * end.slope(beta)
    energy = 0.5 * (begun.square() - momentum.square()).sum((1, 2))
    gain = end.tempered(beta) - start.tempered(beta) + energy
    probability = gain.nan_to_num(nan=-math.inf).clamp(max=0.0).exp()
    each = len(probability) // len(streams)
    uniform = [torch.rand(each, dtype=torch.float64, device=g.device, generator=g) for g in streams]
    return end.where(torch.cat(uniform) < probability, start), probability


def _point(slots: Tensor, log_q: Callable[[Tensor], Tensor], log_p: Callable[[Tensor], Tensor]) -> Point:
    with torch.enable_grad():
        at = slots.detach().requires_grad_()
        values = log_q(at), log_p(at)
        slopes = [torch.autograd.grad(value.sum(), at)[0] for value in values]
    return Point(slots.detach(), values[0].detach(), values[1].detach(), slopes[0], slopes[1])


def _normal(like: Float64[Tensor, "rows slots features"], streams: Streams) -> Float64[Tensor, "rows slots features"]:
    shape = torch.Size((len(like) // len(streams), *like.shape[1:]))
    return torch.cat([normal(shape, g) for g in streams])
