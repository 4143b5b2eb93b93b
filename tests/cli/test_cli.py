import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from command_line import Result, assert_says_one_line
from command_line import run as psa_command
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

import psa
from psa.cli import app, bench_training
from psa.experiments.bench.processes import Arrangement, ScalingProblem
from psa.experiments.bench.train import DEMO, PROTOTYPE
from psa.runs import RunDirectory, load_tensors

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = tiny.options(tiny.SETTINGS)
COMMANDS = (
    "demo",
    "train",
    "configs",
    "evaluate",
    "encode",
    "sample",
    "slots",
    "compare",
    "check",
    "diagnose",
    "bench",
)
GROUPS = {"experiment": ("list", "run"), "data": ("list", "inspect", "make", "convert")}
FIGURES = ("mse", "objective", "slots_in_use", "health", "baselines", "report")


def start(*arguments: object, own_group: bool = False) -> subprocess.Popen:
    """``python -m psa`` from the checkout."""
    return subprocess.Popen(
        [sys.executable, "-m", "psa", *map(str, arguments)],
        cwd=ROOT,
        start_new_session=own_group,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen, timeout: float = 120) -> Result:
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return Result(process.returncode, out, err)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny.write_folder(tmp_path_factory.mktemp("data") / "scenes")


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory) -> Path:
    return tiny.write_folder(tmp_path_factory.mktemp("data") / "photographs", masks=False)


@pytest.fixture(scope="module")
def hdf5(tmp_path_factory) -> Path:
    return tiny.write_hdf5(tmp_path_factory.mktemp("data") / "scenes.hdf5")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, folder) -> Path:
    """A run on the folder with masks. Tests that change a run copy it."""
    out = tmp_path_factory.mktemp("runs") / "trained"
    assert psa_command("train", "--data", folder, "--out", out, *SETTINGS).code == 0
    return out


def copy_run(run: Path, to: Path) -> Path:
    to.mkdir()
    for path in run.iterdir():
        if path.is_file():
            (to / path.name).write_bytes(path.read_bytes())
    return to


def test_train_on_a_folder_leaves_a_run_with_its_page_and_picture(trained):
    names = {path.name for path in trained.iterdir()}
    tensors = {"checkpoint.safetensors", "state.safetensors", "prior.safetensors"}
    assert names == {"config.toml", "metrics.jsonl", "report.html", "figures"} | tensors
    assert [path.name for path in (trained / "figures").iterdir()] == ["scenes.png"]
    with Image.open(trained / "figures" / "scenes.png") as picture:
        assert min(picture.size) > 100
    assert "foreground ARI" in (trained / "report.html").read_text()
    assert [row["step"] for row in RunDirectory(trained).read_metrics()] == [10, 20]


@pytest.mark.parametrize("source", ["unlabelled", "hdf5"])
def test_train_json_ends_in_one_object_with_the_figures(request, tmp_path, source):
    data, out = request.getfixturevalue(source), tmp_path / "run"
    result = psa_command("train", "--data", data, "--out", out, "--json", *SETTINGS)
    assert result.code == 0, result.err
    assert set(FIGURES) <= result.json.keys()
    assert (result.json["run"], result.json["report"]) == (str(out), str(out / "report.html"))
    assert (out / "report.html").is_file()
    assert (out / "figures" / "scenes.png").is_file()
    if source == "hdf5":
        assert next(iter(result.json)) == "run"
        assert -1 <= result.json["foreground_ari"] <= 1
        assert len(result.json["baselines"]) == 3
    else:
        assert "foreground_ari" not in result.json
        assert result.json["baselines"] == {}


def test_train_takes_a_configuration_file_and_set_goes_above_it(tmp_path, folder):
    config = tmp_path / "config.toml"
    config.write_text(f"[data]\nsource = '{folder}'\n[slots]\nvariant = 'sa'\n[training]\nseed = 7\n")
    result = psa_command("train", config, "--out", tmp_path / "run", *SETTINGS, "--set", "training.steps=2")
    assert result.code == 0, result.err
    written = RunDirectory(tmp_path / "run").read_config()
    assert (written["slots"]["variant"], written["training"]["seed"], written["training"]["steps"]) == ("sa", 7, 2)


@pytest.mark.parametrize("name", ['it\'s a "folder"', "back\\slash", "ünïcode 物体", "a=b", "123"])
def test_train_takes_any_folder_name(tmp_path, monkeypatch, name):
    tiny.write_folder(tmp_path / name, 4)
    monkeypatch.chdir(tmp_path)
    result = psa_command("train", "--data", name, "--out", "run", *SETTINGS, "--set", "training.steps=1")
    assert result.code == 0, result.err
    assert psa.load(tmp_path / "run").config.data.source == name


def test_resume_goes_on_to_more_steps(trained, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    result = psa_command("train", "--resume", "--out", run, "--set", "training.steps=30", "--json")
    assert result.code == 0, result.err
    assert [row["step"] for row in RunDirectory(run).read_metrics()] == [10, 20, 30]
    assert load_tensors(run / "checkpoint.safetensors")[1]["step"] == 30
    assert RunDirectory(run).read_config()["training"]["steps"] == 30


def test_a_run_directory_is_not_overwritten_without_resume(trained, folder):
    before = {path: path.read_bytes() for path in trained.iterdir() if path.is_file()}
    result = psa_command("train", "--data", folder, "--out", trained, *SETTINGS)
    assert_says_one_line(result, 2, trained, "--resume")
    assert before == {path: path.read_bytes() for path in trained.iterdir() if path.is_file()}


def test_resume_refuses_another_configuration(trained, folder):
    result = psa_command("train", "--resume", "--out", trained, "--data", folder)
    assert_says_one_line(result, 2, "--resume takes its configuration from the run")


def test_evaluate_repeats_what_training_reported(trained, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    (run / "report.html").unlink()
    first = psa_command("evaluate", run, "--json")
    assert first.code == 0, first.err
    assert (run / "report.html").is_file()
    assert {"foreground_ari", "split", *FIGURES} <= first.json.keys()
    assert psa_command("evaluate", run, "--json").json == first.json


def test_evaluate_resizes_other_data_to_the_run(trained, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    other = tiny.write_folder(tmp_path / "larger", 4, size=24)
    result = psa_command("evaluate", run, "--data", other, "--split", "all", "--json")
    assert result.code == 0, result.err
    assert result.json["num_images"] == 4


def encoded(run: Path, path: Path, out: Path) -> dict[str, np.ndarray]:
    result = psa_command("encode", run, path, "--out", out, "--json")
    assert result.code == 0, result.err
    assert result.json["out"] == str(out)
    with np.load(out, allow_pickle=False) as arrays:
        return dict(arrays)


def test_encode_agrees_with_the_loaded_model_image_by_image(trained, folder, tmp_path):
    arrays = encoded(trained, folder, tmp_path / "deep" / "folder.npz")
    assert sorted(arrays) == ["masks", "slots", "source", "weights"]
    assert arrays["source"].tolist() == [str(path) for path in sorted((folder / "images").iterdir())]
    pictures = [np.asarray(Image.open(path)) for path in arrays["source"]]
    torch.manual_seed(0)
    posterior, slots, masks = psa.load(trained).encode(torch.from_numpy(np.stack(pictures)))
    assert arrays["slots"].shape == slots.shape
    assert arrays["masks"].shape == masks.shape
    np.testing.assert_allclose(arrays["masks"].sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(arrays["weights"].sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(arrays["weights"], posterior.weights, atol=1e-5)


def test_encode_of_one_image_is_its_row_of_the_folder(trained, folder, tmp_path):
    everything = encoded(trained, folder, tmp_path / "all.npz")
    picture = folder / "images" / "003.png"
    one = encoded(trained, picture, tmp_path / "one.npz")
    assert one["source"].tolist() == [str(picture)]
    for name in ("slots", "masks", "weights"):
        np.testing.assert_allclose(one[name][0], everything[name][3], atol=1e-5)


def test_encode_of_hdf5_names_file_and_row(trained, hdf5, tmp_path):
    arrays = encoded(trained, hdf5, tmp_path / "file.npz")
    assert arrays["source"].tolist() == [f"{hdf5}[{row}]" for row in range(12)]
    assert arrays["masks"].shape == (12, 3, tiny.SIZE, tiny.SIZE)


def nowhere(tmp: Path) -> tuple[list, str]:
    return ["--data", tmp / "nowhere"], "nowhere"


def garbage_image(tmp: Path) -> tuple[list, str]:
    folder = tiny.write_folder(tmp / "scenes", 4)
    (folder / "images" / "002.png").write_bytes(b"not a picture")
    return ["--data", folder], "002.png"


def mask_of_another_size(tmp: Path) -> tuple[list, str]:
    folder = tiny.write_folder(tmp / "scenes", 4)
    Image.new("L", (5, 7)).save(folder / "masks" / "001.png")
    return ["--data", folder], "001.png: expected 16x16"


def images_of_4x4(tmp: Path) -> tuple[list, str]:
    return ["--data", tiny.write_folder(tmp / "scenes", 4, size=4)], ".png: expected at least 8 pixels a side"


def two_images(tmp: Path) -> tuple[list, str]:
    return ["--data", tiny.write_folder(tmp / "scenes", 2)], "at least 3 images"


def an_hdf5_that_is_none(tmp: Path) -> tuple[list, str]:
    (tmp / "scenes.h5").write_bytes(b"text")
    return ["--data", tmp / "scenes.h5"], "scenes.h5: expected a readable HDF5 file"


def a_file_for_a_run(tmp: Path) -> tuple[list, str]:
    (tmp / "file").write_text("")
    return ["--data", tiny.write_folder(tmp / "scenes", 4), "--out", tmp / "file" / "run"], "file/run: expected a direc"


def no_configuration(tmp: Path) -> tuple[list, str]:
    return [tmp / "missing.toml"], "missing.toml: expected a TOML file"


def broken_configuration(tmp: Path) -> tuple[list, str]:
    (tmp / "bad.toml").write_text("slots = [")
    return [tmp / "bad.toml"], "bad.toml: expected a TOML file"


@pytest.mark.parametrize(
    "mistake",
    [
        nowhere,
        garbage_image,
        mask_of_another_size,
        images_of_4x4,
        two_images,
        an_hdf5_that_is_none,
        a_file_for_a_run,
        no_configuration,
        broken_configuration,
    ],
    ids=lambda mistake: mistake.__name__,
)
def test_train_names_the_file_at_fault_and_leaves_nothing_behind(tmp_path, mistake):
    arguments, words = mistake(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    out = [] if "--out" in arguments else ["--out", tmp_path / "run"]
    result = psa_command("train", *arguments, *out, *SETTINGS, "--json")
    assert_says_one_line(result, 2, words)
    assert sorted(tmp_path.rglob("*")) == before
    assert result.out.count("\n") == 1
    assert list(result.json) == ["error"]
    assert words in result.json["error"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "training.stepz=3"], "training.stepz"),
        (["--set", "trainign.steps=3"], "trainign"),
        (["--set", "training.steps"], "expected key=value"),
        (["--set", "training.steps=0"], "training.steps"),
        (["--set", "training.steps=many"], "training.steps"),
        (["--set", "training.steps.more=1", "--set", "training.steps=1"], "training.steps"),
        (["--set", "objective.sigma=-1"], "objective.sigma"),
        (["--set", "objective.sigma=nan"], "objective.sigma"),
        (["--set", "objective.likelihood=laplace"], "objective.likelihood"),
        (["--set", "slots.variant=xyz"], "sa, i-sa"),
        (["--variant", "xyz"], "sa, i-sa"),
        (["--set", "slots.overrides.nothing=1"], "no column 'nothing'"),
        (["--set", "slots.overrides.power=0"], "power must be a finite number above 0"),
        (["--set", "slots.overrides.prior=3"], "prior"),
        (["--set", "objective.sample=false", "--set", "objective.kl_weight=1"], "objective.sample = true"),
        (["--set", "decoder.patch=5"], "multiple of decoder.patch 5"),
        (["--set", "data.size=4"], "data.size"),
        (["--set", "data.max_objects=99"], "data.max_objects"),
        (["--set", "data.background=plaid"], "data.background"),
        (["--set", "training.device=toaster"], "training.device"),
        (["--wrong"], "--wrong"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("unchecked")
def test_train_names_the_setting_at_fault_and_leaves_nothing_behind(tmp_path, arguments, words):
    settings = tiny.options([*tiny.SETTINGS, *tiny.SPRITES])
    result = psa_command("train", "--out", tmp_path / "run", *settings, *arguments, "--json")
    assert_says_one_line(result, 2, words)
    assert list(tmp_path.iterdir()) == []
    assert list(result.json) == ["error"]


def test_commands_on_a_folder_that_is_no_run_say_so(folder, tmp_path):
    out = tmp_path / "x.npz"
    for arguments in (
        ["evaluate", folder],
        ["encode", folder, folder, "--out", out],
        ["train", "--resume", "--out", folder],
        ["evaluate", tmp_path / "nothing"],
    ):
        assert_says_one_line(psa_command(*arguments), 2, "expected a run directory with config.toml")
    assert list(tmp_path.iterdir()) == []


def foreign_pickle(path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, path)


def foreign_safetensors(path: Path) -> None:
    save_file({"weights": torch.zeros(3)}, path)


def foreign_notes(path: Path) -> None:
    save_file({"weights": torch.zeros(3)}, path, {"notes": "{}"})


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def removed(path: Path) -> None:
    path.unlink()


SPOILS = [foreign_pickle, foreign_safetensors, foreign_notes, truncated, empty, removed]


@pytest.mark.parametrize("spoil", SPOILS, ids=lambda spoil: spoil.__name__)
def test_a_spoilt_checkpoint_is_named(trained, folder, tmp_path, spoil):
    run = copy_run(trained, tmp_path / "run")
    spoil(run / "checkpoint.safetensors")
    result = psa_command("encode", run, folder, "--out", tmp_path / "x.npz", "--json")
    assert_says_one_line(result, 2, run / "checkpoint.safetensors")
    assert list(result.json) == ["error"]
    assert not (tmp_path / "x.npz").exists()


@pytest.mark.parametrize("spoil", SPOILS, ids=lambda spoil: spoil.__name__)
def test_a_spoilt_state_is_named_by_resume_and_the_weights_stay(trained, tmp_path, spoil):
    run = copy_run(trained, tmp_path / "run")
    spoil(run / "state.safetensors")
    before = (run / "checkpoint.safetensors").read_bytes()
    result = psa_command("train", "--resume", "--out", run)
    assert_says_one_line(result, 2, run / "state.safetensors")
    assert (run / "checkpoint.safetensors").read_bytes() == before


def test_resume_with_another_architecture_is_refused(trained, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    result = psa_command("train", "--resume", "--out", run, "--set", "decoder.hidden_dim=24")
    assert_says_one_line(result, 2, run / "state.safetensors")
    assert RunDirectory(run).read_config()["decoder"]["hidden_dim"] == 16


def test_encode_names_what_it_cannot_read_or_write_and_leaves_nothing_behind(trained, folder, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"text")
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.iterdir())
    out = tmp_path / "x.npz"
    for arguments, words in (
        ([tmp_path / "nowhere", "--out", out], "nowhere"),
        ([tmp_path / "bad.png", "--out", out], "bad.png"),
        ([folder, "--out", tmp_path / "x.csv"], "ending in .npz"),
        ([folder, "--out", tmp_path / "file" / "x.npz"], "file/x.npz"),
        ([folder], "--out"),
    ):
        assert_says_one_line(psa_command("encode", trained, *arguments), 2, words)
    assert sorted(tmp_path.iterdir()) == before


def test_evaluate_names_a_split_that_does_not_exist(trained):
    assert_says_one_line(psa_command("evaluate", trained, "--split", "dev"), 2, "dev", "train, val, test")


def test_sprites_do_not_fit_a_run_that_is_not_square(tmp_path, folder):
    oblong = psa_command("train", "--data", folder, "--out", tmp_path / "run", *SETTINGS, "--set", "data.size=[8, 16]")
    assert oblong.code == 0, oblong.err
    result = psa_command("evaluate", tmp_path / "run", "--data", "sprites")
    assert_says_one_line(result, 2, "sprites", "8 x 16")


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_a_loss_that_is_not_finite_ends_with_advice_and_code_1(folder, tmp_path):
    settings = [*SETTINGS, "--set", "training.learning_rate=1e30", "--set", "training.warmup_steps=0"]
    result = psa_command("train", "--data", folder, "--out", tmp_path / "run", *settings, "--json")
    assert_says_one_line(result, 1, tmp_path / "run", "not finite", "training.learning_rate")
    assert list(result.json) == ["error"]


def test_ctrl_c_keeps_a_checkpoint_and_says_how_to_go_on(folder, tmp_path):
    run = RunDirectory(tmp_path / "run")
    often = tiny.options(["training.steps=1000000", "training.evaluate_every=5"])
    process = start("train", "--data", folder, "--out", run.path, "--json", *SETTINGS, *often)
    try:
        deadline = time.monotonic() + 60
        while not run.read_metrics() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        result = finish(process)
    finally:
        process.kill()
    assert_says_one_line(result, 130, f"psa train --resume --out {run.path}")
    assert "psa train --resume" in result.json["error"]
    step = load_tensors(run.checkpoint)[1]["step"]
    assert step >= 5
    psa.load(run.path)
    resumed = psa_command("train", "--resume", "--out", run.path, "--set", f"training.steps={step + 3}", "--json")
    assert resumed.code == 0, resumed.err
    assert load_tensors(run.checkpoint)[1]["step"] == step + 3


def test_demo_chooses_blindly_and_leaves_a_run(tmp_path):
    out = tmp_path / "demo"
    settings = tiny.options([*tiny.SETTINGS, *tiny.SPRITES])
    result = finish(start("demo", "--out", out, "--seed", 3, "--json", *settings))
    assert result.code == 0, result.err
    found = result.json
    assert {"foreground_ari", "seconds", "candidates", "picture", *FIGURES} <= found.keys()
    assert next(iter(found)) == "foreground_ari"
    best = min(found["candidates"], key=lambda candidate: candidate["held_out"])
    assert found["chosen_seed"] == best["seed"]
    assert max(candidate["steps"] for candidate in found["candidates"]) == 20
    assert Path(found["report"]).is_file()
    assert Path(found["picture"]).is_file()
    posterior, _, masks = psa.load(out).encode(tiny.tiny_images(2).images)
    assert posterior.weights.shape == (2, 3)
    assert masks.shape == (2, 3, tiny.SIZE, tiny.SIZE)


def test_ctrl_c_in_a_demo_ends_its_processes_and_says_how_to_go_on(tmp_path):
    """As a terminal does: the signal goes to the whole group."""
    settings = tiny.options([*tiny.SETTINGS, *tiny.SPRITES, "training.steps=1000000", "training.evaluate_every=5"])
    process = start("demo", "--out", tmp_path / "demo", "--json", *settings, own_group=True)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("demo/demo/*/metrics.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        result = finish(process, 30)
    finally:
        process.kill()
    assert_says_one_line(result, 130, "psa train --resume --out", tmp_path / "demo" / "demo" / "seed-")
    assert "psa train --resume" in result.json["error"]
    named = Path(result.json["error"].split()[-1])
    psa.load(named)


def test_demo_refuses_a_folder_that_is_not_its_own(folder):
    before = sorted(folder.rglob("*"))
    assert_says_one_line(psa_command("demo", "--out", folder, "--json"), 2, folder, "--out")
    assert sorted(folder.rglob("*")) == before


def test_demo_refuses_too_little_time(tmp_path):
    result = psa_command("demo", "--out", tmp_path / "demo", "--seconds", "2")
    assert_says_one_line(result, 2, "--seconds 2")
    assert list(tmp_path.iterdir()) == []


def test_bench_times_every_variant_and_arrangement_asked_for(monkeypatch):
    variants, one = ("recipe", "sa"), (Arrangement(1, 1, 4),)
    brief = tuple(replace(problem, variants=variants, blocks=1, steps=1) for problem in (PROTOTYPE, DEMO))
    settings = (*tiny.SETTINGS, *tiny.SPRITES)
    monkeypatch.setattr(bench_training, "PROBLEMS", brief)
    monkeypatch.setattr(bench_training, "SCALING", ScalingProblem(one, settings, rounds=1, warmup_steps=1, steps=2))
    result = psa_command("bench", "--suite", "train", "--json")
    assert result.code == 0, result.err
    for key in ("steps", "demo_steps"):
        assert [cost["variant"] for cost in result.json[key]] == list(variants)
        assert all(cost["cpu_ms"] > 0 and cost["images_per_second"] > 0 for cost in result.json[key])
    assert [cost["processes"] for cost in result.json["processes"]] == [1]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in result.out.splitlines() if "|" in line]
    assert [row[0] for row in rows if row[0] in variants] == 2 * list(variants)
    assert len(rows) == 2 * 4 + 3, "headings, rules and rows, none broken in two"


@pytest.mark.parametrize(("option", "value"), [("--suite", "nothing"), ("--device", "toaster")])
def test_bench_names_what_it_does_not_have(option, value):
    assert_says_one_line(psa_command("bench", option, value), 2, option, value)


@pytest.mark.parametrize("command", [*COMMANDS, *(f"{group} {name}" for group in GROUPS for name in GROUPS[group])])
def test_help_explains_every_option(command):
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert f"Usage: psa {command}" in result.output or f"{command} [OPTIONS]" in result.output
    assert "--json" in result.output


def test_the_commands_are_those_the_project_names():
    assert {command.callback.__name__ for command in app.registered_commands} == set(COMMANDS)
    found = {group.typer_instance.info.name: group.typer_instance for group in app.registered_groups}
    assert {name: tuple(c.name for c in group.registered_commands) for name, group in found.items()} == GROUPS


def test_a_subprocess_prints_help_and_exits_0():
    result = finish(start("--help"))
    assert result.code == 0
    assert all(command in result.out for command in (*COMMANDS, *GROUPS))


def test_a_subprocess_exits_2_on_an_unknown_command():
    assert_says_one_line(finish(start("paint")), 2, "paint")
