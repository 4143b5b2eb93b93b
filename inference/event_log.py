"""TensorBoard's log of a run (the extra ``tensorboard``)."""

from collections.abc import Mapping
from pathlib import Path

from psa.errors import ConfigError


class EventLog:
    """Writes each row of metrics as scalars.

    Args:
        folder: Where the event files go.
        step: The step training goes on from; what an earlier process logged past it is not shown.

    Raises:
        ConfigError: If the extra is not installed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError(
                "training.tensorboard: expected the tensorboard package (pip install 'psa-slots[tensorboard]')"
            ) from None
        self._writer = SummaryWriter(str(folder), purge_step=step or None)

    def write(self, row: Mapping[str, float]) -> None:
        """One row; it is on the disk afterwards."""
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(row["step"]))
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
