"""Slot-based scene models as inference in an explicit probabilistic program.

The rooms: ``psa`` (records, data, metrics, runs, reports, the command line), ``psa.models`` (what we believe about
scenes), ``psa.inference`` (how the posterior is found), ``psa.experiments`` (what is claimed). Data flows one way:
psa <- psa.models <- psa.inference <- psa.experiments <- psa.cli.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from psa.inference.autoencoder import SlotAutoencoder

__version__ = "0.1.0"

_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file():
    # In a bare checkout the other three rooms lie beside this folder.
    __path__.append(str(_checkout))


def load(run: str | Path) -> "SlotAutoencoder":
    """Open a trained run directory as a model with ``encode``, ``decode`` and ``sample``.

    Args:
        run: A run directory as ``psa train`` or ``psa demo`` writes it.

    Raises:
        psa.errors.RunError: If the directory is not a run, or its files do not fit together.
    """
    from psa.inference.autoencoder import load_run

    return load_run(Path(run))


__all__ = ["__version__", "load"]
