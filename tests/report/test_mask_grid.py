"""The grid of masks: pictures in their places, and a colour for each label."""

import numpy as np

from psa.report import pictures
from psa.report.mask_grid import mask_grid_figure


def test_images_and_labels_stand_in_their_places_in_their_colours():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    images[1] = 200
    true = np.zeros((2, 4, 4), np.int64)
    true[0, 1:3, 1:3] = 1
    found = np.full((2, 4, 4), 2)
    found[1, 1, 1] = 0
    figure = mask_grid_figure(images, true, {"a run": found}, 3)
    canvas = np.asarray(figure.axes[0].images[0].get_array())
    side, step = 96, 102
    assert canvas.shape == (3 * step, 2 * step, 3)

    def pixel(line: int, image: int, row: int, column: int) -> list[int]:
        return canvas[line * step + row * side // 4 + 5, image * step + column * side // 4 + 5].tolist()

    grey = pictures.rgb(pictures.scene_colours(true[0], 2)[0]).tolist()
    assert (pixel(0, 0, 0, 0), pixel(0, 1, 3, 3)) == ([0, 0, 0], [200, 200, 200])
    assert (pixel(1, 0, 0, 0), pixel(1, 0, 1, 1)) == (grey, pictures.rgb(pictures.colour(1)).tolist())
    assert (pixel(2, 1, 3, 3), pixel(2, 1, 1, 1)) == (grey, pictures.rgb(pictures.colour(0)).tolist())
    assert {text.get_text() for text in figure.texts} == {"image", "true objects", "a run"}
