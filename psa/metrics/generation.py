"""Quality of generated images: the Frechet distance of features that the user names."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

Features = Callable[[Tensor], Tensor]
"""Images (B, 3, H, W) in [0, 1] -> features (B, F)."""


class FewImagesWarning(UserWarning):
    """There are fewer images than features, so that a covariance is singular and the distance is biased upwards."""


class _Extractor(nn.Module):
    """Features in float64 about a fixed point: the distance knows no origin, and sums of squares stay small."""

    def __init__(self, features: Features, first: Float[Tensor, "batch channels height width"]) -> None:
        super().__init__()
        self.features = features
        self.origin = self._checked(first).mean(0)
        self.num_features = len(self.origin)  # asked for by torchmetrics, which else tries an image of 299 x 299

    def _checked(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            found = self.features(images)
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(images):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"features must give (B, F) for {len(images)} images, got {shape}")
        if not found.is_floating_point() or not bool(torch.isfinite(found).all()):
            raise ValueError(f"features must be finite floating point numbers, got {found.dtype}")
        return found.double()

    def forward(self, images: Tensor) -> Tensor:
        return self._checked(images) - self.origin.to(images.device)


def frechet_distance(real: Iterable[Tensor], generated: Iterable[Tensor], features: Features) -> float:
    """The Frechet distance between the features of two sets of images, each taken as a Gaussian.

        d^2 = |m - m'|^2 + trace(C + C' - 2 (C C')^(1/2)),    C with N - 1 in the denominator

    (Heusel et al. 2017), by torchmetrics' ``FrechetInceptionDistance`` with these features in place of Inception's:
    nothing is downloaded. It is biased upwards by about 1/N, so compare at equal N only; with fewer images than
    features the bias takes over, and a :class:`FewImagesWarning` says so.

    Args:
        real: Batches (B, 3, H, W) in [0, 1], sizes may differ.
        generated: As ``real``.
        features: Images -> (B, F), in evaluation mode, without randomness.

    Returns:
        d^2, in squared units of the features, at least 0 (rounding below is cut off).

    Raises:
        ValueError: If a set has fewer than 2 images, or the features are not finite (B, F).
    """
    metric, num_features, counts = None, 0, []
    for is_real, batches in ((True, real), (False, generated)):
        counts.append(0)
        for images in batches:
            if metric is None:
                extractor = _Extractor(features, images)
                metric, num_features = _metric(extractor).to(images.device), extractor.num_features
            metric.update(images, real=is_real)
            counts[-1] += len(images)
    if min(counts) < 2 or metric is None:
        raise ValueError(f"real and generated must hold at least 2 images each, got {counts[0]} and {counts[1]}")
    if min(counts) <= num_features:
        warnings.warn(
            f"{min(counts)} images for {num_features} features: the covariance is singular and the Frechet distance "
            "biased upwards; take more images than features",
            FewImagesWarning,
            stacklevel=2,
        )
    return max(0.0, float(metric.compute()))


def _metric(extractor: _Extractor) -> Any:  # a FrechetInceptionDistance, whose import takes seconds
    from torchmetrics.image.fid import FrechetInceptionDistance

    return FrechetInceptionDistance(feature=extractor, normalize=True)
