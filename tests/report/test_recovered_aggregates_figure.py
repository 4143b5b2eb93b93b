import numpy as np

from psa.report import pictures
from psa.report.recovered_aggregates import recovered_aggregates_figure


def test_a_column_a_run_with_the_lower_row_on_the_first_runs_axes():
    rng = np.random.default_rng(0)
    before = [scale * rng.normal(size=(50, 2)) for scale in (1.0, 5.0, 0.1)]
    after = [rng.normal(size=(50, 2)) for _ in range(3)]
    types = [rng.integers(-1, 5, 50) for _ in range(3)]
    figure = recovered_aggregates_figure(before, after, types)
    top, bottom = np.reshape(figure.axes, (2, 3))
    assert [axes.get_title() for axes in top] == ["run 1", "run 2", "run 3"]
    for run in range(3):
        assert np.array_equal(np.asarray(top[run].collections[0].get_offsets()), before[run])
        assert np.array_equal(np.asarray(bottom[run].collections[0].get_offsets()), after[run])
    assert len({axes.get_xlim() for axes in bottom}) == 1
    assert len({axes.get_xlim() for axes in top}) == 3
    low, high = top[1].get_xlim()
    assert low < np.quantile(before[1][:, 0], 0.01)
    assert high > np.quantile(before[1][:, 0], 0.99)
    assert pictures.figure_png(figure).startswith(b"\x89PNG")
