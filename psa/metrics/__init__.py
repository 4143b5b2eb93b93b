"""Scores and what they are held against; they take tensors, callables or torch distributions, never model classes."""

from psa.metrics.baselines import BASELINES, k_means, quadrants
from psa.metrics.segmentation import (
    adjusted_rand_index,
    foreground_ari,
    mean_segmentation_covering,
    mean_squared_error,
    num_objects,
    slot_count_error,
    slots_in_use,
)
from psa.metrics.summary import ImageScores, SegmentationSummary, score_images, summarise

__all__ = [
    "BASELINES",
    "ImageScores",
    "SegmentationSummary",
    "adjusted_rand_index",
    "foreground_ari",
    "k_means",
    "mean_segmentation_covering",
    "mean_squared_error",
    "num_objects",
    "quadrants",
    "score_images",
    "slot_count_error",
    "slots_in_use",
    "summarise",
]
