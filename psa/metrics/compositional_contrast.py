"""Compositional contrast: how far two slots act on one pixel."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.func import jvp, vmap

Decoder = Callable[[Tensor], Tensor]
"""Slots (K, D) of one image -> its pixels, of any shape."""


@dataclass(frozen=True)
class CompositionalContrast:
    """Of a decoder at a set of slots, in squared units of pixel per unit of slot; 0 if no pixel has two slots.

    Attributes:
        contrast: Mean over images.
        weighted: Mean over images, each pixel weighted by its gradient over the image's largest.
        per_image: (M,), unweighted.
    """

    contrast: float
    weighted: float
    per_image: Float64[Tensor, " batch"]


def gradient_norms(
    decode: Decoder, slots: Float[Tensor, "slots features"], chunk_size: int | None = None
) -> Float[Tensor, "slots pixels"]:
    """|df_n / ds_k| of every slot and pixel of one image, by forward-mode derivatives, all features of a slot at once.

    Args:
        decode: Slots (K, D) -> pixels; every number of its output is a pixel n. Its operations need forward-mode
            derivatives and must be ones that ``torch.func.vmap`` knows: in evaluation mode, without randomness.
            Fused attention has none: call within ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``.
        slots: (K, D).
        chunk_size: Directions at once, which bounds memory by as many decoded images; None takes the D of a slot.
    """
    num_slots, num_features = slots.shape
    slots = slots.detach()

    def derivative(direction: Float[Tensor, "slots features"]) -> Tensor:
        return jvp(decode, (slots,), (direction,))[1].flatten()

    norms = []
    with warnings.catch_warnings():
        # torch's own decompositions, which it loads at the first forward derivative of a process
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.script", category=DeprecationWarning)
        for k in range(num_slots):
            directions = slots.new_zeros(num_features, num_slots, num_features)
            directions[:, k] = torch.eye(num_features).to(slots)
            norms.append(vmap(derivative, chunk_size=chunk_size)(directions).norm(dim=0))
    return torch.stack(norms)


def compositional_contrast(
    decode: Decoder, slots: Float[Tensor, "batch slots features"], *, chunk_size: int | None = None
) -> CompositionalContrast:
    """The compositional contrast of a decoder at the slots of images (Brady et al. 2023; model.md section 5).

        g_kn = |df_n / ds_k|,    contrast = sum_n sum_{k < j} g_kn g_jn,
        weighted = sum_n w_n sum_{k < j} g_kn g_jn,    w_n = mean_k g_kn / max_i mean_k g_ki

    0 exactly for a decoder whose slots own disjoint pixels. It scales with pixels' units squared and their number: for
    one data set only. Sums are in float64, derivatives in the slots' dtype. No gradient flows.

    Args:
        decode: Slots (K, D) of one image -> pixels of any shape, every number a pixel n; see :func:`gradient_norms`.
        slots: (M, K, D).
        chunk_size: Directions at once, which bounds memory; None takes the D of a slot.

    Raises:
        ValueError: If there is no image.
    """
    if len(slots) == 0:
        raise ValueError("slots: expected at least one image, came none")
    contrasts, weighted = [], []
    with torch.no_grad():
        for image in slots:
            norms = gradient_norms(decode, image, chunk_size).double()
            # sum_{k < j} g_k g_j as sum_j g_j (g_1 + ... + g_{j - 1}): nothing is subtracted, so nothing cancels
            together = (norms[1:] * norms.cumsum(0)[:-1]).sum(0)
            mean = norms.mean(0)
            largest = mean.amax()
            contrasts.append(together.sum())
            weighted.append((together * mean).sum() / torch.where(largest > 0, largest, torch.ones_like(largest)))
    per_image = torch.stack(contrasts)
    return CompositionalContrast(per_image.mean().item(), torch.stack(weighted).mean().item(), per_image)
