"""What several acceptance checks train."""

from pathlib import Path

import pytest
import torch

from psa.experiments.demo import SCENES, run_demo
from psa.inference.config import RECIPE, override

SEVEN_SLOTS = (*SCENES, "data.seed=0", "slots.num_slots=7", "training.steps=4000")
KEPT = Path(__file__).parents[2] / "build" / "acceptance" / "seven-slots"


@pytest.fixture(scope="session")
def seven_slots() -> Path:
    """The demo on its scenes with seven slots, 4000 steps: its best run by the held-out objective.

    ``psa demo --set slots.num_slots=7 --set training.steps=4000`` in 10 minutes; kept in build/ for the next check.
    """
    torch.set_num_threads(1)
    if not (KEPT / "report.html").exists():
        run_demo(override(RECIPE, SEVEN_SLOTS), KEPT, 0, None, lambda *news: None)
    return KEPT
