"""Every reader in a process that was not forked, as on macOS and Windows: the library is imported there anew."""

import numpy as np
import pytest
from formats import FORMATS

from psa.data import streamed

SCENES = [name for name in FORMATS if not name.startswith("tokens")]  # which are points


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENES)
def test_every_reader_works_in_a_spawned_worker(name, tmp_path):
    write, opened = FORMATS[name]
    write(tmp_path)
    dataset = opened(tmp_path)
    expected = [dataset[i] for i in range(len(dataset))]
    order = [[i] for i in range(len(dataset))]
    with streamed(dataset, order, 1, start_method="spawn") as batches:
        for batch, scene in zip(batches, expected, strict=True):
            assert np.array_equal(batch.images[0], scene.image)
            assert scene.mask is None or np.array_equal(batch.masks[0], scene.mask)
