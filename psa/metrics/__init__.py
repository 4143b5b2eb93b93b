"""Scores and what they are held against; they take tensors, callables or torch distributions, never model classes."""

from psa.metrics.baselines import BASELINES, k_means, quadrants
from psa.metrics.detection import Detections, DetectionScores, average_precision, detect, score_detections
from psa.metrics.foreground import ForegroundOverlap, foreground_overlap
from psa.metrics.identifiability import Identifiability, smcc
from psa.metrics.mask_summary import MaskScores, MaskSummary, score_masks, summarise_masks
from psa.metrics.probes import ObjectFactors, ProbeScores, probe_slots, slots_of_objects
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
from psa.metrics.sets import THRESHOLDS, ObjectSets, set_average_precision
from psa.metrics.slot_scores import MeanCorrelation, SlotIdentifiability, mcc, sis
from psa.metrics.summary import ImageScores, SegmentationSummary, score_images, summarise

__all__ = [
    "BASELINES",
    "THRESHOLDS",
    "DetectionScores",
    "Detections",
    "ForegroundOverlap",
    "Identifiability",
    "ImageScores",
    "MaskScores",
    "MaskSummary",
    "MeanCorrelation",
    "ObjectFactors",
    "ObjectSets",
    "ProbeScores",
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
    "probe_slots",
    "quadrants",
    "score_detections",
    "score_images",
    "score_masks",
    "set_average_precision",
    "sis",
    "slot_count_error",
    "slots_in_use",
    "slots_of_objects",
    "smcc",
    "summarise",
    "summarise_masks",
]
