"""Parts of one's own in every process that is started: ranks, candidates of the demo, and readers."""

import numpy as np
import pytest
import tiny
from registered import forgetting, write_page

from psa import plugins
from psa.data import open_dataset, streamed
from psa.experiments.demo import run_demo
from psa.inference.config import override
from psa.inference.launching import Request, train
from psa.runs import RunDirectory, load_tensors

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unchecked")]
SETTINGS = (
    *tiny.SETTINGS,
    "slots.variant=damped-psa",
    "decoder.kind=blobs",
    "data.source=rings",
    "data.size=16",
    "data.num_scenes=20",
    "objective.sample=true",
    "training.steps=4",
)


@pytest.fixture(autouse=True)
def _loaded(tmp_path):
    (tmp_path / "plugins").mkdir()
    with forgetting():
        plugins.load_plugins(map(str, write_page(tmp_path / "plugins")))
        yield


def test_two_ranks_train_a_run_of_registered_names(tmp_path):
    out = tmp_path / "run"
    train(Request(out, override({}, [*SETTINGS, "training.devices=2"])), lambda step, row: None)
    assert load_tensors(RunDirectory(out).state)[1]["step"] == 4
    train(Request(out, None, ("training.steps=6", "training.devices=1")), lambda step, row: None)


def test_candidates_of_the_demo_train_a_run_of_registered_names(tmp_path):
    run_demo(override({}, SETTINGS), tmp_path / "demo", 0, None, lambda *news: None)


def test_a_spawned_reader_reads_a_registered_data_set():
    dataset = open_dataset("rings", "train", num_scenes=3, size=16)
    with streamed(dataset, [[i] for i in range(3)], 1, start_method="spawn") as batches:
        for batch, scene in zip(batches, map(dataset.__getitem__, range(3)), strict=True):
            assert np.array_equal(batch.images[0], scene.image)
