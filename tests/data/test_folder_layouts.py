"""What holds for every layout of tests/layouts.py."""

import numpy as np
import pytest
import tiny
from command_line import assert_says_one_line, run
from formats import FORMATS
from fuzzing import check_items, fuzz
from layouts import LAYOUTS, SIZE, put, write_clevrtex

from psa.data import FolderScenes, Preparation, open_dataset
from psa.data.catalogue import READERS
from psa.errors import ConfigError, DataError


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request, tmp_path_factory):
    write, kind = LAYOUTS[request.param]
    return write(tmp_path_factory.mktemp("layouts") / request.param), kind


def test_one_reader_recognises_it_before_the_one_of_any_folder_and_it_is_opened(layout):
    root, kind = layout
    assert [reader.open for reader in READERS if reader.recognises(root)] == [kind, FolderScenes]
    opened = open_dataset(root, "all")
    assert isinstance(opened, kind)
    assert opened.info.size == (SIZE, SIZE)
    check_items(opened)


def test_neither_an_empty_folder_nor_a_file_nor_nothing_is_recognised(tmp_path):
    file = put(tmp_path / "file.txt", "")
    (tmp_path / "empty").mkdir()
    for reader in READERS:
        assert not reader.recognises(file)
        assert not reader.recognises(tmp_path / "nothing")
        assert reader.recognises(tmp_path / "empty") == (reader.open is FolderScenes)


def test_splits_are_disjoint_not_empty_and_cover_in_a_fixed_order(layout):
    root, kind = layout
    sources = {}
    for split in ("train", "val", "test", "all"):
        dataset = kind(root, split)
        sources[split] = [dataset.source(i) for i in range(len(dataset))]
        assert sources[split] == [kind(root, split).source(i) for i in range(len(dataset))]
    parts = sources["train"] + sources["val"] + sources["test"]
    assert min(map(len, sources.values())) > 0
    assert len(set(parts)) == len(parts)
    assert sorted(parts) == sorted(sources["all"])


def test_crop_and_resize_are_those_of_the_preparation(layout):
    root, kind = layout
    preparation = Preparation((8, 12), "center")
    whole, prepared = kind(root, "all"), kind(root, "all", preparation)
    assert prepared.info.size == (8, 12)
    np.testing.assert_array_equal(prepared[-1].image, preparation.image(whole[-1].image))
    if whole[-1].mask is not None:
        np.testing.assert_array_equal(prepared[-1].mask, preparation.mask(whole[-1].mask))


def test_indices_end_at_the_last_and_count_from_the_end_too(layout):
    root, kind = layout
    dataset = kind(root, "all")
    np.testing.assert_array_equal(dataset[-1].image, dataset[len(dataset) - 1].image)
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_factors_are_described_and_have_one_shape_in_all_scenes(layout):
    root, kind = layout
    dataset = kind(root, "train")
    shapes = {}
    for scene in dataset:
        for name, values in (scene.factors or {}).items():
            assert dataset.info.factors[name]
            assert shapes.setdefault(name, values.shape) == values.shape
    assert shapes.keys() == dataset.info.factors.keys()


def test_only_options_of_the_layout_are_taken(layout):
    root, kind = layout
    own = next(reader.options for reader in READERS if reader.open is kind)
    with pytest.raises(
        ConfigError, match=rf"^data\.seed: no such option for .*, expected size, crop{'.*masks' * len(own)}$"
    ):
        open_dataset(root, seed=3)
    if own:
        with pytest.raises(ConfigError, match=r"^data\.masks: expected one of instance, class, got 'panoptic'$"):
            open_dataset(root, masks="panoptic")


@pytest.mark.parametrize("name", ["CLEVR", "ClevrTex", "ShapeStacks", "COCO", "VOC"])
def test_damage_is_told_in_one_line_or_leaves_sound_scenes(tmp_path, name):
    assert set(fuzz(tmp_path, *FORMATS[name], range(20))) == {"refused", "read"}


def test_training_takes_a_step(layout, tmp_path, monkeypatch):
    # The page is most of the time of so short a run.
    monkeypatch.setattr("psa.inference.sessions.write_run_report", lambda *_, **__: None)
    root, _ = layout
    settings = tiny.options([*tiny.SETTINGS, "training.steps=1"])
    result = run("train", "--data", root, "--out", tmp_path / "run", "--json", *settings)
    assert result.code == 0, result.err
    assert np.isfinite(result.json["mse"])


def test_training_on_a_damaged_layout_leaves_nothing(tmp_path):
    root = write_clevrtex(tmp_path / "clevrtex")
    damaged = put(root / "1/CLEVRTEX_full_000009_flat.png", b"")
    result = run("train", "--data", root, "--out", tmp_path / "run", *tiny.options(tiny.SETTINGS))
    assert_says_one_line(result, 2, f"{damaged}: expected a readable PNG")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_may_not_be_looked_into_is_named(layout, monkeypatch):
    root, _ = layout

    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.stat", refuse)
    with pytest.raises(DataError, match=rf"^{root}.*: expected .*, got Permission denied$"):
        open_dataset(root)
