"""Two processes timed beside one: as many images a step, and a figure of each."""

import pytest
import tiny

from psa.experiments.bench.processes import Arrangement, ScalingProblem, bench_processes

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unchecked")]


def test_one_process_and_two_are_timed():
    who = (Arrangement(1, 1, 4), Arrangement(2, 1, 2))
    one, two = bench_processes(ScalingProblem(who, (*tiny.SETTINGS, *tiny.SPRITES), 1, 1, 3))
    assert (one.processes, two.processes) == (1, 2)
    assert two.times == pytest.approx(two.images_per_second / one.images_per_second)
    assert two.step_ms * two.images_per_second == pytest.approx(4_000)
