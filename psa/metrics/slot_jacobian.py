"""What a scene's Jacobian says of its slots: the rank of each, and which pixels they share (docs/diagnose.md)."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.func import jvp, vmap

from psa.metrics.compositional_contrast import Decoder

CHUNK = 64  # directions at once


def pushforward(
    decode: Decoder, slots: Float[Tensor, "slots features"]
) -> tuple[Float[Tensor, " pixels"], Float[Tensor, "pixels slots features"]]:
    """The picture f(s), and df_n / ds_kd of every pixel, by forward-mode derivatives.

    Args:
        decode: Slots (K, D) of one image -> pixels; as for ``psa.metrics.compositional_contrast.gradient_norms``.
        slots: (K, D).
    """
    directions = torch.eye(slots.numel(), dtype=slots.dtype, device=slots.device).unflatten(1, slots.shape)

    def along(direction: Tensor) -> tuple[Tensor, Tensor]:
        found = jvp(decode, (slots,), (direction,))
        return found[0].flatten(), found[1].flatten()

    with warnings.catch_warnings(), torch.no_grad():
        # torch's own decompositions, which it loads at the first forward derivative of a process
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.script", category=DeprecationWarning)
        values, derivatives = vmap(along, out_dims=(0, 1), chunk_size=CHUNK)(directions)
    return values[0], derivatives.unflatten(1, slots.shape)


@dataclass(frozen=True)
class SlotRanks:
    """Of one scene's slots, each with the others fixed.

    Attributes:
        singular_values: (K, D) of df / ds_k, falling.
        rank: (K,), how many are above max(pixels, D) eps times the slot's largest, as numpy's ``matrix_rank`` counts.
        condition: (K,), largest over smallest; infinite where the rank is below D.
    """

    singular_values: Float64[Tensor, "slots features"]
    rank: Int64[Tensor, " slots"]
    condition: Float64[Tensor, " slots"]


def slot_ranks(jacobian: Float64[Tensor, "pixels slots features"]) -> SlotRanks:
    """The numerical rank of each slot's part of a Jacobian.

    Fewer pixels than features leave the rank below D.
    """
    num_pixels, _, num_features = jacobian.shape
    found = torch.linalg.svdvals(jacobian.movedim(1, 0))
    found = torch.nn.functional.pad(found, (0, num_features - found.shape[1]))
    tolerance = max(num_pixels, num_features) * torch.finfo(found.dtype).eps * found[:, :1]
    rank = (found > tolerance).sum(1)
    condition = torch.where(rank == num_features, found[:, 0] / found[:, -1], torch.inf)
    return SlotRanks(found, rank, condition)


@dataclass(frozen=True)
class SharedPixels:
    """Which pixels several slots act on.

    Attributes:
        counts: (K + 1,), share of pixels that 0, 1, ... slots move, sums to 1.
        contrast: sum_n sum_{k < j} g_kn g_jn, with g_kn = |df_n / ds_k|.
        contrast_at_random: Its mean over all ways to lay out each slot's g_k over the pixels.
    """

    counts: Float64[Tensor, " counts"]
    contrast: float
    contrast_at_random: float


def shared_pixels(norms: Float64[Tensor, "slots pixels"], contrast: float, step: float) -> SharedPixels:
    """Share of pixels by the number of slots that move them, and the contrast to expect by chance.

        mean over independent permutations of each g_k's pixels:  sum_{k < j} (sum_n g_kn) (sum_n g_jn) / N

    Args:
        norms: (K, N), g_kn.
        contrast: Of the same slots, by ``psa.metrics.compositional_contrast.compositional_contrast``.
        step: A slot moves a pixel if one unit along the pixel's gradient changes it by this much.
    """
    num_slots, num_pixels = norms.shape
    movers = (norms >= step).sum(0)
    totals = norms.sum(1)
    at_random = (totals[1:] * totals.cumsum(0)[:-1]).sum().item() / num_pixels
    counts = torch.bincount(movers, minlength=num_slots + 1).double() / num_pixels
    return SharedPixels(counts.cpu(), contrast, at_random)


@dataclass(frozen=True)
class Interaction:
    """How far a decoder is from a sum over slots, over several scenes.

    Attributes:
        share: Root of the energy of pairs' interactions over that of their two effects: 0 of a sum.
        order: The largest change of a pixel when the slots change places: 0 where their order says nothing.
    """

    share: float
    order: float


def interaction(
    decode: Decoder, scenes: Sequence[Float[Tensor, "_ _"]], others: Sequence[Float[Tensor, "_ _"]]
) -> Interaction:
    """Test x = sum_k f_k(s_k) exactly: exchange slots k and j for other ones, singly and together.

        D_kj = f(s) - f(s with k exchanged) - f(s with j exchanged) + f(s with both exchanged)

    is 0 for every pair if and only if f is a sum of functions of one slot each, whatever these are.

    Args:
        decode: Slots (K, D) of a scene -> pixels.
        scenes: Slots (K, D) of each.
        others: As many slots to exchange them for.
    """
    crossed = effects = order = 0.0
    for slots, other in zip(scenes, others, strict=True):
        picture = decode(slots)
        # written in full, as an exchange of one slot in a batched copy
        single = [decode(_exchanged(slots, other, k)) - picture for k in range(len(slots))]
        for k in range(len(slots)):
            for j in range(k):
                both = decode(_exchanged(_exchanged(slots, other, k), other, j)) - picture
                crossed += float((both - single[k] - single[j]).square().sum())
                effects += float(single[k].square().sum() + single[j].square().sum())
        order = max(order, float((decode(slots.roll(1, 0)) - picture).abs().max()))
    return Interaction((crossed / effects) ** 0.5 if effects else 0.0, order)


def _exchanged(slots: Tensor, other: Tensor, k: int) -> Tensor:
    slots = slots.clone()
    slots[k] = other[k]
    return slots
