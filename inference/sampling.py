"""New scenes that keep part of an image: slots kept, resampled, removed, swapped or added (docs/sampling.md)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from psa.inference.autoencoder import SlotAutoencoder
from psa.models.scene_prior import BACKGROUND, EMPTY, NO_COMPONENT, OBJECT, ScenePrior, SlotDraw

GROUPS = ("all", "background", "objects")


@dataclass(frozen=True)
class ImageSlots:
    """The slots of one image.

    Attributes:
        slots: (K, D), read-outs.
        roles: K of EMPTY, BACKGROUND, OBJECT.
    """

    slots: Float[Tensor, "slots features"]
    roles: tuple[int, ...]

    def of_role(self, role: int) -> list[int]:
        """Their numbers."""
        return [slot for slot, found in enumerate(self.roles) if found == role]

    def chosen(self, text: str) -> tuple[int, ...]:
        """The slots that ``all``, ``background``, ``objects`` or a list of numbers (``0,3``) names.

        Raises:
            ValueError: If it names none, or one that does not exist.
        """
        if text in GROUPS:
            wanted = {"all": (BACKGROUND, OBJECT), "background": (BACKGROUND,), "objects": (OBJECT,)}[text]
            return tuple(slot for role in wanted for slot in self.of_role(role))
        try:
            numbers = tuple(int(part) for part in text.split(","))
        except ValueError:
            raise ValueError(f"expected {', '.join(GROUPS)} or slots such as 0,3, got {text!r}") from None
        for number in numbers:
            if not 0 <= number < len(self.roles):
                raise ValueError(f"expected slots in 0..{len(self.roles) - 1}, got {number}")
        return numbers


@torch.no_grad()
def image_slots(autoencoder: SlotAutoencoder, image: Tensor) -> ImageSlots:
    """The slots of one image, (3, H, W) in [0, 1] or (H, W, 3) uint8, and what each of them is."""
    posterior, slots, _ = autoencoder.encode(image[None])
    found = autoencoder.roles(posterior, slots)
    roles = OBJECT * found.objects[0].long() + BACKGROUND * found.is_background[0].long()
    return ImageSlots(slots[0], tuple(roles.tolist()))


def edited_scenes(  # noqa: PLR0913
    prior: ScenePrior,
    image: ImageSlots,
    keep: tuple[int, ...],
    n: int,
    others: str | ImageSlots = "resample",
    add: int = 0,
    generator: torch.Generator | None = None,
    temperature: float = 1.0,
) -> SlotDraw:
    """n scenes with some slots of an image as they are, and the rest new.

    Args:
        prior: What new slots are drawn from: a background from backgrounds, an object from objects.
        image: The image's slots.
        keep: Numbers of the slots that stay.
        n: Scenes.
        others: What becomes of the other slots: ``resample``, each drawn anew in its role, empty ones left out;
            ``remove``; or another image's slots, of which the objects come in their place, and the background unless
            one is kept.
        add: New objects, in slots that are free.
        generator: Source of random numbers, on the prior's device.
        temperature: Factor of the covariances, >= 0.

    Returns:
        Slots in the image's places; component is -1 for slots that come from an image.

    Raises:
        ValueError: If nothing is left to decode, or the new slots are more than there is room for.
    """
    num_slots = len(image.roles)
    roles = [role if slot in keep else EMPTY for slot, role in enumerate(image.roles)]
    slots = image.slots.expand(n, -1, -1).clone()
    component = torch.full((n, num_slots), NO_COMPONENT, device=slots.device)
    active = torch.zeros(num_slots, dtype=torch.bool, device=slots.device)
    active[list(keep)] = True
    new: list[tuple[int, int]] = []  # place and role of what is drawn
    if isinstance(others, ImageSlots):
        _swap_in(slots, active, others, with_background=BACKGROUND not in roles)
    elif others == "resample":
        new = [(slot, role) for slot, role in enumerate(image.roles) if slot not in keep and role != EMPTY]
        active[[slot for slot, _ in new]] = True
    elif others != "remove":
        raise ValueError(f"others must be resample, remove or another image's slots, got {others!r}")
    free = _free(active, add)
    new += [(slot, OBJECT) for slot in free]
    active[free] = True
    if not bool(active.any()):
        raise ValueError("keep and add must leave a slot to decode, got none")
    for slot, role in new:
        slots[:, slot], component[:, slot] = prior.sample_role(role, (n,), generator, temperature)
    return SlotDraw(slots * active[:, None], active.expand(n, -1), component)


def _free(active: Bool[Tensor, " slots"], wanted: int) -> list[int]:
    free = (~active).nonzero()[:, 0].tolist()
    if wanted > len(free):
        raise ValueError(f"of {len(active)} slots {len(free)} are free, got {wanted} to put there")
    return free[:wanted]


def _swap_in(slots: Tensor, active: Tensor, other: ImageSlots, with_background: bool) -> None:
    """Put another image's slots where there is room, in every scene."""
    coming = other.of_role(BACKGROUND) * with_background + other.of_role(OBJECT)
    places = _free(active, len(coming))
    slots[:, places] = other.slots[coming]
    active[places] = True
