"""Other slots of the same picture, searched for by damped Gauss-Newton steps (docs/diagnose.md)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor
from torch.func import vmap

from psa.metrics.compositional_contrast import Decoder
from psa.metrics.slot_jacobian import pushforward
from psa.metrics.slot_matching import match

NUM_STEPS = 15
AWAY = 1.5  # of the worst slot of the two starts along the direction that moves the picture least
CALM, BOLD = 4.0, 0.25  # factors of the damping after a step that failed, and one that helped


@dataclass(frozen=True)
class SamePictures:
    """What each start led to.

    Attributes:
        distance: (S,), of the point farthest from the true slots among those on its way that show the same picture; of
            its last point where none does. In units of the slots.
        error: (S,), the largest difference of a pixel there.
        same: (S,), whether it is the same picture.
    """

    distance: Float64[Tensor, " starts"]
    error: Float64[Tensor, " starts"]
    same: Bool[Tensor, " starts"]

    def farthest(self) -> float:
        """The largest distance at which the same picture was found; 0 where none was."""
        return float((self.distance * self.same).max())


def same_pictures(
    decode: Decoder,
    slots: Float64[Tensor, "slots features"],
    free: Int64[Tensor, " free"],
    draws: Float64[Tensor, "starts free features"],
    error: float,
    enough: float,
) -> SamePictures:
    """Search for other values of some slots, the rest fixed, that decode to the same picture.

    Starts are the draws, and two points along the direction of these slots that changes the picture least. From each,
    damped Gauss-Newton steps lower |f(s') - f(s)|^2. A point found proves that f is not one-to-one, to the error; that
    none was found proves nothing.

    Args:
        decode: Slots (K, D) of a scene -> pixels.
        slots: (K, D), the true ones, float64; one unit is a typical deviation.
        free: (F,), the slots to search for.
        draws: (S, F, D), starts.
        error: The largest difference of a pixel that is the same picture, > 0.
        enough: The search ends when the same picture was found as far away.

    Returns:
        Distances are |s' - s| of one slot; of several that of the worst one after the best matching, since the order of
        slots says nothing.
    """
    true, target = slots[free], decode(slots).flatten()

    def picture(part: Tensor) -> Tensor:
        return decode(slots.index_copy(0, free, part)).flatten()

    _, jacobian = pushforward(picture, true)
    weakest = torch.linalg.svd(jacobian.flatten(1), full_matrices=jacobian[0].numel() > len(jacobian)).Vh[-1]
    away = AWAY * (weakest / weakest.view_as(true).norm(dim=1).amax()).view_as(true)
    points = torch.cat([torch.stack([true + away, true - away]), draws])
    damping = points.new_full((len(points),), 1e-2)
    far, its_error = torch.full_like(damping, -1.0), torch.full_like(damping, torch.inf)
    value = vmap(picture)(points)
    for step in range(NUM_STEPS + 1):
        off, distance = (value - target).abs().amax(1), _distance(points, true)
        better = (off <= error) & (distance > far)
        far, its_error = torch.where(better, distance, far), torch.where(better, off, its_error)
        if step == NUM_STEPS or bool((far >= enough).any() or (off <= 1e-3 * error).all()):
            break
        trial = points - _steps(picture, points, value - target, damping)
        trial_value = vmap(picture)(trial)
        helped = (trial_value - target).square().sum(1) < (value - target).square().sum(1)
        points = torch.where(helped[:, None, None], trial, points)
        value = torch.where(helped[:, None], trial_value, value)
        damping = (damping * torch.where(helped, BOLD, CALM)).clamp(1e-12, 1e6)
    same = far >= 0
    return SamePictures(torch.where(same, far, distance), torch.where(same, its_error, off), same)


def _steps(picture: Decoder, points: Tensor, residual: Tensor, damping: Tensor) -> Tensor:
    """(J'J + damping mean(diag J'J) I)^-1 J'r of each start."""
    jacobians = vmap(lambda point: pushforward(picture, point)[1])(points).flatten(2)
    normal = jacobians.mT @ jacobians
    least = torch.finfo(normal.dtype).tiny
    ridge = damping * normal.diagonal(dim1=1, dim2=2).mean(1) + least
    normal = normal + ridge[:, None, None] * torch.eye(normal.shape[1]).to(normal)
    found = torch.linalg.solve_ex(normal, jacobians.mT @ residual[..., None]).result
    return found.nan_to_num(0.0, 0.0, 0.0).view_as(points)


def _distance(points: Tensor, true: Tensor) -> Tensor:
    """Of each set of slots from the true ones, matched; the worst slot's."""
    cost = torch.cdist(points, true.expand_as(points)).square()
    every = torch.ones(cost.shape[:2], dtype=torch.bool, device=cost.device)
    matching = match(cost, every, every)
    return cost.gather(2, matching[..., None])[..., 0].amax(1).sqrt()
