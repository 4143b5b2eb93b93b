"""Scores and what they are held against; they take tensors, callables or torch distributions, never model classes."""

from psa.metrics.baselines import BASELINES, k_means, quadrants
from psa.metrics.identifiability import Identifiability, smcc
from psa.metrics.segmentation import (
    adjusted_rand_index,
    foreground_ari,
    mean_segmentation_covering,
    mean_squared_error,
    num_objects,
    slot_count_error,
    slots_in_use,
)
from psa.metrics.slot_scores import MeanCorrelation, SlotIdentifiability, mcc, sis
from psa.metrics.summary import ImageScores, SegmentationSummary, score_images, summarise

__all__ = [
    "BASELINES",
    "Identifiability",
    "ImageScores",
    "MeanCorrelation",
    "SegmentationSummary",
    "SlotIdentifiability",
    "adjusted_rand_index",
    "foreground_ari",
    "k_means",
    "mcc",
    "mean_segmentation_covering",
    "mean_squared_error",
    "num_objects",
    "quadrants",
    "score_images",
    "sis",
    "slot_count_error",
    "slots_in_use",
    "smcc",
    "summarise",
]
