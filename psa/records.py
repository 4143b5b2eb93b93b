"""The records that flow between the rooms. All are frozen; tensors in them are never written to in place."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class SlotPosterior:
    """What inference found for a batch of images: a Gaussian mixture with one component a slot.

    Tensors follow the tokens' device and dtype, but are float32 at least (also under autocast).

    Attributes:
        weights: (B, K), non-negative, sums to 1 over K: the mean responsibility over the valid tokens (``vb``: the mean
            of the Dirichlet posterior).
        loc: (B, K, D), the slots' means after the last step.
        var: (B, K, D), positive, at least the variance floor.
        responsibilities: (B, K, N), sums to 1 over K: the last E-step's. A masked token's are those of a token at the
            image's mean; it counts nowhere.
        initial_loc: (B, K, D), where each slot started.
        elbo: (B,) in nats with every constant, for ``vb``; None where the member has no bound.
        covariance: (B, K, D, D), where covariances are full; ``var`` is its diagonal.
        concentration: (B, K), Dirichlet parameters alpha_k (conjugate updates only, like the next three).
        loc_strength: (B, K), kappa_k.
        precision_shape: (B, K), a_k.
        precision_rate: (B, K, D), b_kd; or (B, K, D, D) where covariances are full.
    """

    weights: Float[Tensor, "batch slots"]
    loc: Float[Tensor, "batch slots features"]
    var: Float[Tensor, "batch slots features"]
    responsibilities: Float[Tensor, "batch slots tokens"]
    initial_loc: Float[Tensor, "batch slots features"]
    elbo: Float[Tensor, " batch"] | None = None
    covariance: Float[Tensor, "batch slots features features"] | None = None
    concentration: Float[Tensor, "batch slots"] | None = None
    loc_strength: Float[Tensor, "batch slots"] | None = None
    precision_shape: Float[Tensor, "batch slots"] | None = None
    precision_rate: Float[Tensor, "batch slots *axes"] | None = None

    @property
    def labels(self) -> Tensor:
        """The slot that owns each token, (B, N) int64."""
        return self.responsibilities.argmax(dim=1)


@dataclass(frozen=True)
class DecodedScene:
    """What a masked decoder makes of a set of slots (the papers call it additive; the softmax couples the slots).

    Attributes:
        rgb: (B, K, C, H, W), each slot's picture; [0, 1] up to what training leaves outside it.
        log_masks: (B, K, H, W), log of masks that sum to 1 over K in every pixel.
    """

    rgb: Float[Tensor, "batch slots channels height width"]
    log_masks: Float[Tensor, "batch slots height width"]

    @property
    def masks(self) -> Tensor:
        """(B, K, H, W), sums to 1 over K."""
        return self.log_masks.exp()

    @property
    def mean(self) -> Float[Tensor, "batch channels height width"]:
        """The reconstruction sum_k mask_k rgb_k."""
        return torch.einsum("bkhw,bkchw->bchw", self.masks, self.rgb)

    @property
    def labels(self) -> Tensor:
        """The slot that owns each pixel, (B, H, W) int64."""
        return self.log_masks.argmax(dim=1)
