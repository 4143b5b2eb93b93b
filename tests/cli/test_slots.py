import json
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Result, assert_says_one_line, contents
from command_line import run as psa_command
from PIL import Image

import psa.arviz  # first: it knows which of ArviZ's warnings are meant for nobody
from psa.cli import slot_evidence
from psa.data.token_files import read_tokens
from psa.inference import evidence
from psa.inference.compare import compare_slot_counts, occupied_distribution, weak_prior

import arviz  # isort: skip

MOST = 3
ROW = {"num_slots", "log_evidence", "standard_error", "failed", "bound", "probability"}
PREDICTED = {"elpd", "elpd_se", "pareto_k", "netcdf"}
slots = partial(psa_command, "slots")


def column(result: Result, name: str) -> list:
    return [row[name] for row in result.json["counts"]]


@pytest.fixture(scope="module")
def points(tmp_path_factory) -> Path:
    """Two groups of 12 points, 8 standard deviations apart."""
    values = np.random.default_rng(0).normal(size=(24, 2)) + 8.0 * (np.arange(24) % 2)[:, None]
    path = tmp_path_factory.mktemp("tokens") / "points.npy"
    np.save(path, values)
    return path


@pytest.fixture(scope="module")
def done(points, tmp_path_factory) -> tuple[Result, Path]:
    """A run with the default options, and its folder. Nothing may change it."""
    out = tmp_path_factory.mktemp("runs") / "deep" / "slots"
    result = slots(points, "--max", MOST, "--out", out, "--json")
    assert result.code == 0, result.err
    return result, out


def test_the_result_is_in_the_folder_and_nothing_else(done):
    result, out = done
    names = {"slots.json", "slots.png", *(f"slots-{count}.nc" for count in range(1, MOST + 1))}
    assert {path.name for path in out.iterdir()} == names
    assert [path.name for path in out.parent.iterdir()] == ["slots"]
    assert json.loads((out / "slots.json").read_text()) == result.json
    with Image.open(out / "slots.png") as picture:
        assert picture.size[0] > 1500


def test_the_answer_stands_below_the_table(done):
    result, out = done
    row = next(line for line in result.out.splitlines() if line.split()[:1] == ["2"])
    for name, digits in (("log_evidence", 2), ("bound", 2), ("probability", 3), ("elpd", 1), ("pareto_k", 2)):
        assert f"{column(result, name)[1]:.{digits}f}" in row.split()
    probability = column(result, "probability")[1]
    assert (
        f"K = 2 has probability {probability:.2f}; 2 slots are occupied in a sparse fit with probability" in result.out
    )
    assert f"slots.json, slots.png, slots-K.nc are in {out}" in result.out
    assert "3/3" in result.err


def test_probabilities_are_those_of_the_evidence(done):
    found = done[0]
    log_evidence = torch.tensor(column(found, "log_evidence"), dtype=torch.float64)
    assert sum(column(found, "probability")) == pytest.approx(1.0)
    np.testing.assert_allclose(column(found, "probability"), log_evidence.softmax(0))
    assert found.json["best"] == int(log_evidence.argmax()) + 1 == 2
    assert sum(found.json["occupied"]) == pytest.approx(1.0)
    assert found.json["best_occupied"] == int(np.argmax(found.json["occupied"]))
    assert all(row.keys() == ROW | PREDICTED | {"draws_pareto_k"} for row in found.json["counts"])


@pytest.mark.parametrize("method", ["annealed", "importance", "variational"])
def test_the_table_equals_the_library_with_the_same_seed(points, tmp_path, method):
    options = ["--method", method, "--draws", "none", "--concentration", 0.5, "--seed", 7, "--max", 2]
    found = slots(points, *options, "--out", tmp_path, "--json")
    assert found.code == 0, found.err
    tokens = torch.from_numpy(np.load(points))
    generator = torch.Generator().manual_seed(7)
    prior = weak_prior(tokens, 0.5)
    expected = compare_slot_counts(tokens[None], prior, 2, method, generator=generator)
    for name, values in (
        ("log_evidence", expected.log_evidence),
        ("standard_error", expected.standard_error),
        ("failed", expected.failed),
        ("bound", expected.bound),
        ("probability", expected.posterior),
    ):
        np.testing.assert_allclose(column(found, name), values[0], rtol=1e-12)
    occupied = occupied_distribution(tokens[None], prior, 2, generator=generator)[0]
    np.testing.assert_allclose(found.json["occupied"], occupied)
    assert all(row.keys() == ROW for row in found.json["counts"])
    assert {path.name for path in tmp_path.iterdir()} == {"slots.json", "slots.png"}


def test_the_default_method_is_the_librarys(done):
    tokens = torch.from_numpy(np.load(done[0].json["path"]))
    generator = torch.Generator().manual_seed(0)
    expected = compare_slot_counts(tokens[None], weak_prior(tokens), MOST, generator=generator)
    assert done[0].json["method"] == expected.method
    np.testing.assert_allclose(column(done[0], "log_evidence"), expected.log_evidence[0], rtol=1e-9)


def test_draws_are_files_that_arviz_reads_and_compares(done):
    result, out = done
    fits = {str(count): arviz.from_netcdf(out / f"slots-{count}.nc", engine="h5netcdf") for count in range(1, MOST + 1)}
    for count, data in fits.items():
        assert data["posterior"].sizes["slot"] == int(count)
        assert (data["posterior"].sizes["chain"], data["posterior"].sizes["draw"]) == (4, 250)
        np.testing.assert_array_equal(data["observed_data"]["values"], np.load(result.json["path"]))
    elpd = dict(zip(fits, column(result, "elpd"), strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas deprecates what ArviZ calls; a large Pareto k is in our table
        table = arviz.compare(fits)
    assert list(table.index) == sorted(elpd, key=elpd.__getitem__, reverse=True)
    for count, row in table.iterrows():
        assert row["elpd_loo"] == pytest.approx(elpd[count])
        assert row["elpd_loo"] == pytest.approx(psa.arviz.loo(fits[count]).elpd)


def test_nuts_draws_come_with_their_convergence(tmp_path, monkeypatch):
    monkeypatch.setattr(slot_evidence, "NUM_DRAWS", 8)
    monkeypatch.setattr(slot_evidence, "NUM_WARMUP", 5)
    np.save(tmp_path / "tokens.npy", np.random.default_rng(0).normal(size=5))
    found = slots(tmp_path / "tokens.npy", "--max", 1, "--draws", "nuts", "--out", tmp_path / "out", "--json")
    assert found.code == 0, found.err
    (row,) = found.json["counts"]
    assert row.keys() == ROW | PREDICTED | {"rhat", "divergent"}
    assert row["rhat"] > 0.9
    assert psa.arviz.read_netcdf(tmp_path / "out" / "slots-1.nc")["posterior"].sizes["chain"] == 4
    assert "R-hat" in found.out
    assert "k draws" not in found.out


def test_six_tokens_can_be_summed_exactly_and_the_default_maximum_is_their_number(tmp_path):
    tokens = np.random.default_rng(0).normal(size=(6, 2))
    np.save(tmp_path / "tokens.npy", tokens)
    found = slots(tmp_path / "tokens.npy", "--method", "exact", "--draws", "none", "--out", tmp_path / "out", "--json")
    assert found.code == 0, found.err
    assert column(found, "num_slots") == [1, 2, 3, 4, 5, 6]
    assert column(found, "standard_error") == [0.0] * 6
    assert "±" not in found.out
    values = torch.from_numpy(tokens)
    for count, value in ((1, column(found, "log_evidence")[0]), (3, column(found, "log_evidence")[2])):
        exact = evidence.exact_log_evidence(values[None], weak_prior(values), count)
        assert value == pytest.approx(float(exact))


def test_an_image_is_its_pixels(tmp_path):
    picture = np.zeros((12, 12, 3), np.uint8)
    picture[:, 6:] = (255, 0, 0)
    Image.fromarray(picture).save(tmp_path / "[red].png")
    out = tmp_path / "out"
    options = ["--size", 6, "--max", 2, "--method", "variational", "--draws", "none", "--out", out, "--json"]
    found = slots(tmp_path / "[red].png", *options)
    assert found.code == 0, found.err
    assert (found.json["tokens"], found.json["features"], found.json["best"]) == (36, 5, 2)
    assert f"{tmp_path}/[red].png: tokens 36 x 5" in found.out
    tokens = torch.from_numpy(read_tokens(tmp_path / "[red].png", size=6).values)
    generator = torch.Generator().manual_seed(0)
    expected = compare_slot_counts(tokens[None], weak_prior(tokens), 2, "variational", generator=generator)
    np.testing.assert_allclose(column(found, "log_evidence"), expected.log_evidence[0])
    with Image.open(out / "slots.png") as shown:
        assert shown.size[0] > 2000


def test_item_chooses_among_images(points, tmp_path):
    np.save(tmp_path / "two.npy", np.stack([np.zeros((24, 2)), np.load(points)]))
    options = ["--max", 2, "--method", "variational", "--draws", "none", "--out", tmp_path / "out", "--json"]
    one, other = slots(points, *options), slots(tmp_path / "two.npy", "--item", 1, *options)
    assert column(one, "log_evidence") == column(other, "log_evidence")
    assert other.json["item"] == 1


def test_what_is_not_to_be_trusted_is_said_and_marked(points, tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "MAX_STANDARD_ERROR", -1.0)
    np.save(tmp_path / "two.npy", np.array([0.0, 1.0]))  # nothing predicts a token from one other
    found = slots(tmp_path / "two.npy", "--out", tmp_path / "out", "--json")
    assert found.code == 0
    assert column(found, "failed") == [True, True]
    assert found.out.count(" !") == 2
    warned = [line for line in found.err.splitlines() if line.startswith("warning: K = ")]
    assert any("K = 1, 2: the evidence failed" in line and "another --method" in line for line in warned)
    unpredicted = ", ".join(str(count) for count, k in enumerate(column(found, "pareto_k"), 1) if k > 0.7)
    assert any(f"K = {unpredicted}: some tokens are predicted too badly" in line for line in warned)


def test_no_doubt_no_warning(done):
    result = done[0]
    doubtful = any(k > 0.7 for name in ("pareto_k", "draws_pareto_k") for k in column(result, name))
    assert ("warning" in result.err) == doubtful


BRIEF = ["--max", 1, "--method", "variational"]


def test_an_earlier_result_is_replaced_whole_and_other_files_stay(points, tmp_path):
    out = tmp_path / "out"
    assert slots(points, *BRIEF, "--max", 2, "--out", out).code == 0
    (out / "slots-x.nc").write_text("mine")
    (out / "notes").mkdir()
    assert (out / "slots-2.nc").is_file()
    assert slots(points, *BRIEF, "--draws", "none", "--out", out).code == 0
    assert {path.name for path in out.iterdir()} == {"slots.json", "slots.png", "slots-x.nc", "notes"}
    assert len(json.loads((out / "slots.json").read_text())["counts"]) == 1


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (OSError(28, "No space left on device"), 2)])
@pytest.mark.parametrize("where", ["write_netcdf", "slot_counts_figure"])
def test_what_stops_halfway_leaves_the_earlier_result(points, tmp_path, monkeypatch, where, error, code):
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    (earlier / "slots.json").write_text("{}")
    (earlier / "slots-9.nc").write_text("earlier")
    before = contents(tmp_path)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(slot_evidence if where == "write_netcdf" else sys.modules["psa.cli.slots"], where, fail)
    for out in (earlier, tmp_path / "a" / "new"):
        result = slots(points, *BRIEF, "--out", out, "--json")
        words = "interrupted" if code == 130 else f"--out {out}: cannot be written (No space"
        assert_says_one_line(result, code, words)
        assert list(result.json) == ["error"]
        assert contents(tmp_path) == before
        assert [path.name for path in tmp_path.iterdir()] == ["earlier"]


def npy(path: Path, array: object) -> Path:
    np.save(path, array)
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda tmp: [npy(tmp / "t.npy", [[1.0, np.nan]])], "t.npy: expected finite numbers"),
        (lambda tmp: [npy(tmp / "t.npy", np.zeros((0, 2)))], "t.npy: expected at least one token"),
        (lambda tmp: [tmp / "nowhere.npy"], "nowhere.npy: expected a file"),
        (lambda tmp: [npy(tmp / "t.npy", [1.0, 2.0]), "--max", 3], "--max 3: expected at most the number of tokens, 2"),
        (lambda tmp: [npy(tmp / "t.npy", [1.0, 2.0]), "--max", 0], "--max"),
        (lambda tmp: [npy(tmp / "t.npy", [1.0, 2.0]), "--item", 1], "t.npy: expected an item from 0 to 0"),
        (lambda tmp: [npy(tmp / "t.npy", np.arange(30.0)), "--max", 15], "--max 15: expected at most 14 with"),
        (lambda tmp: [npy(tmp / "t.npy", np.arange(30.0)), "--method", "exact"], "expected at most --max 1"),
        (lambda tmp: [npy(tmp / "t.npy", np.arange(9000.0))], "at most 8388 tokens"),
        (lambda tmp: [npy(tmp / "t.npy", [1.0]), "--out", tmp / "t.npy" / "out"], "t.npy/out: cannot be written"),
        *(
            (lambda tmp, value=value: [npy(tmp / "t.npy", [1.0]), "--concentration", value], f"--concentration {value}")
            for value in (-1, 0, "nan", "inf", "1e+07")
        ),
        (lambda tmp: [npy(tmp / "t.npy", [1.0]), "--method", "x"], "--method x: expected one of variational, imp"),
        (lambda tmp: [npy(tmp / "t.npy", [1.0]), "--draws", "x"], "--draws x: expected one of variational, nuts, none"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(tmp_path, monkeypatch, make, words):
    arguments = make(tmp_path)
    before = contents(tmp_path)
    monkeypatch.chdir(tmp_path)
    result = slots(*arguments, "--json")
    assert_says_one_line(result, 2, words)
    assert list(result.json) == ["error"]
    assert contents(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == len(before)


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "empty.npy").write_bytes(b"")
    assert_says_one_line(slots(tmp_path / "empty.npy", "--out", tmp_path / "out"), 2, "empty.npy", "an empty file")
    assert not (tmp_path / "out").exists()


def test_arviz_is_imported_only_where_it_is_needed():
    code = "import sys, psa.cli; sys.exit('arviz' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
