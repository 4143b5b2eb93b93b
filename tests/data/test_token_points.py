import io
import json
import pickle

import numpy as np
import pytest
from archives import LABELS, TOKENS, npy, write_npz, write_tokens
from command_line import assert_says_one_line, run
from formats import FORMATS
from fuzzing import fuzz
from PIL import Image

from psa.data import TokenPoints, open_dataset, open_images
from psa.data.token_files import read_tokens
from psa.errors import ConfigError, DataError


@pytest.mark.parametrize("deflated", [False, True])
def test_images_and_their_labels_are_read_and_divided(tmp_path, deflated):
    path = write_tokens(tmp_path / "tokens.npz", deflated=deflated)
    whole = open_dataset(path, "all")
    assert isinstance(whole, TokenPoints)
    assert (whole.info.kind, whole.info.name, whole.info.size, whole.info.num_slots) == ("points", "tokens", None, 3)
    assert len(whole) == len(TOKENS)
    for index, points in enumerate(whole):
        assert points.tokens.dtype == np.float32
        np.testing.assert_array_equal(points.tokens, TOKENS[index].astype(np.float32))
        np.testing.assert_array_equal(points.labels, LABELS[index])
    sources = [
        part.source(i) for part in (open_dataset(path, s) for s in ("train", "val", "test")) for i in range(len(part))
    ]
    assert sorted(sources) == [f"{path}[{i}]" for i in range(5)]


def test_another_process_maps_the_file_for_itself(tmp_path):
    for path in (write_tokens(tmp_path / "a.npz"), write_tokens(tmp_path / "a.npy")):
        dataset = TokenPoints(path, "all")
        first = dataset[0]
        sent = pickle.dumps(dataset)
        assert TOKENS.tobytes()[:40] not in sent
        np.testing.assert_array_equal(pickle.loads(sent)[0].tokens, first.tokens)


def test_tokens_are_those_that_psa_slots_reads(tmp_path):
    path = write_tokens(tmp_path / "tokens.npy")
    dataset = open_dataset(path, "all")
    assert dataset.info.num_slots is None
    for index in range(5):
        assert dataset[index].labels is None
        np.testing.assert_array_equal(dataset[index].tokens, read_tokens(path, item=index).values.astype(np.float32))


@pytest.mark.parametrize("shape", [(6, 2), (6,)])
def test_one_image_is_all_there_is(tmp_path, shape):
    tokens = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    path = write_npz(tmp_path / "one.npz", {"tokens": tokens, "labels": np.arange(6)})
    (points,) = open_dataset(path, "all")
    np.testing.assert_array_equal(points.tokens, tokens.reshape(6, -1))
    np.testing.assert_array_equal(points.labels, np.arange(6))
    with pytest.raises(DataError, match=r"one\.npz: expected at least 3 images to divide"):
        open_dataset(path, "train")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            np.zeros((5, 5), np.int64),
            r"\['labels'\]: expected integers of shape \(5, 6\), got int64 of shape \(5, 5\)$",
        ),
        (np.zeros((5, 6)), r"\['labels'\]: expected integers of shape \(5, 6\), got float64 of shape \(5, 6\)$"),
        (np.full((5, 6), -1), r"\['labels'\]: expected labels from 0, below 2147483648, got -1 to -1$"),
        (npy(np.zeros(12)).replace(b"'<f8'", b"'|O' "), r"\['labels'\]: .*pickled Python objects, which are never"),
    ],
)
def test_labels_that_cannot_be_are_refused(tmp_path, labels, message):
    path = write_npz(tmp_path / "a.npz", {"tokens": TOKENS, "labels": labels})
    with pytest.raises(DataError, match=rf"a\.npz{message}"):
        TokenPoints(path, "all")
    assert read_tokens(path).values.shape == (6, 2)  # which needs no labels


def test_numbers_that_float32_does_not_hold_are_refused_where_they_are(tmp_path):
    tokens = TOKENS.copy()
    tokens[3, 2, 1], tokens[4, 0, 0] = 1e39, np.nan
    (tmp_path / "a.npy").write_bytes(npy(tokens))
    dataset = TokenPoints(tmp_path / "a.npy", "all")
    assert dataset[2].tokens.shape == (6, 2)
    with pytest.raises(DataError, match=r"a\.npy\[3\]: expected finite .*, got 1e\+39 in feature 1 of token 2$"):
        dataset[3]
    with pytest.raises(DataError, match=r"a\.npy\[4\]: expected finite .*, got nan in feature 0 of token 0$"):
        dataset[4]


def test_where_images_are_asked_for_points_are_refused(tmp_path):
    path = write_tokens(tmp_path / "tokens.npy")
    with pytest.raises(DataError, match=r"tokens\.npy: expected images, found points$"):
        open_images(path)
    with pytest.raises(ConfigError, match=r"^data\.size: no such option for .*tokens\.npy"):
        open_dataset(path, size=16)
    result = run("data", "convert", path, "--out", tmp_path / "a.h5")
    assert_says_one_line(result, 2, "expected images, found points")


@pytest.mark.parametrize("name", ["tokens", "tokens with labels"])
def test_damage_is_told_in_one_line_or_leaves_sound_points(tmp_path, name):
    assert set(fuzz(tmp_path, *FORMATS[name], range(20))) == {"refused", "read"}


@pytest.mark.parametrize("num_features", [1, 2, 5])
def test_inspect_says_what_there_is_and_draws_it(tmp_path, num_features):
    tokens = np.random.default_rng(0).normal(size=(3, 40, num_features))
    labels = np.repeat(np.arange(4), 10) * np.ones((3, 1), np.int64)
    path = write_npz(tmp_path / "a.npz", {"tokens": tokens, "labels": labels})
    out = tmp_path / "a.png"
    found = run("data", "inspect", path, "--split", "all", "--out", out, "--json").json
    assert (found["kind"], found["sizes"], found["num_slots"]) == ("points", {f"40x{num_features}": 3}, 4)
    assert found["splits"] == {"train": 1, "val": 1, "test": 1, "all": 3}
    assert [row["pixels"] for row in found["labels"]] == [30] * 4
    assert found["layout"].startswith("tokens: ")
    picture = np.asarray(Image.open(io.BytesIO(out.read_bytes())).convert("RGB"))
    colours = np.unique(picture.reshape(-1, 3), axis=0)
    assert len(colours) > 8  # the labels' own, and what lies between them and white
    json.dumps(found)
