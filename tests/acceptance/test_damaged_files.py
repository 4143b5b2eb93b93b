"""Issue 6: 200 spoiled data sets for each reader, each told in one line or read as its description promises."""

import time

import pytest
from formats import FORMATS
from fuzzing import fuzz


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_damage_is_told_in_one_line_or_leaves_sound_items(tmp_path, name):
    write, open_it = FORMATS[name]
    started = time.process_time()
    found = fuzz(tmp_path, write, open_it, range(200))
    seconds = time.process_time() - started
    print(f"{name}: {found['refused']} refused, {found['read']} read, {seconds:.1f} CPU-seconds")
    assert found.total() == 200
    assert found["refused"] >= 20
