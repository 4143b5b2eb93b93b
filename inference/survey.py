"""What one reading of a source says of all its slots, a sample of them, and sums over processes."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, distributed

from psa.conjugate import NormalGamma, token_features
from psa.inference.ascent import Tokens
from psa.inference.posterior_stream import NAMES, SlotChunk, SlotStream

WEIGHTINGS = ("weights", "uniform")
SURVEY_IMAGES = 256  # a sum's order, and so its rounding, does not depend on the chunks

Group = distributed.ProcessGroup | None


def summed(tensor: Tensor, group: Group) -> Tensor:
    """The sum over the processes of a group, in each of them."""
    if group is not None:
        distributed.all_reduce(tensor, group=group)
    return tensor


def gathered(tensor: Tensor, group: Group) -> list[Tensor]:
    """The tensors of all processes, in order of rank; shapes may differ."""
    if group is None:
        return [tensor]
    found: list[Tensor | None] = [None] * distributed.get_world_size(group)
    distributed.all_gather_object(found, tensor, group=group)
    return [part.to(tensor) for part in found if part is not None]


def slot_weights(chunk: SlotChunk, weighting: str) -> Float[Tensor, "batch slots"]:
    """pi_bk, or 1 under ``uniform``; float64. Over their sum they are the components' weights."""
    weights = torch.ones_like(chunk.weights) if weighting == "uniform" else chunk.weights
    return weights.to(torch.float64)


@dataclass(frozen=True)
class Survey:
    """All slots of a source in short, and how they enter EM.

    Attributes:
        counts: Images of each process.
        origin: (D,) float64, the overall mean, about which EM works.
        least_var: The least variance of any slot: no component's can be below it.
        num_slots: K.
        weighting: ``weights``, w_i = pi_bk, or ``uniform``, w_i = 1.
        full: Whether the components have full covariances.
        dtype: The source's.
    """

    counts: list[int]
    origin: Float[Tensor, " features"]
    least_var: float
    num_slots: int
    weighting: str
    full: bool
    dtype: torch.dtype

    @property
    def num_features(self) -> int:
        """D."""
        return len(self.origin)

    @property
    def num_terms(self) -> int:
        """Of a slot's features."""
        return 1 + self.num_features + self.num_features ** (2 if self.full else 1)

    def tokens(self, chunk: SlotChunk) -> Tokens:
        """The B K slots as the E-step wants tokens: E_i[T(s)] about the origin (1, terms, B K), and w_i (1, B K)."""
        loc = (chunk.loc.to(torch.float64) - self.origin).flatten(0, 1)
        features = token_features(loc[None], self.full)
        axes = self.num_features
        end, step = (axes**2, axes + 1) if self.full else (axes, 1)
        features[0, :end:step] += chunk.var.to(torch.float64).flatten(0, 1).T
        weights = slot_weights(chunk, self.weighting).reshape(1, -1)
        one = self.origin.new_ones(1, 1)
        flat = NormalGamma(self.origin.expand(1, 1, -1), one, one, one[..., None], self.full)
        return Tokens(features, weights, weights.sum(1), flat)


def survey(stream: SlotStream, weighting: str, full: bool, group: Group = None) -> Survey:
    """Read the source once."""
    count, least = 0, torch.inf
    total = chunk = None
    for chunk in stream.blocks(SURVEY_IMAGES):
        weights = slot_weights(chunk, weighting).flatten()
        sums = torch.cat([weights @ chunk.loc.to(torch.float64).flatten(0, 1), weights.sum()[None]])
        total = sums if total is None else total + sums
        count, least = count + len(chunk), min(least, float(chunk.var.min()))
    assert chunk is not None
    assert total is not None
    total = summed(total, group)
    # as tensors on the CPU: pickled between processes
    here = torch.tensor([count, least], dtype=torch.float64)
    everywhere = torch.stack(gathered(here, group))
    return Survey(
        counts=[int(part) for part in everywhere[:, 0]],
        origin=total[:-1] / total[-1],
        least_var=float(everywhere[:, 1].min()),
        num_slots=chunk.loc.shape[1],
        weighting=weighting,
        full=full,
        dtype=chunk.loc.dtype,
    )


def sample_images(stream: SlotStream, seen: Survey, size: int, seed: int, group: Group = None) -> SlotChunk:
    """About ``size`` images at random, by their number in the whole source; all of them if there are no more."""
    total = sum(seen.counts)
    if size < total:
        index = torch.randint(total, (size,), generator=torch.Generator().manual_seed(seed)).unique()
    else:
        index = torch.arange(total)
    rank = 0 if group is None else distributed.get_rank(group)
    first = sum(seen.counts[:rank])
    mine = index[(index >= first) & (index < first + seen.counts[rank])] - first
    # filled in place: rows kept between chunks that come and go would leave the heap in pieces
    loc = torch.empty(len(mine), seen.num_slots, seen.num_features, dtype=seen.dtype, device=seen.origin.device)
    sample = SlotChunk(loc[..., 0].clone(), loc, loc.clone())
    start = place = 0
    for chunk in stream:
        here = mine[(mine >= start) & (mine < start + len(chunk))] - start
        for name in NAMES:
            getattr(sample, name)[place : place + len(here)] = getattr(chunk, name)[here.to(loc.device)]
        start, place = start + len(chunk), place + len(here)
    return SlotChunk(*(torch.cat(gathered(getattr(sample, name), group)) for name in NAMES))
