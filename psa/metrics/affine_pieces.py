"""Is a decoder piecewise affine: by its operations, and by its values along short segments (docs/diagnose.md)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.func import vmap

from psa.metrics.compositional_contrast import Decoder

LENGTHS = (1e-2, 1e-3, 1e-4)  # half a segment, in units of the slots
NUM_SEGMENTS = 4  # through each scene
ROUNDING = 256 * torch.finfo(torch.float64).eps  # of the picture's largest number
QUADRATIC = (0.005, 0.02)  # how a curve's bend falls, around 1/100, when the segment is ten times shorter

# Names of autograd's nodes without "Backward0". Affine in the one operand that depends on the slots:
_AFFINE = """
    AccumulateGrad Add Addmm Addmv Alias AsStrided AvgPool2D Baddbmm Bmm Cat Clone ConstantPadNd Convolution CopySlices
    CudnnBatchNorm Cumsum Diagonal Div Expand Flip Gather Index IndexCopy IndexPut IndexSelect Linear MaskedFill Mean
    Mm Mul Mv NativeBatchNorm NativeDropout Neg Permute PixelShuffle ReflectionPad2D Repeat ReplicationPad2D Reshape
    ReshapeAlias Roll Rsub Scatter ScatterAdd Select Slice Split SplitWithSizes Squeeze Stack Sub Sum T ToCopy Transpose
    Unbind Unfold UnsafeView Unsqueeze UpsampleBilinear2D UpsampleNearest2D View
"""
_PIECES = """
    Abs Amax Amin Clamp ClampMax ClampMin Hardshrink Hardsigmoid Hardtanh LeakyRelu Max MaxPool2DWithIndices Maximum
    Min Minimum PreluKernel Relu RreluWithNoise Softshrink Sort Threshold Topk Where
"""
_BREAKING = """
    Celu Cos Elu Erf Exp Gelu Glu Hardswish LinalgVectorNorm Log LogSigmoid LogSoftmax Logsumexp Mish NativeGroupNorm
    NativeLayerNorm Norm Pow Prod Reciprocal Rsqrt Sigmoid Silu Sin Softmax Softplus Sqrt Std Tanh Var
"""
_KINDS = {
    name: kind
    for kind, names in (("affine", _AFFINE), ("pieces", _PIECES), ("breaking", _BREAKING))
    for name in names.split()
}
_PRODUCTS = {"Addmm", "Addmv", "Baddbmm", "Bmm", "Convolution", "Dot", "Linear", "Mm", "Mul", "Mv"}


@dataclass(frozen=True)
class Operations:
    """What stands between the slots and the picture, by kind; names sorted, affine ones left out.

    Attributes:
        pieces: Piecewise affine ones.
        breaking: Ones that are not: a softmax, a normalisation, a product of two things that depend on the slots, ...
        unknown: Ones that are in neither list.
    """

    pieces: tuple[str, ...]
    breaking: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def piecewise_affine(self) -> bool | None:
        """Whether they are; None where that hangs on one that is not known."""
        if self.breaking:
            return False
        return None if self.unknown else True


def operations(decode: Decoder, slots: Float[Tensor, "slots features"]) -> Operations:
    """The operations that slots pass through in a decoder, as autograd records them: also those outside any module.

    Parameters must not ask for gradients, and normalisations be in evaluation mode, where a batch norm is affine. What
    a decoder does under ``no_grad`` or on detached tensors is not seen; :func:`straightness` sees it.
    """
    with torch.enable_grad():
        root = decode(slots.detach().clone().requires_grad_()).grad_fn
    waiting, seen = [root], set()
    found: dict[str, set[str]] = {"pieces": set(), "breaking": set(), "unknown": set()}
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        inputs = [function for function, _ in node.next_functions]
        waiting += inputs
        kind, name = _kind(node.name(), inputs)
        if kind != "affine":
            found[kind].add(name)
    return Operations(*(tuple(sorted(found[kind])) for kind in ("pieces", "breaking", "unknown")))


def _kind(node: str, inputs: Sequence[Any]) -> tuple[str, str]:
    """A node's kind, and its name in words."""
    base = re.sub(r"Backward\d*$", "", node.rpartition("::")[2])
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", base).lower()
    # the first operand of a matrix product with a sum is the sum's
    factors = inputs[1:3] if base in ("Addmm", "Addmv", "Baddbmm") else inputs[:2]
    dependent = sum(one is not None for one in factors)
    if base in _PRODUCTS and dependent == 2:
        return "breaking", "product"
    if base == "Div" and len(inputs) > 1 and inputs[1] is not None:
        return "breaking", "quotient"
    if base.startswith("ScaledDotProduct"):
        return "breaking", "attention"
    return _KINDS.get(base, "unknown"), name


@dataclass(frozen=True)
class Straightness:
    """How a picture's numbers bend along short segments.

    Attributes:
        lengths: (L,), half of a segment, in units of the slots, from long to short.
        bent: (L,), the share of (segment, pixel) pairs that bend by more than rounding.
        told: Share of pairs that bend so far at the middle length that a curve would still bend at the shortest.
        curved: Share of these that do bend a hundredth as far there, as a curve does. A kink bends a tenth as far, or,
            mostly, no more at all. 0 where nothing could be told.
    """

    lengths: Float64[Tensor, " lengths"]
    bent: Float64[Tensor, " lengths"]
    told: float
    curved: float


def straightness(
    decode: Decoder, scenes: Sequence[Float64[Tensor, "_ _"]], generator: torch.Generator | None = None
) -> Straightness:
    """The bends |f(s + h u) - 2 f(s) + f(s - h u)| of every pixel along segments in random directions u of all slots.

    A piecewise affine f bends only where a kink lies in the segment: the share of pixels that bend falls with h. A
    smooth f that is not affine bends everywhere, by h^2 |f''|.

    Args:
        decode: Slots (K, D) of a scene -> pixels.
        scenes: Slots (K, D) of each, float64; one unit is a typical deviation.
        generator: Source of the directions.
    """
    bends = []
    for slots in scenes:
        u = torch.randn(NUM_SEGMENTS, *slots.shape, generator=generator, dtype=slots.dtype, device=slots.device)
        middle = decode(slots).flatten()
        rounding = ROUNDING * middle.abs().amax().clamp(min=torch.finfo(middle.dtype).tiny)
        ends = [[vmap(decode)(slots + away * u).flatten(1) - middle for away in (h, -h)] for h in LENGTHS]
        bends.append(torch.stack([(one + other).abs() / rounding for one, other in ends]))
    every = torch.cat([one.flatten(1) for one in bends], dim=1)
    bent = (every > 1.0).double().mean(1)
    told = every[1] > 1.0 / QUADRATIC[0]
    fall = every[2][told] / every[1][told]
    curved = ((fall > QUADRATIC[0]) & (fall < QUADRATIC[1])).double().sum() / told.sum().clamp(min=1)
    lengths = torch.tensor(LENGTHS, dtype=torch.float64)
    return Straightness(lengths, bent.cpu(), told.double().mean().item(), curved.item())
