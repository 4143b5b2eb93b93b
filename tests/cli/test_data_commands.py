import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from command_line import assert_says_one_line, contents, run
from PIL import Image

from psa.data import DATASETS, open_dataset
from psa.data.catalogue import READERS


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny.write_folder(tmp_path_factory.mktemp("data") / "scenes", 30)


def test_list_names_every_generator_and_layout():
    listed = run("data", "list", "--json").json
    assert [row["name"] for row in listed["generators"]] == list(DATASETS)
    assert len(listed["layouts"]) == sum(bool(reader.layout) for reader in READERS) == len(READERS) - 1  # pickles
    assert all(row["layout"] and row["about"] for row in listed["layouts"])
    shown = run("data", "list").out
    assert all(row["layout"] in shown for row in listed["layouts"])


def test_inspect_counts_what_numpy_counts(folder):
    found = run("data", "inspect", folder, "--all", "--json").json
    scenes = list(open_dataset(folder, "train"))
    masks = np.stack([scene.mask for scene in scenes])
    assert found["layout"].startswith("folder")
    assert found["splits"] == {"train": 24, "val": 3, "test": 3, "all": 30}
    assert (found["split"], found["items_read"], found["sizes"]) == ("train", 24, {"16x16": 24})
    images = np.stack([scene.image for scene in scenes])
    assert found["value_range"] == [images.min(), images.max()]
    for row in found["labels"]:
        where = masks == row["label"]
        assert (row["pixels"], row["images"]) == (where.sum(), where.any(axis=(1, 2)).sum())
        assert row.get("background", False) == (row["label"] == 0)
    objects = [len(set(mask.flat) - {0}) for mask in masks]
    assert found["objects"] == {str(number): objects.count(number) for number in sorted(set(objects))}


def test_inspect_says_of_how_many_its_figures_are(folder):
    assert run("data", "inspect", folder, "-n", 5, "--json").json["items_read"] == 5
    assert "figures of 5 evenly spread of 24 items of train" in run("data", "inspect", folder, "-n", 5).out
    assert "figures of all 30 items of all" in run("data", "inspect", folder, "--split", "all").out


def test_inspect_finds_factors_and_their_range():
    found = run("data", "inspect", "tetrominoes", "-n", 8, "--set", "num_scenes=8", "--json").json
    scenes = list(open_dataset("tetrominoes", num_scenes=8))
    assert found["splits"] == {"train": 8}
    assert found["factors"].keys() == scenes[0].factors.keys()
    for name, told in found["factors"].items():
        values = np.stack([scene.factors[name] for scene in scenes])
        assert told["shapes"] == {f"{values.dtype} {values.shape[1:]}": 8}
        assert told["range"] == pytest.approx([values.min(), values.max()])
        assert told["unit"]


def test_inspect_takes_points_and_pictures_without_masks(tmp_path):
    found = run("data", "inspect", "mixture-2d", "-n", 3, "--json").json
    assert (found["kind"], found["objects"], found["sizes"]) == ("points", {"3": 3}, {"384x2": 3})
    plain = tiny.write_folder(tmp_path / "plain", 4, masks=False)
    found = run("data", "inspect", plain, "--json", "--out", tmp_path / "sheet.png").json
    assert (found["labels"], found["objects"], found["factors"]) == (None, None, {})
    assert "no masks" in run("data", "inspect", plain).out


def test_the_contact_sheet_shows_scenes_and_masks(tmp_path, folder):
    assert run("data", "inspect", folder, "-n", 3, "--out", tmp_path / "deep" / "sheet.png").code == 0
    with Image.open(tmp_path / "deep" / "sheet.png") as picture:
        assert picture.size == (3 * 144 + 16, 2 * 128 + 4 + 2 * 16)
        sheet = np.asarray(picture)
    scene = open_dataset(folder, "train")[0]
    assert np.array_equal(sheet[16:144:8, 16:144:8], scene.image)
    drawn = sheet[148:276:8, 16:144:8]
    assert len({tuple(colour) for colour in drawn.reshape(-1, 3)}) == len(np.unique(scene.mask))
    for label in np.unique(scene.mask):
        assert len(np.unique(drawn[scene.mask == label], axis=0)) == 1


def test_make_writes_the_scenes_that_the_generator_makes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = run("data", "make", "sprites", "-n", 30, "--seed", 3, "--set", "size=16", "--json").json
    assert made == {
        "out": "sprites.h5",
        "source": "sprites",
        "scenes": 36,
        "splits": {"train": 30, "val": 3, "test": 3},
        "bytes": (tmp_path / "sprites.h5").stat().st_size,
    }
    for split, count in made["splits"].items():
        expected = open_dataset("sprites", split, num_scenes=count, seed=3, size=16)
        found = open_dataset("sprites.h5", split)
        assert all(np.array_equal(one.image, other.image) for one, other in zip(found, expected, strict=True))


def test_a_converted_file_trains_as_its_source_does(tmp_path, folder):
    out = tmp_path / "scenes.h5"
    made = run("data", "convert", folder, "--out", out, "--size", "8x16", "--crop", "center", "--json").json
    assert (made["splits"], made["scenes"]) == ({"train": 24, "val": 3, "test": 3}, 30)
    losses = []
    prepared = tiny.options(["data.size=[8, 16]", "data.crop=center"])
    for name, source, options in (("a", out, []), ("b", folder, prepared)):
        settings = tiny.options([*tiny.SETTINGS, "training.steps=1", "training.evaluate_every=1"])
        trained = run("train", "--data", source, "--out", tmp_path / name, *settings, *options, "--json")
        assert trained.code == 0, trained.err
        losses.append((trained.json["mse"], trained.json["objective"], trained.json["foreground_ari"]))
    assert losses[0] == losses[1]


def test_convert_keeps_scenes_by_objects(tmp_path, folder):
    made = run("data", "convert", folder, "--out", tmp_path / "a.h5", "--max-objects", 2, "--split", "train", "--json")
    expected = sum(len(np.unique(scene.mask)) <= 3 for scene in open_dataset(folder, "train"))
    assert made.json["splits"] == {"train": expected}
    assert 0 < expected < 24


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inspect", "nowhere"], "nowhere: expected a data set"),
        (["inspect", "sprites", "--out", "a.txt"], "--out a.txt: expected a file ending in .png"),
        (["inspect", "FOLDER", "--size", "4by4"], "--size 4by4: expected a number of pixels, or HEIGHTxWIDTH"),
        (["inspect", "FOLDER", "--split", "dev"], "data.split"),
        (["inspect", "FOLDER", "--out", "FOLDER/images/000.png/a.png"], "cannot be written"),
        (["make", "sprtes"], "sprtes: expected a generator, one of sprites, tetrominoes"),
        (["make", "mixture-2d"], "mixture-2d: expected images, found points"),
        (["make", "sprites", "--set", "sizes=3"], "data.sizes: no such option for sprites"),
        (["convert", "FOLDER", "--out", "a.npz"], "a.npz: expected the name of a file ending in .h5 or .hdf5"),
        (["convert", "FOLDER", "--out", "FOLDER/images/000.png/a.h5"], "a.h5"),
        (["convert", "FOLDER", "--out", "/proc/a.h5"], "/proc/a.h5.part: expected a partial file that can be written"),
        (["convert", "FOLDER", "--out", "a.h5", "--max-objects", "1", "--min-objects", "2"], "data.max_objects"),
        (["convert", "FOLDER", "--out", "a.h5", "--split", "dev"], "data.split"),
        (["convert", "FOLDER", "--out", "a.h5", "--crop", "left"], "data.crop"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_one_line_and_nothing_is_left(tmp_path, monkeypatch, folder, arguments, words):
    monkeypatch.chdir(tmp_path)
    before = contents(folder)
    given = [argument.replace("FOLDER", str(folder)) for argument in arguments]
    assert_says_one_line(run("data", *given), 2, words)
    assert list(tmp_path.iterdir()) == []
    assert contents(folder) == before


def test_ctrl_c_says_how_to_go_on_and_the_same_command_does(tmp_path):
    out = tmp_path / "out.h5"
    command = ["data", "make", "sprites", "-n", "20000", "--out", str(out), "--json", "--set", "size=16"]
    process = subprocess.Popen(
        [sys.executable, "-m", "psa", *command],
        cwd=Path(__file__).resolve().parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    part = Path(f"{out}.part")
    try:
        deadline = time.monotonic() + 120
        while not part.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert f"{part} holds what is done, and the same command goes on" in printed
    assert "Traceback" not in errors
    assert part.exists()
    assert not out.exists()
    assert run(*command).json["scenes"] == 24_000
    assert not part.exists()
