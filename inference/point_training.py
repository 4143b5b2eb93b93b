"""Training the token VAE of the 2-D study on Pyro's ELBO, each image's mixture found anew at every step."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from pyro.infer import Trace_ELBO
from torch import Tensor

from psa.inference.point_slots import PointSlots, fit_point_slots
from psa.models.points import PointGuide, PointModel


@dataclass(frozen=True)
class PointTraining:
    """How long and how fast.

    Attributes:
        steps: Of Adam.
        batch_size: Images a step.
        learning_rate: Falls to 0 by a cosine.
        em_iterations: Most steps of EM for a batch's mixtures.
    """

    steps: int = 300
    batch_size: int = 16
    learning_rate: float = 3e-3
    em_iterations: int = 10


DEFAULTS = PointTraining()


def train_points(
    model: PointModel,
    guide: PointGuide,
    points: Float[Tensor, "images tokens features"],
    slots: PointSlots,
    training: PointTraining = DEFAULTS,
    generator: torch.Generator | None = None,
    progress: Callable[[int, int], None] = lambda done, steps: None,
) -> list[float]:
    """Raise max over mixtures of the ELBO, in place.

    A step draws the latent points of a batch, finds every image's mixture of them by EM, and takes the gradient of the
    ELBO with the mixtures held: that of the maximum, where EM has converged (the mixture's own derivative is 0 there).

    Args:
        model: p(z, x).
        guide: q(z | x).
        points: (M, N, D), in units in which sigma is meant.
        slots: How EM finds the mixtures; its num_iterations are ``training``'s.
        training: Steps.
        generator: Source of batches, starts and the latent points that EM sees, on the points' device. Pyro draws
            those of the ELBO from the global generator.
        progress: Told steps done and all steps.

    Returns:
        Minus the ELBO of every step, in nats a point.
    """
    parameters = [*model.parameters(), *guide.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=training.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, training.steps)
    objective, em = Trace_ELBO()(model, guide), replace(slots, num_iterations=training.em_iterations)
    losses = []
    for step in range(training.steps):
        index = torch.randint(len(points), (training.batch_size,), generator=generator, device=points.device)
        batch = points[index]
        with torch.no_grad():
            mixture = fit_point_slots(guide.draw(batch, generator), em, generator)
        loss = objective(batch, mixture) / batch[..., 0].numel()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
        progress(step + 1, training.steps)
    return losses
