"""Claim: the local mixtures of a data set add up to one mixture, and no prior fits the slots of these images better.

PSA lemma 1 (eq. 10). Local mixtures around five types are drawn; the aggregate is built from them, and compared
- with the sum over all M K components, term by term;
- with slots drawn image by image: how often they fall into random boxes;
- as a prior, with others: the average over images of E_q log p, on the images that it was built from. What another one
  loses is KL(q || p), so it cannot gain; and the average KL of an image's mixture to the aggregate is at most log M.
Verdict: ``holds`` if densities agree to 1e-10, no box is off by more than 5 standard errors, no other prior gains more
than 5 standard errors, and the average KL keeps its bound; else ``fails``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Normal

from psa.experiments.experiment import Conclusion, Experiment, Outcome, Progress
from psa.inference.aggregate import from_posteriors, reduce
from psa.inference.reduction import ReductionOptions
from psa.models.aggregate import AggregatePrior
from psa.records import SlotPosterior
from psa.report.densities import aggregate_figure

TOLERANCE, MOST_ERRORS = 1e-10, 5.0
NUM_TYPES, NUM_FEATURES = 5, 2
NUM_BOXES = 40
OTHERS = ("one Gaussian", "5 components", "weights of the slots ignored", "half of the images", "variances doubled")


def local_mixtures(num_images: int, num_slots: int, generator: torch.Generator) -> SlotPosterior:
    """Weights, means and variances of every image's slots, each near one of five types."""
    types = 4 * torch.randn(NUM_TYPES, NUM_FEATURES, generator=generator, dtype=torch.float64)
    shape = (num_images, num_slots, NUM_FEATURES)
    which = torch.rand(num_images, NUM_TYPES, generator=generator).argsort(1)[:, :num_slots]
    loc = types[which] + 0.4 * torch.randn(shape, generator=generator, dtype=torch.float64)
    var = 0.2 + torch.rand(shape, generator=generator, dtype=torch.float64)
    weights = torch._sample_dirichlet(torch.full(shape[:2], 2.0, dtype=torch.float64), generator=generator)
    return SlotPosterior(weights, loc, var, torch.full((*shape[:2], 1), 1 / num_slots, dtype=torch.float64), loc)


def drawn(images: SlotPosterior, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``count`` slots of every image, (M, count, D), a slot by its weight and then a value; and the weights."""
    slot = torch.multinomial(images.weights, count, replacement=True, generator=generator)[..., None]
    noise = torch.randn(*slot.shape[:2], NUM_FEATURES, generator=generator, dtype=torch.float64)
    return images.loc.take_along_dim(slot, 1) + images.var.take_along_dim(slot, 1).sqrt() * noise, slot


def own_density(images: SlotPosterior, value: Tensor) -> Tensor:
    """log q_b of slots (M, n, D) under their own image's mixture, (M, n)."""
    normal = Normal(images.loc[:, None], images.var[:, None].sqrt())
    return (images.weights.log()[:, None] + normal.log_prob(value[:, :, None]).sum(-1)).logsumexp(-1)


def in_boxes(images: SlotPosterior, value: Tensor) -> float:
    """The largest z-score of how many slots fall into boxes between pairs of slots."""
    corners, rest = value[: 2 * NUM_BOXES].unflatten(0, (2, -1)), value[2 * NUM_BOXES :]
    low, high = torch.minimum(*corners), torch.maximum(*corners)
    normal = Normal(images.loc.flatten(0, 1), images.var.flatten(0, 1).sqrt())
    mass = (normal.cdf(high[:, None]) - normal.cdf(low[:, None])).prod(-1)
    expected = mass @ images.weights.flatten() / len(images.loc)
    share = torch.stack([((rest > a) & (rest < b)).all(-1).double().mean() for a, b in zip(low, high, strict=True)])
    return float(((share - expected) / (expected * (1 - expected) / len(rest)).sqrt()).abs().max())


def other_priors(images: SlotPosterior, aggregate: AggregatePrior, seed: int) -> dict[str, AggregatePrior]:
    """Priors that lemma 1 says cannot be better on these images."""
    half = len(images.loc) // 2
    part = SlotPosterior(
        images.weights[:half], images.loc[:half], images.var[:half], images.responsibilities[:half], images.loc[:half]
    )
    priors = (
        reduce(aggregate, 1, options=ReductionOptions(seed=seed)),
        reduce(aggregate, NUM_TYPES, options=ReductionOptions(seed=seed)),
        from_posteriors(lambda: [images], weighting="uniform"),
        from_posteriors(lambda: [part]),
        AggregatePrior(aggregate.weights, aggregate.loc, 2 * aggregate.var if aggregate.var is not None else None),
    )
    return dict(zip(OTHERS, priors, strict=True))


@dataclass(frozen=True)
class AggregateLemma(Experiment):
    """Sizes of the problems.

    Attributes:
        seeds: A data set each.
        num_images, num_slots: M and K.
        num_draws: Slots drawn from every image.
    """

    name: ClassVar[str] = "aggregate_lemma"
    claim: ClassVar[str] = (
        "The local mixtures of a data set add up to one mixture, the best prior over the slots of its images."
    )
    source: ClassVar[str] = "PSA lemma 1, eq. 10"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    num_images: int = 500
    num_slots: int = 3
    num_draws: int = 400

    def units(self) -> Sequence[str]:
        """A seed each."""
        return [f"seed-{seed}" for seed in self.seeds]

    def measure(self, unit: str, progress: Progress) -> Outcome:
        """Density, boxes, and what other priors lose."""
        seed = int(unit.removeprefix("seed-"))
        generator = torch.Generator().manual_seed(seed)
        images = local_mixtures(self.num_images, self.num_slots, generator)
        aggregate = from_posteriors(lambda: [images])
        value, _ = drawn(images, self.num_draws, generator)
        flat = value.transpose(0, 1).flatten(0, 1)
        log_q = aggregate.log_prob(value)
        normal = Normal(images.loc.flatten(0, 1), images.var.flatten(0, 1).sqrt())
        terms = images.weights.flatten().log() + normal.log_prob(flat[:200, None]).sum(-1)
        direct = terms.logsumexp(1) - math.log(self.num_images)
        figures = {
            "density": float((aggregate.log_prob(flat[:200]) - direct).abs().max()),
            "largest_z": in_boxes(images, flat),
            "mean_kl": float((own_density(images, value) - log_q).mean()),
        }
        for name, prior in other_priors(images, aggregate, seed).items():
            loss = log_q - prior.log_prob(value)
            figures[name] = float(loss.mean())
            # of the draws alone: the images are the ones that the claim is about
            figures[f"{name}, error"] = float((loss - loss.mean(1, keepdim=True)).std() / loss.numel() ** 0.5)
        return Outcome(figures)

    def conclude(self, outcomes: Mapping[str, Outcome]) -> Conclusion:
        """All checks over all seeds."""
        found = [outcome.figures for outcome in outcomes.values()]
        gains = [-f[name] / f[f"{name}, error"] for f in found for name in OTHERS]
        deviation, z = (max(float(f[name]) for f in found) for name in ("density", "largest_z"))
        kl, bound = max(float(f["mean_kl"]) for f in found), math.log(self.num_images)
        holds = deviation <= TOLERANCE and z <= MOST_ERRORS and max(gains) <= MOST_ERRORS and kl <= bound
        rows = [
            {"prior": name, "nats a slot lost, least": min(f[name] for f in found), "mean": _mean(found, name),
             "most": max(f[name] for f in found)}
            for name in OTHERS
        ]  # fmt: skip
        checks = [
            {"check": "density against all components, largest deviation", "found": deviation, "bar": TOLERANCE},
            {"check": f"largest z of {NUM_BOXES * len(found)} boxes", "found": z, "bar": MOST_ERRORS},
            {"check": "largest gain of another prior, standard errors", "found": max(gains), "bar": MOST_ERRORS},
            {"check": "mean KL of an image's mixture to the aggregate, nats", "found": kl, "bar": bound},
        ]
        least = min(f[name] for f in found for name in OTHERS)
        reason = f"Densities agree to {deviation:.1e}; every other prior loses at least {least:.3f} nats a slot."
        return Conclusion(
            "holds" if holds else "fails",
            reason,
            {"largest_deviation": deviation, "largest_z": z, "least_loss": least, "mean_kl": kl},
            {"Checks": checks, "What other priors lose on the same images": rows},
            {"aggregate": self._picture()},
        )

    def _picture(self) -> Figure:
        images = local_mixtures(self.num_images, self.num_slots, torch.Generator().manual_seed(self.seeds[0]))
        aggregate = from_posteriors(lambda: [images])
        low, high = (images.loc.flatten(0, 1).min(0).values - 2, images.loc.flatten(0, 1).max(0).values + 2)
        x, y = (torch.linspace(float(low[d]), float(high[d]), 120, dtype=torch.float64) for d in range(2))
        density = aggregate.log_prob(torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)).exp()
        few_loc, few_var = images.loc[:8].flatten(0, 1).numpy(), images.var[:8].flatten(0, 1).numpy()
        return aggregate_figure(x.numpy(), y.numpy(), density.numpy(), few_loc, few_var)


def _mean(found: Sequence[Mapping[str, float]], name: str) -> float:
    return sum(f[name] for f in found) / len(found)


SCALES: Mapping[str, Experiment] = {
    "smoke": AggregateLemma(seeds=(0,), num_images=60, num_draws=100),
    "cpu": AggregateLemma(),
    "gpu": AggregateLemma(num_images=2000, num_draws=1000),
}
