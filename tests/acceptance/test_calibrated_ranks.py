"""Issue 3: simulation-based calibration of exact and NUTS draws, variational ones beside them (tens of minutes)."""

import pytest
import torch

from psa.experiments.calibrated_ranks import ranks_of
from psa.experiments.tables import markdown


@pytest.mark.slow
def test_posterior_draws_are_calibrated():
    torch.set_num_threads(1)
    found = [ranks_of("exact", 400), ranks_of("nuts", 200), ranks_of("variational", 400)]
    rows = [{"sampler": one.sampler, **one.p_values, "smallest x tests": one.smallest} for one in found]
    print(markdown(rows))
    exact, nuts, variational = found
    assert exact.smallest > 0.001
    assert nuts.smallest > 0.001
    assert variational.smallest < 0.001, "a mean field that passes means a test that sees nothing"
