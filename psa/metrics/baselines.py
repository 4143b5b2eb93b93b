"""Segmentations that need no learning: what a trained model's scores are held against."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor


def quadrants(images: UInt8[Tensor, "batch height width 3"]) -> Int64[Tensor, "batch height width"]:
    """Cut every image into its four quarters, whatever it shows.

    The first floor(H/2) rows and floor(W/2) columns are the upper left.

    Args:
        images: (B, H, W, 3) uint8; only the shape counts.

    Returns:
        (B, H, W) int64: 0 upper left, 1 upper right, 2 lower left, 3 lower right.

    Raises:
        ValueError: If the images are no bytes or have another layout.
    """
    _require_images(images)
    batch, height, width, _ = images.shape
    lower = torch.arange(height, device=images.device) >= height // 2
    right = torch.arange(width, device=images.device) >= width // 2
    return (2 * lower[:, None].long() + right[None, :].long()).expand(batch, height, width).clone()


def k_means(
    images: UInt8[Tensor, "batch height width 3"], num_clusters: int, *, position_weight: float = 0.0, seed: int = 0
) -> Int64[Tensor, "batch height width"]:
    """Cluster the pixels of each image by colour, or by colour and place.

    A pixel is the point (r, g, b, w y, w x) with colours and places scaled to [0, 1], w the position weight. An image
    does not depend on the others of its batch. One with fewer different pixels than clusters gets a label for each.

    Args:
        images: (B, H, W, 3) uint8.
        num_clusters: K, at least 1.
        position_weight: w >= 0; 0 clusters colours alone, and equal colours then share a label.
        seed: Of the random starts (k-means++, the best of 4).

    Returns:
        (B, H, W) int64 in [0, num_clusters), in no particular order.

    Raises:
        ValueError: If the images are no bytes or have another layout, or a setting is outside its support.
    """
    _require_images(images)
    if num_clusters < 1:
        raise ValueError(f"num_clusters: expected at least 1, came {num_clusters}")
    if not 0.0 <= position_weight < float("inf"):
        raise ValueError(f"position_weight: expected a finite number >= 0, came {position_weight}")
    height, width = images.shape[1:3]
    places = np.stack(np.meshgrid(_unit_steps(height), _unit_steps(width), indexing="ij"), axis=-1)
    labels = np.zeros(images.shape[:3], dtype=np.int64)
    # An image is far too small for several threads: their waiting made it 10 times slower on a busy machine.
    with threadpool_limits(limits=1):
        for index, image in enumerate(images.cpu().numpy()):
            points = np.concatenate([image / 255.0, position_weight * places], axis=-1)
            labels[index] = _clusters(points.reshape(-1, 5), num_clusters, seed).reshape(height, width)
    return torch.from_numpy(labels).to(images.device)


def _unit_steps(length: int) -> Float64[np.ndarray, " length"]:
    return np.linspace(0.0, 1.0, length)


def _clusters(points: Float64[np.ndarray, "points 5"], num_clusters: int, seed: int) -> Int64[np.ndarray, " points"]:
    # Equal points always share a cluster, so each is clustered once with its count: the same objective, less work, and
    # never fewer points than clusters, which scikit-learn would warn of.
    different, index, counts = np.unique(points, axis=0, return_inverse=True, return_counts=True)
    model = KMeans(min(num_clusters, len(different)), n_init=4, random_state=seed)
    return model.fit(different, sample_weight=counts).labels_[index.ravel()].astype(np.int64)


def _require_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape[1:]:
        raise ValueError(f"images: expected (B, H, W, 3), came shape {tuple(images.shape)}")
    if images.dtype != torch.uint8:
        raise ValueError(f"images: expected uint8, came {images.dtype}")


def _quadrants(images: UInt8[Tensor, "batch height width 3"], num_clusters: int) -> Int64[Tensor, "batch height width"]:
    return quadrants(images)


BASELINES: Mapping[str, Callable[[Tensor, int], Tensor]] = MappingProxyType(
    {
        "quadrants": _quadrants,
        "k-means colour": k_means,
        "k-means colour + position": partial(k_means, position_weight=1.0),
    }
)
"""Name to callable (images (B, H, W, 3) uint8, number of segments) -> labels (B, H, W); quadrants always makes four."""
