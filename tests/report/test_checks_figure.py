import io

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from psa.metrics.p_values import Check, Provenance
from psa.report.checks import checks_figure, checks_png, draw_check

EXACT = Provenance("prior predictive", "exactly", "")
RAW = Provenance("posterior predictive", "no", "")


def found(values: torch.Tensor, observed: float = 2.0, provenance: Provenance = EXACT, p_value: float = 0.25) -> Check:
    return Check(
        "slots_in_use",
        provenance,
        "upper",
        torch.tensor([observed], dtype=torch.float64),
        values.double()[:, None],
        torch.tensor([p_value], dtype=torch.float64),
    )


def drawn(check: Check):
    axes = Figure().add_subplot()
    draw_check(axes, check)
    return axes


def test_the_histogram_holds_every_replicate_and_the_line_stands_at_the_data():
    axes = drawn(found(torch.randn(999, generator=torch.Generator().manual_seed(0))))
    assert sum(bar.get_height() for bar in axes.patches) == 999
    assert axes.lines[0].get_xdata() == [2.0, 2.0]
    assert axes.get_title(loc="left") == "slots in use"
    assert axes.get_xlabel() == "p = 0.250, upper\nprior predictive"


def test_every_value_of_a_count_has_a_bar_of_its_own():
    counts = torch.tensor([1.0] * 5 + [2.0] * 3 + [4.0])
    bars = [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in drawn(found(counts)).patches]
    np.testing.assert_allclose([bar for bar in bars if bar[1]], [(1.0, 5), (2.0, 3), (4.0, 1)])


@pytest.mark.parametrize("values", [torch.full((9,), 2.0), torch.tensor([torch.inf, 1.0, -torch.inf])])
def test_equal_and_infinite_replicates_are_drawn(values):
    assert sum(bar.get_height() for bar in drawn(found(values)).patches) == values.isfinite().sum()
    assert not drawn(found(values, observed=float("inf"))).lines


def test_raw_p_values_say_that_they_are_not_uniform():
    assert drawn(found(torch.randn(9), provenance=RAW)).get_xlabel().endswith("posterior predictive (raw, not uniform)")


def test_p_is_no_finer_than_the_replicates_can_tell():
    assert drawn(found(torch.randn(99), p_value=0.002)).get_xlabel().startswith("p < 0.01,")
    assert drawn(found(torch.randn(999), p_value=0.002)).get_xlabel().startswith("p = 0.002,")


def test_a_calibrated_check_shows_the_statistic_and_the_calibrated_p():
    raw = found(torch.arange(40.0, 49.0), 44.0, RAW, 0.7)
    p_values = torch.rand(99, 1, dtype=torch.float64)
    calibrated = Check("slots_in_use", EXACT, "upper", p_values[0], p_values, p_values[1] * 0 + 0.125, raw)
    axes = drawn(calibrated)
    assert axes.lines[0].get_xdata() == [44.0, 44.0]
    assert axes.get_xlabel() == "p = 0.125, upper\nprior predictive"


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (5, 4, 2)])
def test_there_is_a_panel_for_every_check(count, columns, rows, tmp_path):
    path = tmp_path / "new" / "checks.png"
    checks_figure([found(torch.randn(30))] * count, path)
    with Image.open(io.BytesIO(path.read_bytes())) as picture:
        assert picture.size == (columns * 512, rows * 400)


def test_it_refuses_no_check_and_several_data_sets():
    with pytest.raises(ValueError, match="expected at least one, came none"):
        checks_png([])
    two = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(ValueError, match="expected one data set each, came 2 of slots_in_use"):
        checks_png([Check("slots_in_use", EXACT, "upper", two, torch.zeros(9, 2), two)])
