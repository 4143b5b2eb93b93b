"""Scores and what they are held against; they take tensors, callables or torch distributions, never model classes."""

from psa.metrics.baselines import BASELINES, k_means, quadrants
from psa.metrics.detection import Detections, DetectionScores, average_precision, detect, score_detections
from psa.metrics.foreground import ForegroundOverlap, foreground_overlap
from psa.metrics.identifiability import Identifiability, smcc
from psa.metrics.mask_summary import MaskScores, MaskSummary, score_masks, summarise_masks
from psa.metrics.redundancy import mean_squared_correlation
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
    "DetectionScores",
    "Detections",
    "ForegroundOverlap",
    "Identifiability",
    "ImageScores",
    "MaskScores",
    "MaskSummary",
    "MeanCorrelation",
    "SegmentationSummary",
    "SlotIdentifiability",
    "adjusted_rand_index",
    "average_precision",
    "detect",
    "foreground_ari",
    "foreground_overlap",
    "k_means",
    "mcc",
    "mean_segmentation_covering",
    "mean_squared_correlation",
    "mean_squared_error",
    "num_objects",
    "quadrants",
    "score_detections",
    "score_images",
    "score_masks",
    "sis",
    "slot_count_error",
    "slots_in_use",
    "smcc",
    "summarise",
    "summarise_masks",
]
