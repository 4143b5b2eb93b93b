"""Decoders by name, for ``decoder.kind``: those here, and those that a user registers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from psa.models.decoders.broadcast import BroadcastDecoder
from psa.models.decoders.grid import patch_grid
from psa.models.decoders.joint import JointDecoder
from psa.models.decoders.patch import PatchDecoder
from psa.models.decoders.transformer import SlotTransformer
from psa.registry import Registry, option_names


@dataclass(frozen=True)
class DecoderPlan:
    """What a decoder is built from: the run's sizes, and the table ``decoder`` of its configuration.

    Attributes:
        slot_dim: Features of a slot.
        size: (H, W) of what is observed: pixels, or the grid of features.
        channels: Of it: 3, or the number of features.
        hidden_dim, num_layers, patch, num_upsamplings, num_heads, dropout, kernel, num_convolutions: As set; of
            features, patch is 1 and there are no upsamplings.
        learned_positions: Whether positions have learned vectors: of features.
    """

    slot_dim: int
    size: tuple[int, int]
    channels: int = 3
    hidden_dim: int = 64
    num_layers: int = 3
    patch: int = 4
    num_upsamplings: int = 2
    num_heads: int = 4
    dropout: float = 0.0
    kernel: int | None = None
    num_convolutions: int = 1
    learned_positions: bool = False


Builder = Callable[..., nn.Module]
Registered = TypeVar("Registered", bound=Builder)


def _patch(plan: DecoderPlan) -> nn.Module:
    layers, channels = plan.num_layers, plan.channels
    return PatchDecoder(plan.slot_dim, plan.size, plan.hidden_dim, layers, plan.patch, channels, plan.learned_positions)


def _broadcast(plan: DecoderPlan) -> nn.Module:
    upsamplings, channels = plan.num_upsamplings, plan.channels
    return BroadcastDecoder(
        plan.slot_dim, plan.size, plan.hidden_dim, upsamplings, channels, plan.kernel, plan.num_convolutions
    )


def _joint(plan: DecoderPlan) -> nn.Module:
    return JointDecoder(plan.slot_dim, plan.size, plan.hidden_dim, plan.num_layers, plan.patch, plan.channels)


def _transformer(plan: DecoderPlan) -> SlotTransformer:
    rows, columns = patch_grid(plan.size, plan.patch)
    return SlotTransformer(
        plan.slot_dim, rows * columns, plan.hidden_dim, plan.num_layers, plan.num_heads, plan.dropout
    )


_OWN: Mapping[str, Builder] = {
    "patch": _patch,
    "broadcast": _broadcast,
    "joint": _joint,
    "transformer": _transformer,  # a part: what it tells, words or features, is put around it where a run is built
}
DECODERS: Registry[Builder] = Registry("decoder", _OWN)


def register_decoder(name: str) -> Callable[[Registered], Registered]:
    """A decorator that makes a decoder known as a value of ``decoder.kind``.

    What it decorates, a class or a function, takes a :class:`DecoderPlan`, and options by name, which users set in
    ``decoder.options``. It makes a module: slots (B, K, D) and optionally ``active`` (B, K), the slots to decode, to a
    :class:`psa.records.DecodedScene`, whose masks sum to one over slots. A subclass of
    :class:`psa.models.decoders.MaskedDecoder` has to say how one slot is painted. A ValueError of its own, such as of a
    size that it cannot paint, is told as a setting's.

    Args:
        name: Free, of letters, digits and ``. _ + -``.

    Raises:
        ValueError: If the name is taken.
    """

    def registered(builder: Registered) -> Registered:
        DECODERS.register(name, builder)
        return builder

    return registered


def decoder_of_kind(kind: str, plan: DecoderPlan, options: Mapping[str, str | bool | int | float]) -> nn.Module:
    """A decoder by the name of its kind.

    Raises:
        ValueError: If there is no such kind, it has no such option, or it refuses the plan.
    """
    builder = DECODERS.find(kind)
    takes = option_names(builder)
    for option in options:
        if takes is not None and option not in takes:
            expected = ", ".join(takes) or "none"
            raise ValueError(f"decoder.options.{option}: no such option for {kind}, expected {expected}")
    return builder(plan, **options)
