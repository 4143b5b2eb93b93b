"""What mask labels a description allows; a file may hold others."""

import numpy as np
from jaxtyping import Int64

from psa.data.description import DatasetInfo
from psa.errors import DataError

VOID = (
    255  # of pixels that are neither background nor told to belong to an object, in VOC's masks and those of COCO here
)


def require_labels(labels: Int64[np.ndarray, "height width"], info: DatasetInfo, source: str) -> None:
    """Refuse a mask with a label that is negative, or neither below the number of slots nor the background's.

    Args:
        labels: The mask.
        info: The description of its data set; without a number of slots, no label is too large.
        source: What to name in the error.

    Raises:
        DataError: There is such a label; the first is named.
    """
    most_slots = np.inf if info.num_slots is None else info.num_slots
    if labels.size and labels.min() >= 0 and labels.max() < most_slots:
        return
    outside = labels[(labels < 0) | (labels >= most_slots)]
    outside = outside[~np.isin(outside, info.background_labels)]
    if outside.size:
        most = "0 or more" if info.num_slots is None else f"0 to {info.num_slots - 1}"
        raise DataError(f"{source}: expected mask labels of {most}, got {outside[0]}")
