"""Where coordinate ascent starts: points of the image as means, each token given to the nearest of them."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from psa.inference.initialisers import FarthestPoints, KMeansPlusPlus, TokenView

Draw = Callable[[TokenView, int, torch.Generator | None], Tensor]


def _farthest(view: TokenView, num_slots: int, generator: torch.Generator | None) -> Tensor:
    return FarthestPoints(num_slots, 0)(view, num_slots)


def _kmeans(view: TokenView, num_slots: int, generator: torch.Generator | None) -> Tensor:
    return KMeansPlusPlus(num_slots, 0)(view, num_slots, generator)


def _random(view: TokenView, num_slots: int, generator: torch.Generator | None) -> Tensor:
    """Distinct tokens at random while there are any, in proportion to their weights."""
    weights = torch.ones_like(view.values[..., 0]) if view.token_weights is None else view.token_weights
    order = (torch.rand(weights.shape, dtype=weights.dtype, device=weights.device, generator=generator).log()) / weights
    order = torch.where(weights > 0, order, torch.full_like(order, -torch.inf)).argsort(1, descending=True)
    present = (weights > 0).sum(1, keepdim=True)
    slot = torch.arange(num_slots, device=order.device).expand(len(order), -1) % present
    chosen = order.gather(1, slot)
    return view.values.gather(1, chosen[..., None].expand(-1, -1, view.values.shape[-1]))


STARTS: Mapping[str, Draw] = MappingProxyType({"farthest": _farthest, "kmeans++": _kmeans, "random": _random})


def token_scale(
    values: Float[Tensor, "batch tokens features"], weights: Float[Tensor, "batch tokens"] | None
) -> Float[Tensor, "batch 1 features"]:
    """The standard deviation of centred tokens per axis; 1 on an axis that does not vary."""
    weights = torch.ones_like(values[..., 0]) if weights is None else weights
    var = (values.square() * weights[..., None]).sum(1, keepdim=True) / weights.sum(1)[:, None, None]
    rounding = 4.0 * torch.finfo(var.dtype).eps
    return torch.where(var > rounding**2, var, torch.ones_like(var)).sqrt()


def start_means(
    name: str,
    values: Float[Tensor, "batch tokens features"],
    weights: Float[Tensor, "batch tokens"] | None,
    num_slots: int,
    num_restarts: int,
    generator: torch.Generator | None,
) -> Float[Tensor, "batch restarts slots features"]:
    """Means for every restart, chosen on tokens in units of their standard deviation, so that units do not matter.

    After the first, restarts of ``farthest``, which draws nothing, are ``kmeans++``. Restart r leaves r mod K slots
    empty, their means those of the first: coordinate ascent empties a slot that has tokens only slowly or not at all.
    """
    scale = token_scale(values, weights)
    view = TokenView(values / scale, weights)
    restarts = []
    for restart in range(num_restarts):
        draw = STARTS[name if restart == 0 or name != "farthest" else "kmeans++"]
        means = draw(view, num_slots, generator) * scale
        used = num_slots - restart % num_slots
        restarts.append(torch.cat([means[:, :used], means[:, :1].expand(-1, num_slots - used, -1)], dim=1))
    return torch.stack(restarts, dim=1)


def nearest(
    values: Float[Tensor, "batch tokens features"],
    weights: Float[Tensor, "batch tokens"] | None,
    means: Float[Tensor, "batch slots features"],
) -> Float[Tensor, "batch slots tokens"]:
    """Each token's nearest mean in units of the tokens' standard deviation, as responsibilities of 0 and 1.

    Of equal means the first takes all.
    """
    scale = token_scale(values, weights)
    distance = torch.cdist(means / scale, values / scale, compute_mode="donot_use_mm_for_euclid_dist")
    least = distance == distance.amin(1, keepdim=True)
    return (least & (least.cumsum(1) == 1)).to(values)
