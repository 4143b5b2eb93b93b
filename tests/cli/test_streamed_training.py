"""``psa train`` from a stream, its reader a forked process, beside the same command with the images in memory."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from command_line import Result, assert_says_one_line
from command_line import run as psa_command
from safetensors.torch import load_file

SETTINGS = tiny.options([*tiny.SETTINGS, "training.steps=4", "training.evaluate_every=4"])
STREAMED = tiny.options(["data.memory=0", "data.workers=1"])


def trained(data: Path, out: Path, *options: str) -> Result:
    return psa_command("train", "--data", data, "--out", out, "--json", *SETTINGS, *options)


def test_a_streamed_run_is_to_the_last_bit_the_run_from_memory(tmp_path):
    data = tiny.write_hdf5(tmp_path / "scenes.h5")
    kept, streamed = (trained(data, tmp_path / name, *options) for name, options in (("a", []), ("b", STREAMED)))
    assert kept.code == streamed.code == 0, streamed.err
    for name in ("checkpoint.safetensors", "prior.safetensors"):
        one, other = (load_file(tmp_path / run / name) for run in ("a", "b"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    apart = {"run", "report"}
    assert {k: v for k, v in kept.json.items() if k not in apart} == {
        k: v for k, v in streamed.json.items() if k not in apart
    }
    arrays = []
    for run in ("a", "b"):
        assert psa_command("encode", tmp_path / run, data, "--out", tmp_path / f"{run}.npz").code == 0
        with np.load(tmp_path / f"{run}.npz") as found:
            arrays.append(dict(found))
    assert all(np.array_equal(arrays[0][name], arrays[1][name]) for name in ("slots", "masks", "weights", "source"))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("options", [[], STREAMED], ids=["memory", "stream"])
def test_a_damaged_picture_is_the_same_one_line(tmp_path, options):
    data = tiny.write_folder(tmp_path / "scenes")
    for picture in (data / "images").iterdir():
        picture.write_bytes(picture.read_bytes()[:-40])
    result = trained(data, tmp_path / "run", *options)
    assert_says_one_line(result, 2, "expected a readable PNG or JPEG image, got", data / "images")
    assert multiprocessing.active_children() == []
