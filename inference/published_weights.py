"""Slot modules of published implementations, from their safetensors files (docs/moving.md).

Implementations of Slot Attention agree on the parts and differ in their names. A part is found by the names that
ports give it, below the one place of the file that has a projection of queries; what a file holds beside the slot
module (encoder, decoder) is reported as not used. Names do not tell arithmetic: where a port departs from the paper,
its weights fit and its results differ.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from psa.errors import DataError
from psa.inference.slot_inference import SlotInference
from psa.inference.variants import build

# Our part: what ports call it. The slot-attention package, BO-QSA, SLATE, and ports of the CLEVR code.
PARTS: Mapping[str, tuple[str, ...]] = {
    "projections.query": ("to_q", "project_q"),
    "projections.key": ("to_k", "project_k"),
    "projections.value": ("to_v", "project_v"),
    "projections.norm_tokens": ("norm_input", "norm_inputs", "norm_feature"),
    "projections.norm_slots": ("norm_slots",),
    "neural.gru": ("gru",),
    "neural.norm": ("norm_pre_ff", "norm_mlp"),
    "neural.mlp.0": ("mlp.0", "fc1"),
    "neural.mlp.2": ("mlp.2", "fc2"),
}
# Where slots start; it may lie beside the slot module, in what holds it.
STARTS: Mapping[str, tuple[str, ...]] = {
    "initialiser.loc": ("slots_mu", "slot_mu"),
    "initialiser.log_scale": ("slots_logsigma", "slots_log_sigma", "slot_log_sigma"),
    "initialiser.scale": ("slots_sigma",),  # of the ports that do not take its logarithm
    "initialiser.queries": ("slots_init.weight",),
}


@dataclass(frozen=True)
class WeightReport:
    """What became of the tensors of a file.

    Attributes:
        matched: Their name of each tensor that was taken, and ours.
        unused: Names of tensors that are no part of the slot module.
    """

    matched: Mapping[str, str]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        """A line a tensor."""
        width = max(map(len, self.matched))
        lines = [f"{theirs:<{width}} -> {ours}" for theirs, ours in self.matched.items()]
        return "\n".join([*lines, *(f"{name:<{width}}    not used" for name in self.unused)])


def load_published(
    weights: str | Path | Mapping[str, Tensor],
    variant: str | None = None,
    *,
    num_slots: int | None = None,
    num_iterations: int = 3,
    **overrides: Any,
) -> tuple[SlotInference, WeightReport]:
    """A member of the family with the weights of a published slot module; sizes and dtype are those of the weights.

    Args:
        weights: A safetensors file, or a state dict.
        variant: A member whose parameters are Slot Attention's; by default bo-qsa where the file has a query for each
            slot, else sa.
        num_slots: K. It may be left out where the file has queries: as many.
        num_iterations: E/M steps, the last one included.
        **overrides: Columns of the member's row, ``epsilon`` for one.

    Raises:
        DataError: If the file cannot be read, has no slot module or several, or lacks a part of the member.
        ValueError: If a name or value is outside its support.
    """
    source = "weights" if isinstance(weights, Mapping) else str(weights)
    tensors = weights if isinstance(weights, Mapping) else _read(Path(weights))
    found = {ours: tensors[theirs] for theirs, ours in match(tensors, source).items()}
    query, queries = found["projections.query.weight"], found.get("initialiser.queries")
    key, hidden = found.get("projections.key.weight", query), found.get("neural.mlp.0.weight")
    if num_slots is None:
        if queries is None:
            raise DataError(f"{source}: expected num_slots, since the file has no query for each slot, got none")
        num_slots = queries.shape[-2]
    columns = {} if hidden is None else {"hidden_dim": len(hidden)}
    module = build(
        variant or ("sa" if queries is None else "bo-qsa"),
        num_slots=num_slots,
        input_dim=key.shape[1],
        slot_dim=query.shape[1],
        num_iterations=num_iterations,
        **{**columns, "bias": "projections.query.bias" in found, **overrides},
    ).to(query.dtype)
    return module, take_weights(module, tensors, source)


def take_weights(module: SlotInference, tensors: Mapping[str, Tensor], source: str = "weights") -> WeightReport:
    """Give a member the weights of a published slot module, in place.

    Args:
        module: A member whose parameters are Slot Attention's.
        tensors: A state dict, of the slot module or of a model that holds one.
        source: For errors.

    Raises:
        DataError: As :func:`match`; or a part is missing, left over, or of another size.
    """
    names = match(tensors, source)
    found = {ours: tensors[theirs] for theirs, ours in names.items()}
    if "initialiser.scale" in found:
        found["initialiser.log_scale"] = _log(found.pop("initialiser.scale"), source)
    own = module.state_dict()
    for name, value in found.items():  # a start may come with fewer axes of length 1
        if name.startswith("initialiser.") and name in own and value.numel() == own[name].numel():
            found[name] = value.reshape(own[name].shape)
    try:
        module.load_state_dict(dict(module.named_buffers()) | found)
    except RuntimeError as error:
        reason = " ".join(line.strip() for line in str(error).splitlines()[1:])
        raise DataError(f"{source}: expected the parts of {module.spec.name}: {reason}") from None
    return WeightReport(names, tuple(name for name in tensors if name not in names))


def match(names: Iterable[str], source: str) -> dict[str, str]:
    """Their names of the slot module's tensors, and ours.

    Args:
        names: Of all tensors.
        source: For errors.

    Raises:
        DataError: If no projection of queries is among them, or more than one.
    """
    names = list(names)
    query = PARTS["projections.query"]
    ends = {_place(name, f"{alias}.weight") for name in names for alias in query}
    places = {place for place in ends if place is not None}
    if len(places) != 1:
        where = ", ".join(f"below {place[:-1]}" if place else "at the top" for place in sorted(places))
        expected = f"one slot module, with a projection of queries ({' or '.join(query)})"
        raise DataError(f"{source}: expected {expected}, found {where or 'none'}")
    (place,) = places
    matched = {}
    for name in names:
        for part, aliases in PARTS.items():
            for alias in aliases:
                if name.startswith(f"{place}{alias}."):
                    matched[name] = part + name[len(place) + len(alias) :]
        for start, aliases in STARTS.items():
            if any((outer := _place(name, alias)) is not None and place.startswith(outer) for alias in aliases):
                matched[name] = start
    return matched


def _place(name: str, end: str) -> str | None:
    """What comes before ``end`` in a dotted name, the dot included; None where it does not end so."""
    outer = name.removesuffix(end)
    return outer if name != outer and (not outer or outer.endswith(".")) else None


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(
            f"{path}: expected a safetensors file, got one that cannot be read ({error}); weights in a pickle "
            "(.pt, .pth, .ckpt) are saved anew by safetensors.torch.save_file in the program that wrote them"
        ) from None


def _log(scale: Tensor, source: str) -> Tensor:
    if not bool((scale > 0).all()):
        raise DataError(f"{source}: expected slots_sigma above 0, got {float(scale.min()):g}")
    return scale.log()
