"""Every experiment at cpu scale: what it prints is kept, and figures that have a bar are held to it.

Finished parts stay in build/acceptance/experiments, so that an interrupted check goes on where it stopped.
"""

from pathlib import Path

import pytest
from command_line import run as psa_command

from psa.experiments.registry import EXPERIMENTS

KEPT = Path(__file__).resolve().parents[2] / "build" / "acceptance" / "experiments"
HOUR = 3600.0
EXACT = ("special_cases", "concatenated_slots", "aggregate_lemma")


@pytest.mark.slow
@pytest.mark.timeout(2 * HOUR)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_cpu_scale(name: str, capsys):
    result = psa_command("experiment", "run", name, "--scale", "cpu", "--out", KEPT / name, "--json")
    assert result.code == 0, result.err
    with capsys.disabled():
        print("\n" + (KEPT / name / "result.md").read_text())
    found = result.json
    assert found["cpu_seconds"] <= HOUR
    if name in EXACT:
        assert found["verdict"] == "holds"
    if name == "aggregate_2d":
        assert found["smcc"] >= 0.98
        assert found["r2"] >= 0.95
        assert found["cpu_seconds"] <= 600
