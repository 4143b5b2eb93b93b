"""Random numbers of training that are functions of the seed, the epoch and the image, and of nothing else.

Which process draws them, in what batch, and what was drawn before play no part. A number is a hash of its key: the
finaliser of splitmix64 (Steele, Lea and Flood 2014) after each part of the key is added, in int64 arithmetic, whose
products wrap around alike on every device.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import partial

import pyro.distributions as dist
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from psa.models.decoders.dropout import GivenDropout

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # as int64; odd, so that different counts give different states
FINALISER = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)))
AT_ONCE = 8  # images whose dropout is drawn together
BITS = 52  # of a uniform number: with half a step added, neither 0 nor 1 is ever reached in float64


class Purpose(IntEnum):
    """What images are read for. The same image of the same epoch has other noise for another purpose."""

    TRAINING = 0
    PRIOR = 1
    HELD_OUT = 2


class Site(IntEnum):
    """Which draw of an image it is."""

    START = 0
    SLOTS = 1
    WORDS = 2
    DROPOUT = 3  # and above: a number for each place that drops


@dataclass(frozen=True)
class ImageNoise:
    """Noise of a batch of images.

    Attributes:
        seed: Of the run.
        epoch: How often the data were read before.
        index: (B,), the place of each image in its data set; on the device that draws.
        purpose: What the images are read for.
    """

    seed: int
    epoch: int
    index: Int64[Tensor, " batch"]
    purpose: Purpose = Purpose.TRAINING

    def uniform(self, site: int, shape: Sequence[int]) -> Float64[Tensor, "batch *shape"]:
        """Uniform numbers in (0, 1), B times ``shape``, of 52 bits; the same at every call."""
        parts = self.index.new_tensor([self.seed, self.epoch, self.purpose, site])
        key = torch.zeros_like(parts[0])
        for part in (GOLDEN * (parts + 1)).unbind():
            key = _scrambled(key + part)
        key = _scrambled(key + GOLDEN * (self.index + 1))
        count = torch.arange(1, math.prod(shape) + 1, device=self.index.device)
        bits = _shifted(_scrambled(key[:, None] + GOLDEN * count), 64 - BITS)
        return ((bits.double() + 0.5) * 2.0**-BITS).reshape(-1, *shape)

    def normal(self, site: int, shape: Sequence[int], dtype: torch.dtype) -> Float[Tensor, "batch *shape"]:
        """Standard normal numbers, B times ``shape``, by the inverse of the distribution function."""
        return (math.sqrt(2.0) * torch.erfinv(2.0 * self.uniform(site, shape) - 1.0)).to(dtype)


@contextmanager
def keyed_dropout(network: nn.Module, noise: ImageNoise) -> Iterator[None]:
    """Within it, what the network drops of an image is a function of the image's key.

    Numbers are drawn for a few images at a time: they take far more memory than what becomes of them.
    """
    parts = [replace(noise, index=index) for index in noise.index.split(AT_ONCE)]
    places = [module for module in network.modules() if isinstance(module, GivenDropout)]

    def keep(site: int, shape: Sequence[int], share: float) -> Tensor:
        return torch.cat([part.uniform(site, shape) >= share for part in parts])

    for number, place in enumerate(places):
        place.keep = partial(keep, Site.DROPOUT + number)
    try:
        yield
    finally:
        for place in places:
            place.keep = None


RandomSource = torch.Generator | ImageNoise | None
"""Where an initialiser's draws come from; None is torch's global generator."""


class KeyedNormal(dist.Normal):
    """Normal(loc, scale) over (B, K, D) whose draw is keyed by image; its density and KL are the Normal's."""

    def __init__(self, loc: Tensor, scale: Tensor, noise: ImageNoise) -> None:
        super().__init__(loc, scale)
        self.noise = noise

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "KeyedNormal":
        """Itself: the noise is of these images, and of no more.

        Raises:
            ValueError: If another shape is asked for.
        """
        if torch.Size(batch_shape) != self.batch_shape:
            raise ValueError(f"batch_shape must be {tuple(self.batch_shape)}, got {tuple(batch_shape)}")
        return self

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """The draw (B, K, D).

        Raises:
            ValueError: If more than one is asked for.
        """
        if len(sample_shape):
            raise ValueError(f"sample_shape must be (): there is one draw an image, got {tuple(sample_shape)}")
        return self.loc + self.scale * self.noise.normal(Site.SLOTS, self.loc.shape[1:], self.loc.dtype)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """The draw without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape)


def _scrambled(state: Int64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
    for shift, factor in FINALISER:
        state = (state ^ _shifted(state, shift)) * factor
    return state ^ _shifted(state, 31)


def _shifted(state: Int64[Tensor, "*shape"], places: int) -> Int64[Tensor, "*shape"]:
    """To the right, zeros coming in: torch's own shift repeats the sign."""
    return (state >> places) & ((1 << (64 - places)) - 1)
