"""Claim: the slots of an image, side by side in a random order, are a mixture of K! block-diagonal Gaussians.

PSA theorem 1, by three checks that know nothing of each other: the density of :class:`ConcatenatedSlots` (a permanent)
against the sum over all K! orders, and against itself with the slots in another order; and, for slots that were drawn
and shuffled one after the other, how often they fall into random boxes, against the K! products of normal
probabilities. Verdict: ``holds`` if densities agree to 1e-10, no box of any seed is off by more than 5 standard errors,
and the density of K = 3 slots with one feature has 6 modes (figure 7); else ``fails``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Normal

from psa.experiments.experiment import Conclusion, Experiment, Outcome, Progress
from psa.models.concatenated import ConcatenatedSlots
from psa.report.densities import slots_figure

TOLERANCE, MOST_ERRORS = 1e-10, 5.0
FIGURE_LOC, FIGURE_SCALE = (-3.0, 0.5, 3.5), (0.5, 0.35, 0.7)  # slots of figure 7, apart from one another
STEPS = 400  # of the climb to a mode


@dataclass(frozen=True)
class Slots:
    """The slots of M images: loc and scale (M, K, D)."""

    loc: Tensor
    scale: Tensor

    def concatenated(self) -> ConcatenatedSlots:
        """Their density side by side."""
        return ConcatenatedSlots(self.loc, self.scale.square())

    def shuffled(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws (count, K, D), an image at a time slot after slot, then put in a random order; and the orders."""
        image = torch.randint(len(self.loc), (count,), generator=generator)
        noise = torch.randn(count, *self.loc.shape[1:], generator=generator, dtype=torch.float64)
        order = torch.rand(count, self.loc.shape[1], generator=generator).argsort(1)
        drawn = self.loc[image] + self.scale[image] * noise
        return drawn.take_along_dim(order[..., None], 1), order

    def log_density(self, value: Tensor) -> Tensor:
        """(n,), of values (n, K, D), by all K! orders of every image."""
        orders = list(permutations(range(self.loc.shape[1])))
        terms = [
            Normal(self.loc[:, order], self.scale[:, order]).log_prob(value[:, None]).sum((-2, -1)) for order in orders
        ]
        return torch.stack(terms).logsumexp((0, 2)) - math.log(len(orders) * len(self.loc))

    def box(self, low: Tensor, high: Tensor) -> Tensor:
        """(n,), the probability of boxes from low to high, both (n, K, D)."""
        orders = list(permutations(range(self.loc.shape[1])))
        total = torch.zeros(len(low), dtype=torch.float64)
        for order in orders:
            normal = Normal(self.loc[:, order], self.scale[:, order])
            total += (normal.cdf(high[:, None]) - normal.cdf(low[:, None])).prod(-1).prod(-1).sum(1)
        return total / (len(orders) * len(self.loc))


@dataclass(frozen=True)
class ConcatenatedSlotsExperiment(Experiment):
    """Sizes of the problems.

    Attributes:
        seeds: A problem each; K runs through num_slots.
        num_slots: K.
        num_images: M.
        num_features: D.
        num_draws: Shuffled draws for the boxes.
        num_boxes: Random boxes, each between two of the draws.
    """

    name: ClassVar[str] = "concatenated_slots"
    claim: ClassVar[str] = (
        "The K slots of an image, concatenated in random order, are a mixture of K! block-diagonal Gaussians."
    )
    source: ClassVar[str] = "PSA theorem 1, figures 6 and 7"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    num_slots: tuple[int, ...] = (2, 3, 4, 5)
    num_images: int = 5
    num_features: int = 2
    num_draws: int = 200_000
    num_boxes: int = 40

    def units(self) -> Sequence[str]:
        """K with a seed."""
        return [f"k={k}.seed-{seed}" for k in self.num_slots for seed in self.seeds]

    def measure(self, unit: str, progress: Progress) -> Outcome:
        """Deviations of the density, and the boxes' z-scores."""
        num_slots, seed = (int(part) for part in unit.removeprefix("k=").split(".seed-"))
        generator = torch.Generator().manual_seed(1000 * num_slots + seed)
        slots = self._slots(num_slots, generator)
        value, _ = slots.shuffled(self.num_draws, generator)
        few = value[:50]
        density = slots.concatenated().log_prob(few)
        order = torch.randperm(num_slots, generator=generator)
        low = torch.minimum(*value[50 : 50 + 2 * self.num_boxes].unflatten(0, (2, -1)))
        high = torch.maximum(*value[50 : 50 + 2 * self.num_boxes].unflatten(0, (2, -1)))
        low, high = low - 1.0, high + 1.0  # so that a box holds many draws
        used = value[50 + 2 * self.num_boxes :]
        share = torch.stack(
            [((used > a) & (used < b)).all(-1).all(-1).double().mean() for a, b in zip(low, high, strict=True)]
        )
        expected = slots.box(low, high)
        error = (expected * (1 - expected) / len(used)).sqrt()
        return Outcome(
            {
                "orders": float((density - slots.log_density(few)).abs().max()),
                "reordered": float((density - slots.concatenated().log_prob(few[:, order])).abs().max()),
                "largest_z": float(((share - expected) / error).abs().max()),
                "least_probability": float(expected.min()),
            }
        )

    def _slots(self, num_slots: int, generator: torch.Generator) -> Slots:
        shape = (self.num_images, num_slots, self.num_features)
        loc = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
        return Slots(loc, 0.5 + torch.rand(shape, generator=generator, dtype=torch.float64))

    def conclude(self, outcomes: Mapping[str, Outcome]) -> Conclusion:
        """All three checks, and the modes of figure 7."""
        figures = [outcome.figures for outcome in outcomes.values()]
        rows = []
        for k in self.num_slots:
            of_k = [outcome.figures for unit, outcome in outcomes.items() if unit.startswith(f"k={k}.")]
            worst = {name: max(float(f[name]) for f in of_k) for name in ("orders", "reordered", "largest_z")}
            rows.append(
                {
                    "K": k,
                    "components": self.num_images * math.factorial(k),
                    "density against all orders, largest deviation": worst["orders"],
                    "slots reordered, largest deviation": worst["reordered"],
                    "largest z of the boxes": worst["largest_z"],
                }
            )
        deviation = max(max(float(f["orders"]), float(f["reordered"])) for f in figures)
        z = max(float(f["largest_z"]) for f in figures)
        found = num_modes(figure_slots())
        holds = deviation <= TOLERANCE and z <= MOST_ERRORS and found == 6
        reason = f"Densities agree to {deviation:.1e}, boxes to {z:.1f} standard errors; figure 7 has {found} modes."
        summary = {"largest_deviation": deviation, "largest_z": z, "modes": float(found)}
        table = {"Concatenated slots": rows}
        return Conclusion("holds" if holds else "fails", reason, summary, table, {"slots": _picture()})


def figure_slots() -> Slots:
    """One image, three slots of one feature: what figures 6 and 7 show."""
    loc, scale = (torch.tensor(v, dtype=torch.float64).reshape(1, 3, 1) for v in (FIGURE_LOC, FIGURE_SCALE))
    return Slots(loc, scale)


def num_modes(slots: Slots) -> int:
    """Different maxima that gradient ascent on the concatenated density reaches from 200 draws."""
    value = slots.shuffled(200, torch.Generator().manual_seed(0))[0].requires_grad_()
    density, step = slots.concatenated(), 0.5 * float(slots.scale.min()) ** 2
    for _ in range(STEPS):
        (gradient,) = torch.autograd.grad(density.log_prob(value).sum(), value)
        value = (value + step * gradient).detach().requires_grad_()
    return len(torch.unique((10 * value.detach()).round(), dim=0))


def _picture() -> Figure:
    slots = figure_slots()
    grid = torch.linspace(-6, 7, 400, dtype=torch.float64)
    densities = (Normal(slots.loc[0], slots.scale[0]).log_prob(grid).exp() / 3).numpy()
    drawn, order = slots.shuffled(1500, torch.Generator().manual_seed(0))
    code = (order * torch.tensor([9, 3, 1])).sum(1).unique(return_inverse=True)[1]
    return slots_figure(grid.numpy(), list(densities), drawn[..., 0].numpy(), code.numpy().astype(np.int64))


SCALES: Mapping[str, Experiment] = {
    "smoke": ConcatenatedSlotsExperiment(seeds=(0,), num_slots=(2, 3), num_draws=20_000, num_boxes=10),
    "cpu": ConcatenatedSlotsExperiment(),
    "gpu": ConcatenatedSlotsExperiment(num_slots=(2, 3, 4, 5, 6), num_draws=2_000_000),
}
