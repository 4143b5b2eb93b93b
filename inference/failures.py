"""Whether a run has failed, told without labels: everything in one slot, or the image tiled (docs/failures.md)."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from psa.metrics import adjusted_rand_index

ONE_SLOT_SHARE = 0.98
TILING_AGREEMENT = 0.35
UNEXPLAINED = 0.5


@dataclass(frozen=True)
class Health:
    """What can be said of a run's decompositions without labels.

    Attributes:
        largest_share: Mean share of the image that its largest slot owns, in [0, 1].
        layout_agreement: Mean adjusted Rand index between the segmentations of different images, pixel by pixel: near 0
            where segments follow the objects, near 1 where they follow the place.
        unexplained: Squared error of the reconstruction over that of the mean image, in [0, 1] for a useful model.
        problems: One sentence a failure; empty for a run in order.
    """

    largest_share: float
    layout_agreement: float
    unexplained: float
    problems: tuple[str, ...]


class HealthWatch:
    """Looks for collapse and tiling in the decompositions of several images, which come a batch at a time.

    Args:
        num_slots: K; with one slot, owning everything is no failure.
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._shares: list[Float[Tensor, " batch"]] = []
        self._agreements: list[Float[Tensor, " batch"]] = []
        self._labels: list[Int64[Tensor, "1 height width"]] = []  # of the first image and the last
        self._origin: Float[Tensor, "channels rows columns"] | None = None
        # Over images, of x - origin: its sum a pixel, the sum of its square, and the squared error.
        self._sum: Tensor | float = 0.0
        self._square, self._error = 0.0, 0.0

    def add(
        self,
        labels: Int64[Tensor, "batch height width"],
        images: Float[Tensor, "batch channels rows columns"],
        reconstructions: Float[Tensor, "batch channels rows columns"],
    ) -> None:
        """The next images.

        Args:
            labels: The slot that owns each pixel.
            images: In [0, 1]; or maps of features, of any size.
            reconstructions: Of the same images.
        """
        owned = torch.nn.functional.one_hot(labels.flatten(1), self.num_slots)
        self._shares.append(owned.double().mean(1).amax(1))
        # Neighbours are different images.
        before = torch.cat([*self._labels[1:], labels])
        self._agreements.append(adjusted_rand_index(before[1:], before[:-1]))
        self._labels = [*(self._labels[:1] or [labels[:1]]), labels[-1:]]
        self._origin = images[0] if self._origin is None else self._origin
        away = (images - self._origin).double()
        self._sum = self._sum + away.sum(0)
        self._square += float(away.square().sum())
        self._error += float((images - reconstructions).double().square().sum())

    def health(self) -> Health:
        """What can be said of all of them."""
        share = torch.cat(self._shares)
        agreement = torch.cat([*self._agreements, adjusted_rand_index(*self._labels)])
        if len(share) == 1:
            agreement = share.new_tensor([math.nan])
        spread = self._square - float(torch.as_tensor(self._sum).square().sum()) / len(share)
        unexplained = self._error / spread if spread > 0 else math.nan
        largest, layout = float(share.mean()), float(agreement.mean())
        problems = []
        if self.num_slots > 1 and largest > ONE_SLOT_SHARE:
            problems.append(
                f"one slot owns {largest:.0%} of the average image: the run has collapsed into a single slot. "
                "Train longer, or give the KL less say: a lower objective.kl_weight or a lower objective.sigma"
            )
        elif self.num_slots > 1 and layout > TILING_AGREEMENT:
            problems.append(
                f"segments follow the place, not the content (agreement {layout:.2f} between different images): the "
                "run has tiled the image. Try another training.seed, learned queries, or more steps"
            )
        if unexplained > UNEXPLAINED:
            problems.append(
                f"reconstructions leave {unexplained:.0%} of the images' variance unexplained: train longer, or use a "
                "wider decoder"
            )
        return Health(largest, layout, unexplained, tuple(problems))


def diagnose(
    labels: Int64[Tensor, "batch height width"],
    images: Float[Tensor, "batch channels rows columns"],
    reconstructions: Float[Tensor, "batch channels rows columns"],
    num_slots: int,
) -> Health:
    """The health of a single batch; the arguments are those of :class:`HealthWatch`."""
    watch = HealthWatch(num_slots)
    watch.add(labels, images, reconstructions)
    return watch.health()
