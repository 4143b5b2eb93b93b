"""``psa sample``: what it writes, that seeds repeat it, and what a user can get wrong."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import assert_says_one_line, contents
from command_line import run as psa_command
from PIL import Image
from tiny import WITH_KL, tiny_trainer, write_folder

import psa
from psa.models.scene_prior import ScenePrior

FILES = {"samples.json", "samples.npz", "samples.png"}
sample = partial(psa_command, "sample")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A tiny run whose slots look different, with its prior."""
    path = tmp_path_factory.mktemp("runs") / "tiny"
    trainer = tiny_trainer(WITH_KL, path=path)
    with torch.no_grad():
        list(trainer.autoencoder.model.decoder.parameters())[-2].mul_(5.0)
    trainer.fit()
    with torch.no_grad():
        list(trainer.autoencoder.model.decoder.parameters())[-2].mul_(5.0)
    trainer.save()
    assert sample(path, "-n", 1).code == 0
    return path


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def test_pictures_arrays_and_components_are_written(run: Path, tmp_path: Path):
    result = sample(run, "-n", 5, "--out", tmp_path / "out", "--json")
    assert result.code == 0, result.err
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    record = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert result.json == {**record, "out": str(tmp_path / "out")}
    arrays = np.load(tmp_path / "out" / "samples.npz", allow_pickle=False)
    assert arrays["slots"].shape == (5, 3, 8)
    assert arrays["masks"].shape == (5, 3, 16, 16)
    np.testing.assert_allclose(arrays["masks"].sum(1), 1.0, atol=1e-5)
    prior, _ = ScenePrior.load(run / "prior.safetensors")
    for scene, slots in enumerate(record["scenes"]):
        assert slots[0]["role"] == "background"
        assert [slot["role"] for slot in slots[1:]] == ["object"] * (len(slots) - 1)
        for slot in slots:
            assert arrays["component"][scene, slot["slot"]] == slot["component"]
            assert arrays["active"][scene, slot["slot"]]
            assert {1: "background", 2: "object"}[int(prior.roles[slot["component"]])] == slot["role"]
    with Image.open(tmp_path / "out" / "samples.png") as picture:
        assert picture.size == (5 * 144 + 16, 2 * 128 + 4 + 2 * 16)
    model = psa.load(run)
    scene = model.decode(torch.from_numpy(arrays["slots"]), torch.from_numpy(arrays["active"]))
    np.testing.assert_allclose(arrays["images"] / 255, scene.mean.clamp(0, 1).movedim(1, -1), atol=0.003)


@pytest.mark.parametrize("options", [(), ("--scheme", "independent", "--temperature", "0.5"), ("--keep", "1:0")])
def test_a_seed_repeats_the_bytes_and_another_does_not(run: Path, tmp_path: Path, options: tuple[str, ...]):
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        assert sample(run, "-n", 4, *options, "--seed", seed, "--out", tmp_path / name).code == 0
    one, same, other = (contents(tmp_path / name) for name in ("one", "same", "other"))
    assert set(one) == FILES
    assert one == same
    assert all(one[name] != other[name] for name in FILES)


def test_kept_slots_are_the_images_own_and_come_from_no_component(run: Path, tmp_path: Path):
    result = sample(run, "-n", 3, "--keep", "2:0,1", "--add", 1, "--others", "remove", "--out", tmp_path / "out")
    assert result.code == 0, result.err
    assert "image 2 of test, its slots: background " in result.out
    arrays = np.load(tmp_path / "out" / "samples.npz")
    model = psa.load(run)
    from psa.inference.sessions import run_images

    images = run_images(model, model.config.data, "test", 3)
    np.testing.assert_allclose(arrays["slots"][1, :2], model.encode(images.images)[1][2, :2], atol=1e-5)
    assert (arrays["component"][:, :2] == -1).all()
    assert (arrays["component"][:, 2] >= 0).all()
    record = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert [slot["role"] for slot in record["scenes"][0]] == [None, None, "object"]


def test_another_images_slots_are_swapped_in(run: Path, tmp_path: Path):
    result = sample(run, "-n", 2, "--keep", "0:background", "--others", "1", "--out", tmp_path / "out")
    assert result.code == 0, result.err
    assert (np.load(tmp_path / "out" / "samples.npz")["component"] == -1).all()


def test_a_prior_that_is_missing_or_stale_is_built_from_the_training_images(run: Path):
    before = (run / "prior.safetensors").read_bytes()
    (run / "prior.safetensors").unlink()
    assert sample(run, "-n", 1).code == 0
    assert (run / "prior.safetensors").read_bytes() == before
    prior, step = ScenePrior.load(run / "prior.safetensors")
    prior.save(run / "prior.safetensors", step - 1)
    assert sample(run, "-n", 1).code == 0
    assert (run / "prior.safetensors").read_bytes() == before
    assert {path.name for path in (run / "samples").iterdir()} == FILES


def test_images_may_come_from_elsewhere(run: Path, tmp_path: Path):
    folder = write_folder(tmp_path / "scenes", 3, masks=False)
    asked = ("-n", 1, "--keep", "2:0", "--data", folder, "--split", "all", "--out", tmp_path / "out")
    assert sample(run, *asked).code == 0
    assert_says_one_line(sample(run, *asked[:3], "3:0", *asked[4:]), 2, "0..2", "3")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("-n", 0), ("-n", "equal to 1")),
        (("--scheme", "both"), ("--scheme both", "scene, independent")),
        (("--temperature", -1), ("temperature",)),
        (("--temperature", "inf"), ("--temperature inf", "at least 0")),
        (("--temperature", "nan"), ("temperature",)),
        (("--add", 2), ("--keep IMAGE:SLOTS",)),
        (("--keep", "3"), ("--keep 3", "IMAGE:SLOTS")),
        (("--keep", "x:0"), ("--keep x:0", "number of an image")),
        (("--keep", "0:9"), ("--keep 0:9", "0..2", "9")),
        (("--keep", "0:all,"), ("--keep 0:all,",)),
        (("--keep", "0:0", "--others", "swap"), ("--others swap", "number of an image")),
        (("--keep", "0:0", "--add", 3), ("free", "3")),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(run: Path, tmp_path: Path, options: tuple, words: tuple[str, ...]):
    assert_says_one_line(sample(run, *options, "--out", tmp_path / "out"), 2, *words)
    assert not (tmp_path / "out").exists()


def test_a_directory_that_is_missing_truncated_or_foreign_is_one_line(run: Path, tmp_path: Path):
    assert_says_one_line(sample(tmp_path / "nothing"), 2, tmp_path / "nothing")
    (tmp_path / "foreign").mkdir()
    assert_says_one_line(sample(tmp_path / "foreign"), 2, "config.toml")
    for name in ("prior.safetensors", "checkpoint.safetensors"):
        (run / name).write_bytes((run / name).read_bytes()[:300])
        assert_says_one_line(sample(run), 2, name)


def test_an_out_that_is_a_file_is_one_line(run: Path, tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    assert_says_one_line(sample(run, "-n", 1, "--out", tmp_path / "file"), 2, "--out")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_joint_run_is_drawn_from_independently_and_its_scenes_are_refused_in_one_line(tmp_path: Path):
    trainer = tiny_trainer(WITH_KL, "decoder.kind=joint", path=tmp_path / "joint")
    trainer.fit()
    assert sample(tmp_path / "joint", "-n", 1, "--scheme", "independent").code == 0
    assert_says_one_line(sample(tmp_path / "joint", "-n", 1), 2, "scheme scene", "joint", "independent")
