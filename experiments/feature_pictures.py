"""Pictures of the masks that runs on features have, of decoder and attention."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from psa.report.mask_grid import mask_grid_figure


def masks_of_rows(
    labels: Mapping[str, Mapping[str, Tensor]], shown: Mapping[str, Tensor], num_slots: int
) -> dict[str, Figure]:
    """A picture for each kind of masks: the images, their true objects, and the slots' labels, a line a row.

    Args:
        labels: By row, then by kind; empty where a run diverged.
        shown: ``images`` and ``masks`` of the same images.
        num_slots: K.
    """
    images, true = shown["images"].numpy(), shown["masks"].numpy().astype(np.int64)
    kinds = dict.fromkeys(kind for found in labels.values() for kind in found)
    return {
        f"{kind}_masks": mask_grid_figure(
            images,
            true,
            {row: found[kind].numpy().astype(np.int64) for row, found in labels.items() if kind in found},
            num_slots,
        )
        for kind in kinds
    }
