"""The prior over whole scenes: an aggregate mixture of which each component has a role (docs/sampling.md).

A scene draw is: one slot from the background's components; n from the data's counts; n slots from the objects'
components. The independent draw of the paper takes every slot from the whole mixture.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from psa.errors import RunError
from psa.models.aggregate import AggregatePrior
from psa.runs import load_tensors, save_tensors

EMPTY, BACKGROUND, OBJECT = range(3)
ROLES = ("empty", "background", "object")
NO_COMPONENT = -1


@dataclass(frozen=True)
class SlotDraw:
    """Sets of slots to decode.

    Attributes:
        slots: (n, K, D); 0 where a slot is not used.
        active: (n, K), the slots to decode, at least one a scene.
        component: (n, K), the component each slot was drawn from; -1 where it was drawn from none.
    """

    slots: Float[Tensor, "scenes slots features"]
    active: Bool[Tensor, "scenes slots"]
    component: Int64[Tensor, "scenes slots"]


@dataclass(frozen=True)
class ScenePrior:
    """What scenes are drawn from.

    Attributes:
        aggregate: q(s), over all slots of the data.
        roles: (G,), of its components: 0 empty, 1 background, 2 object.
        counts: (K,), p(number of objects), 0 to K - 1, sums to 1.

    Raises:
        ValueError: If shapes do not fit, a value is outside its support, or no component is a background's; or there
            are objects to draw and no component for them.
    """

    aggregate: AggregatePrior
    roles: Int64[Tensor, " components"]
    counts: Float[Tensor, " counts"]

    def __post_init__(self) -> None:
        expected = (self.aggregate.num_components,)
        if tuple(self.roles.shape) != expected or not bool(((self.roles >= 0) & (self.roles < len(ROLES))).all()):
            raise ValueError(f"roles must be of shape {expected} in 0..{len(ROLES) - 1}, got {tuple(self.roles.shape)}")
        if not bool((self.counts >= 0).all()) or abs(float(self.counts.sum()) - 1.0) > 1e-4:
            raise ValueError(f"counts must be non-negative and sum to 1, got a sum of {float(self.counts.sum()):.6g}")
        if self.share(BACKGROUND) == 0:
            raise ValueError("roles must name a component of positive weight as the background's, got none")
        if self.share(OBJECT) == 0 and float(self.counts[0]) < 1.0:
            raise ValueError("roles must name a component of positive weight as an object's where counts has objects")

    @property
    def num_slots(self) -> int:
        """K, of which one is the background's."""
        return len(self.counts)

    def share(self, role: int) -> float:
        """The weight of a role's components."""
        return float(self.aggregate.weights[self.roles == role].sum())

    def sample_role(
        self,
        role: int,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> tuple[Float[Tensor, "*batch features"], Int64[Tensor, "*batch"]]:
        """Slots of one role, and their components: those of the whole mixture, by their number in it.

        Raises:
            ValueError: If no component has the role, or the temperature is negative.
        """
        members = (self.roles == role).nonzero()[:, 0]
        if self.share(role) == 0:
            raise ValueError(f"role must have a component, {ROLES[role]} has none")
        whole = self.aggregate
        weights = whole.weights[members]
        part = AggregatePrior(
            weights / weights.sum(),
            whole.loc[members],
            None if whole.var is None else whole.var[members],
            None if whole.covariance is None else whole.covariance[members],
        )
        slots, component = part.sample_components(shape, generator, temperature)
        return slots, members[component]

    def draw_counts(self, n: int, generator: torch.Generator | None = None) -> Int64[Tensor, " scenes"]:
        """Numbers of objects, (n,)."""
        place = torch.rand(n, generator=generator, dtype=torch.float64, device=self.counts.device)
        cumulative = self.counts.to(torch.float64).cumsum(0)
        found = torch.searchsorted(cumulative, place * cumulative[-1], right=True)
        return found.clamp(max=self.num_slots - 1)

    def draw_scenes(
        self,
        n: int,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        counts: Int64[Tensor, " scenes"] | None = None,
    ) -> SlotDraw:
        """n scenes: slot 0 is the background, then come the objects; the slots that are left are not active.

        Args:
            n: Scenes.
            generator: Source of random numbers, on the mixture's device; the global one where None.
            temperature: Factor of the covariances, >= 0.
            counts: (n,), numbers of objects, below K; drawn where None.
        """
        counts = self.draw_counts(n, generator) if counts is None else counts
        background, its_component = self.sample_role(BACKGROUND, (n, 1), generator, temperature)
        active = torch.arange(self.num_slots, device=self.roles.device) <= counts[:, None]
        if self.num_slots == 1 or self.share(OBJECT) == 0:
            rest = (n, self.num_slots - 1)
            slots, component = background.new_zeros(*rest, background.shape[-1]), its_component.new_zeros(rest)
        else:
            slots, component = self.sample_role(OBJECT, (n, self.num_slots - 1), generator, temperature)
        return SlotDraw(
            torch.cat([background, slots], 1) * active[..., None],
            active,
            torch.cat([its_component, component], 1).masked_fill(~active, NO_COMPONENT),
        )

    def draw_independent(self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> SlotDraw:
        """n scenes of K slots, each from the whole mixture (the paper's draw, PSA section 4); all are active."""
        slots, component = self.aggregate.sample_components((n, self.num_slots), generator, temperature)
        return SlotDraw(slots, torch.ones_like(component, dtype=torch.bool), component)

    def to(self, target: Tensor | torch.device | str) -> "ScenePrior":
        """The same on another device (of a tensor, its dtype too)."""
        aggregate = self.aggregate.to(target)
        device = aggregate.loc.device
        return ScenePrior(aggregate, self.roles.to(device), self.counts.to(device))

    def save(self, path: str | Path, step: int | None = None) -> None:
        """Write one safetensors file, which :meth:`AggregatePrior.load` can read too, and the run's training step."""
        tensors = {**self.aggregate.tensors(), "roles": self.roles, "counts": self.counts}
        save_tensors(Path(path), tensors, {**self.aggregate.notes(), "step": step})

    @classmethod
    def load(cls, path: str | Path) -> tuple["ScenePrior", int | None]:
        """What :meth:`save` wrote, on the CPU, and the step.

        Raises:
            RunError: If the file is missing, cut short, or holds something else.
        """
        aggregate = AggregatePrior.load(path)
        tensors, notes = load_tensors(Path(path))
        try:
            return cls(aggregate, tensors["roles"], tensors["counts"]), notes.get("step")
        except (KeyError, ValueError) as error:
            raise RunError(f"{path}: expected the prior of a run, got one without scenes ({error})") from None
