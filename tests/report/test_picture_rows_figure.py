"""Pictures stand in their row and column, unchanged."""

import numpy as np

from psa.report.picture_rows import picture_rows


def test_every_picture_is_where_its_row_and_scene_say():
    g = np.random.default_rng(0)
    rows = {name: g.integers(0, 256, (3, 6, 6, 3), np.uint8) for name in ("scene", "sa")}
    figure = picture_rows(rows)
    assert [text.get_text() for text in figure.texts] == list(rows)
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    assert all(
        np.array_equal(found, picture) for found, picture in zip(shown, [*rows["scene"], *rows["sa"]], strict=True)
    )
    lefts, bottoms = ([round(getattr(axes.get_position(), n), 6) for axes in figure.axes] for n in ("x0", "y0"))
    assert lefts[:3] == lefts[3:] == sorted(lefts[:3])
    assert len(set(bottoms[:3])) == len(set(bottoms[3:])) == 1
    assert bottoms[3] < bottoms[0]
    assert min(lefts + bottoms) >= 0


def test_without_rows_it_says_so():
    figure = picture_rows({})
    assert figure.texts[0].get_text() == "no run was whole"
    assert not figure.axes
