"""Scene draws whose objects can all be seen (docs/sampling.md)."""

from collections.abc import Callable

import torch
from jaxtyping import Bool
from torch import Tensor

from psa.inference.roles import find_roles
from psa.models.scene_prior import ScenePrior, SlotDraw
from psa.records import DecodedScene

ROUNDS = 20
CHUNK = 256

Decode = Callable[[Tensor, Tensor], DecodedScene]
"""Slots (B, K, D) and which of them to decode, (B, K) -> their pictures and masks."""


def draw_seen_scenes(
    decode: Decode, prior: ScenePrior, n: int, generator: torch.Generator | None = None, temperature: float = 1.0
) -> SlotDraw:
    """n scenes of a prior, of which every slot is what it was drawn as once it is decoded.

    Objects are drawn independently, so some hide each other or fade. A scene in which :func:`find_roles` does not find
    the drawn background and all drawn objects is drawn again, with the same number of objects: the counts stay those of
    the prior, and the slots come from the prior given that all are seen. After 20 rounds the last draw stands.

    Args:
        decode: The run's decoder.
        prior: Of the run.
        n: Scenes.
        generator: Source of random numbers, on the prior's device; the global one where None.
        temperature: Factor of the covariances, >= 0.
    """
    draw = prior.draw_scenes(n, generator, temperature)
    slots, component, active = draw.slots, draw.component, draw.active
    for _ in range(ROUNDS):
        unseen = (~_seen(decode, slots, active)).nonzero()[:, 0]
        if len(unseen) == 0:
            break
        again = prior.draw_scenes(len(unseen), generator, temperature, counts=active[unseen].sum(1) - 1)
        slots, component = slots.index_copy(0, unseen, again.slots), component.index_copy(0, unseen, again.component)
    return SlotDraw(slots, active, component)


def _seen(decode: Decode, slots: Tensor, active: Tensor) -> Bool[Tensor, " scenes"]:
    """Whether slot 0 is the background and all other active slots are objects."""
    drawn = active.clone()
    drawn[:, 0] = False
    parts = zip(slots.split(CHUNK), active.split(CHUNK), strict=True)
    found = torch.cat([find_roles(decode(some, these)).objects for some, these in parts])
    return (found == drawn).all(1)
