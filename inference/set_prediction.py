"""Objects' properties read off slots: how a set is written as vectors, the head, and the matched loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psa.errors import TrainingFailed
from psa.inference.config import TrainingConfig
from psa.inference.images import Batches
from psa.inference.optimisation import build_optimiser, set_learning_rate
from psa.metrics.sets import ObjectSets
from psa.metrics.slot_matching import match


@dataclass(frozen=True)
class PropertyLayout:
    """Which entries of an object's vector are what: coordinates, one-hot categories one after the other, presence.

    Attributes:
        num_coordinates: P; they are in [0, 1].
        num_codes: The number of codes of each categorical property, which go from 0.
    """

    num_coordinates: int
    num_codes: tuple[int, ...]

    @property
    def width(self) -> int:
        """Entries of a vector."""
        return self.num_coordinates + sum(self.num_codes) + 1

    def encode(self, objects: ObjectSets) -> Float[Tensor, "batch objects width"]:
        """Vectors of true objects; zeros where there is none.

        Raises:
            ValueError: If a code or a coordinate of an object is outside its range.
        """
        present = objects.presence > 0.5
        codes, limits = objects.categories[present], torch.tensor(self.num_codes, device=present.device)
        if bool(((codes < 0) | (codes >= limits)).any()):
            came = f"{codes.amin(0).tolist()} to {codes.amax(0).tolist()}"
            raise ValueError(f"categories: expected codes from 0 below {self.num_codes}, came {came}")
        coordinates = objects.coordinates[present]
        if bool(((coordinates < 0) | (coordinates > 1)).any()):
            raise ValueError(f"coordinates: expected values in [0, 1], came {coordinates.min()} to {coordinates.max()}")
        columns = objects.categories.clamp(min=0).minimum(limits - 1).unbind(2)
        hot = [nn.functional.one_hot(c, n) for c, n in zip(columns, self.num_codes, strict=True)]
        vectors = torch.cat([objects.coordinates, *hot, objects.presence[:, :, None]], dim=2)
        return vectors * present[:, :, None]

    def decode(self, vectors: Float[Tensor, "batch slots width"]) -> ObjectSets:
        """The likeliest codes, the coordinates and the confidence that predicted vectors tell."""
        coordinates, hot, presence = vectors.split([self.num_coordinates, sum(self.num_codes), 1], dim=2)
        codes = [part.argmax(2) for part in hot.split(list(self.num_codes), dim=2)]
        empty = torch.zeros(*vectors.shape[:2], 0, dtype=torch.int64, device=vectors.device)
        return ObjectSets(torch.stack(codes, dim=2) if codes else empty, coordinates, presence[:, :, 0])


class PropertyHead(nn.Module):
    """Slot -> an object's vector, each slot by itself: one hidden layer, a sigmoid (Slot Attention's head).

    Args:
        slot_dim: D.
        layout: Of the vectors.
        hidden_dim: Width of the hidden layer.
    """

    def __init__(self, slot_dim: int, layout: PropertyLayout, hidden_dim: int = 64) -> None:
        super().__init__()
        self.layout = layout
        self.mlp = nn.Sequential(nn.Linear(slot_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, layout.width))

    def forward(self, slots: Float[Tensor, "batch slots features"]) -> Float[Tensor, "batch slots width"]:
        """(B, K, width), in (0, 1)."""
        return self.mlp(slots).sigmoid()


def matched_huber(
    predicted: Float[Tensor, "batch slots width"], target: Float[Tensor, "batch objects width"]
) -> Float[Tensor, " batch"]:
    """The Huber loss of each image's best one-to-one matching of slots with objects.

        min over permutations p of sum_k huber(predicted_k, target_p(k)),    huber averaged over entries, delta 1

    with as many targets as slots: those without an object are zeros, so that a spare slot learns to say so. Found by
    the Hungarian method; the gradient is that of the matched pairs.

    Args:
        predicted: (B, K, F).
        target: (B, O, F), zeros where there is no object; O at most K.

    Raises:
        ValueError: If there are more objects than slots.

    Reference: Locatello et al., Slot Attention, 2020; Zhang et al., 2019, equation 2.
    """
    num_slots, num_objects = predicted.shape[1], target.shape[1]
    if num_objects > num_slots:
        raise ValueError(f"target: expected at most {num_slots} objects, one a slot, came {num_objects}")
    target = nn.functional.pad(target, (0, 0, 0, num_slots - num_objects)).to(predicted)
    ours, theirs = torch.broadcast_tensors(predicted[:, :, None], target[:, None])
    cost = nn.functional.huber_loss(ours, theirs, reduction="none").mean(3)
    everywhere = torch.ones(cost.shape[:2], dtype=torch.bool, device=cost.device)
    matching = match(cost.detach().double(), everywhere, everywhere)
    return cost.gather(2, matching[:, :, None])[:, :, 0].sum(1)


def fit_property_head(
    head: PropertyHead,
    slots_of: Callable[[Tensor], Tensor],
    target: Float[Tensor, "images objects width"],
    config: TrainingConfig,
    joint: Sequence[nn.Module] = (),
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> list[float]:
    """Train a head in place on the matched loss, on frozen slots or together with what finds them.

    Args:
        head: Trained.
        slots_of: Indices of images (n,) -> their slots (n, K, D): of slots in memory, or of modules named in ``joint``.
        target: (M, O, F), as ``PropertyLayout.encode`` writes it.
        config: Steps, batch size, learning rate with its schedule, largest gradient norm, and the seed of the order.
        joint: Modules trained with the head; without any, slots are frozen.
        progress: Called with every step's number and loss.

    Returns:
        The loss of each step, mean over its images.

    Raises:
        TrainingFailed: At a step whose predictions are not finite.
    """
    modules = nn.ModuleList([head, *joint])
    optimiser = build_optimiser(modules.parameters(), config)
    batches = Batches(len(target), config.batch_size, config.seed)
    losses = []
    for step in range(config.steps):
        set_learning_rate(optimiser, step, config)
        index = batches(step)
        with torch.set_grad_enabled(bool(joint)):
            slots = slots_of(index)
        predicted = head(slots)
        if not bool(predicted.isfinite().all()):
            raise TrainingFailed(f"predictions are not finite at step {step}: try a lower training.learning_rate")
        loss = matched_huber(predicted, target[index.to(target.device)]).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(modules.parameters(), config.clip_norm)
        optimiser.step()
        losses.append(float(loss.detach()))
        progress(step + 1, losses[-1])
    return losses
