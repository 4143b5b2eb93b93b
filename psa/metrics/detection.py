"""Predicted segments as detections of true objects: AP, PQ, precision and recall, over a whole data set."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Integer
from torch import Tensor

from psa.metrics.contingency import Contingency, contingency, first_of_each, kept, label_maps, require_same_shape


@dataclass(frozen=True)
class Detections:
    """The predicted segments of some images, the background's left out; order means nothing.

    Attributes:
        iou: (P,), with the object that a segment detects, in [0.5, 1]; 0 where it detects none.
        confidence: (P,), the mean confidence of a segment's pixels.
        num_objects: True objects of the images.
    """

    iou: Float64[Tensor, " predictions"]
    confidence: Float64[Tensor, " predictions"]
    num_objects: int


@dataclass(frozen=True)
class DetectionScores:
    """How the objects of a data set were detected, each in [0, 1]; NaN where nothing was there to count.

    Attributes:
        ap: Average precision at the IoU threshold 0.5.
        pq: Panoptic quality.
        precision: Share of the predicted segments that detect an object.
        recall: Share of the objects that are detected.
    """

    ap: float
    pq: float
    precision: float
    recall: float


def detect(
    predicted: Integer[Tensor, "batch *pixels"],
    true: Integer[Tensor, "batch *pixels"],
    background: Collection[int] = (0,),
    confidence: Float[Tensor, "batch *pixels"] | None = None,
) -> Detections:
    """Match predicted segments with true objects, one to one, where their IoU is at least 0.5.

    The true background, all its labels together, is no object; a segment whose IoU with it is at least 0.5 is no
    prediction. The other pixels stay: a segment that bleeds into the background has the larger union. Above 0.5 no
    choice is left, as segments do not overlap. Where two segments are the halves of an object, the more confident one
    detects it.

    Yang and Yang's released code matches by the Hungarian method on all IoUs instead, which may give up a pair at 0.5
    for two below it that add to more; here no pair that counts is lost.

    Args:
        predicted: (B, ...) integer labels, any values.
        true: (B, ...) integer labels, the same shape.
        background: True labels that are no object.
        confidence: (B, ...), how sure the prediction is of each pixel's label, such as its mask's value there. Left
            out, all segments are equally sure.

    Raises:
        ValueError: As ``psa.metrics.segmentation.adjusted_rand_index``; or if confidence has another shape.

    Reference: Yang and Yang, Promising or elusive? Unsupervised object segmentation from real-world single images,
    NeurIPS 2022 (github.com/vLAR-group/UnsupObjSeg, Segmentation_Evaluation).
    """
    if confidence is not None:
        require_same_shape("confidence", confidence, "predicted", predicted)
    predicted, true = label_maps(predicted, true)
    table = contingency(true, predicted, kept(true, ()))
    objects, columns = kept(table.rows.label, background), table.columns
    sure = torch.ones(len(columns.size), dtype=torch.float64, device=true.device)
    if confidence is not None:
        sure = torch.zeros_like(sure).index_add(0, columns.index, confidence.detach().double().flatten()) / columns.size

    union = table.rows.size[table.cell_row] + columns.size[table.cell_column] - table.cells.size
    hits = objects[table.cell_row] & (2 * table.cells.size >= union)
    hits = first_of_each(table.cell_row, sure[table.cell_column], hits, len(table.rows.size))
    iou = (table.cells.size.double() / union).masked_fill(~hits, 0.0)
    best = torch.zeros_like(sure).scatter_reduce(0, table.cell_column, iou, "amax")
    counted = ~_background_like(table, objects, len(true))
    return Detections(best[counted], sure[counted], int(objects.sum()))


def _background_like(table: Contingency, objects: Tensor, num_images: int) -> Bool[Tensor, " columns"]:
    """The predicted segments whose IoU with the union of true background labels is at least 0.5."""
    rows, columns, behind = table.rows, table.columns, ~objects
    area = rows.size.new_zeros(num_images).index_add(0, rows.image[behind], rows.size[behind])
    within = behind[table.cell_row]
    overlap = torch.zeros_like(columns.size).index_add(0, table.cell_column[within], table.cells.size[within])
    return (overlap > 0) & (2 * overlap >= columns.size + area[columns.image] - overlap)


def score_detections(detections: Detections | Sequence[Detections]) -> DetectionScores:
    """AP, PQ, precision and recall, counted over all images together.

        precision = TP / P      recall = TP / O      PQ = sum_TP IoU / (TP + (P - TP) / 2 + (O - TP) / 2)
        AP = sum_k (R_k - R_k-1) max_{j >= k} precision_j,      over the distinct confidences, largest first

    P predictions, O objects, TP predictions that detect an object. Predictions of equal confidence enter together, so
    that neither the order of images nor the names of labels matter.

    Args:
        detections: Of one batch, or of all batches of the data set.

    Reference: as :func:`detect`; PQ: Kirillov et al., Panoptic segmentation, 2019.
    """
    batches = [detections] if isinstance(detections, Detections) else list(detections)
    if not batches:
        return DetectionScores(math.nan, math.nan, math.nan, math.nan)
    iou = torch.cat([batch.iou.cpu() for batch in batches])
    num_objects = sum(batch.num_objects for batch in batches)
    found = iou > 0
    hits, predictions = int(found.sum()), len(iou)
    weight = (predictions + num_objects) / 2
    return DetectionScores(
        ap=average_precision(found, torch.cat([batch.confidence.cpu() for batch in batches]), num_objects),
        # Sorted, so that the rounding of the sum does not depend on the order of images.
        pq=float(iou.sort().values.sum()) / weight if weight else math.nan,
        precision=hits / predictions if predictions else math.nan,
        recall=hits / num_objects if num_objects else math.nan,
    )


def average_precision(
    correct: Bool[Tensor, " predictions"], confidence: Float[Tensor, " predictions"], num_objects: int
) -> float:
    """The area under the precision-recall curve, precision made not to rise with recall; see above.

    Args:
        correct: (P,), whether a prediction counts; at most num_objects of them.
        confidence: (P,), by which predictions are ordered.
        num_objects: What there was to find; the area is NaN where that is nothing.
    """
    if not num_objects:
        return math.nan
    values, group = confidence.detach().unique(return_inverse=True)
    count = torch.bincount(group, minlength=len(values)).flip(0).cumsum(0)
    hits = torch.bincount(group[correct], minlength=len(values)).flip(0).cumsum(0)
    precision = (hits.double() / count).flip(0).cummax(0).values.flip(0)
    return float((hits.diff(prepend=hits.new_zeros(1)) * precision).sum()) / num_objects
