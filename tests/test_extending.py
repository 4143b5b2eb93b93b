"""docs/extending.md: its files, named by --plugin, are a variant, a decoder and a data set like psa's own."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import torch
from command_line import Result, assert_says_one_line, run
from registered import REGISTRIES, forget, forgetting, write_page
from tolerances import ALGEBRA, assert_close

import psa
from psa import plugins
from psa.data import DATASETS, open_dataset, register_dataset
from psa.errors import ConfigError, DataError
from psa.inference.autoencoder import build_autoencoder
from psa.inference.config import parse_config
from psa.inference.data_config import DataConfig
from psa.inference.launching import Request
from psa.inference.sessions import open_split, prepared_as
from psa.inference.variants import VARIANTS, build, register_variant, specify
from psa.models.decoders import DECODERS, register_decoder

NAMES = {"slots.variant": "damped-psa", "decoder.kind": "blobs", "data.source": "rings"}
CHOSEN = tiny.options(
    [
        *(setting for setting in tiny.SETTINGS if not setting.startswith("decoder.kind")),
        *(f"{key}={name}" for key, name in NAMES.items()),
        "data.size=16",
        "data.num_scenes=12",
        "data.options.thickness=3",
        "decoder.options.width=0.4",
        "objective.sample=true",
        "training.evaluate_every=2",
    ]
)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    """The page's files, on disk."""
    return write_page(tmp_path_factory.mktemp("plugins"))


@pytest.fixture
def alone() -> Iterator[None]:
    with forgetting():
        yield


def named(files: list[Path]) -> list[str]:
    return [part for file in files for part in ("--plugin", str(file))]


@pytest.fixture(scope="module")
def trained(files, tmp_path_factory) -> Path:
    """A run of all three, of 2 steps."""
    out = tmp_path_factory.mktemp("runs") / "run"
    with forgetting():
        done = run(*named(files), "train", "--out", out, "--json", *CHOSEN, "--set", "training.steps=2")
    assert done.code == 0, done.err
    return out


def test_the_pages_files_train_resume_and_are_evaluated(files, trained, alone):
    assert [file.name for file in files] == ["blobs.py", "damped.py", "rings.py"]
    again = run(*named(files), "train", "--out", trained, "--resume", "--json", "--set", "training.steps=4")
    assert again.code == 0, again.err
    scored = run(*named(files), "evaluate", trained, "--json")
    assert scored.code == 0, scored.err
    assert scored.json["foreground_ari"] == again.json["foreground_ari"]
    model = psa.load(trained)
    assert model.config.training.steps == 4
    assert type(model.model.decoder).__name__ == "BlobDecoder"
    assert model.model.decoder.width == 0.4
    assert model.guide.inference.spec.update == "damped-moments"


@pytest.mark.parametrize("key", NAMES)
def test_a_run_whose_name_is_not_registered_is_refused_in_one_line_that_says_how(files, trained, alone, key):
    plugins.load_plugins(map(str, files))
    forget(({"slots.variant": VARIANTS, "decoder.kind": DECODERS, "data.source": DATASETS}[key],))
    refused = run("evaluate", trained)
    assert_says_one_line(refused, 2, NAMES[key], "one of your own is registered by its module (psa --plugin FILE.py")


def test_no_configuration_can_name_a_module(files, alone, tmp_path):
    (tmp_path / "sent.toml").write_text(f'plugins = ["{files[0]}"]\n')
    assert_says_one_line(run("train", tmp_path / "sent.toml", "--out", tmp_path / "run"), 2, "plugins: no such key")
    assert not {file.stem for file in files} & set(sys.modules)


def test_other_processes_are_told_what_was_loaded(files, alone):
    plugins.load_plugins([str(files[0])])
    assert Request(Path("run"), {}).plugins == (str(files[0].resolve()),)
    assert plugins.with_plugins("train") == f"psa --plugin {files[0].resolve()} train"
    plugins.load_plugins([str(files[0])])  # once more is no error: every process loads what it is told
    assert len(plugins.loaded_plugins()) == 1


def fails_to_load(*arguments: object) -> Result:
    return run("--plugin", *arguments, "data", "list")


def test_a_module_that_cannot_be_imported_is_named_with_the_reason(alone, tmp_path):
    assert_says_one_line(fails_to_load(tmp_path / "none.py"), 2, "none.py: expected a Python file, found none")
    assert_says_one_line(fails_to_load("nothing.here"), 2, "nothing.here: expected a file ending in .py or the name")
    (tmp_path / "broken.py").write_text("\nvalue = 1 / 0\n")
    assert_says_one_line(fails_to_load(tmp_path / "broken.py"), 2, "ZeroDivisionError", "broken.py:2")
    (tmp_path / "cut.py").write_text("def f(:\n")
    assert_says_one_line(fails_to_load(tmp_path / "cut.py"), 2, "SyntaxError")
    (tmp_path / "my-part.py").touch()
    assert_says_one_line(fails_to_load(tmp_path / "my-part.py"), 2, "expected a file named as a module can be")
    (tmp_path / "json.py").touch()
    assert_says_one_line(fails_to_load(tmp_path / "json.py"), 2, "another module is named json")


def test_taken_names_and_names_that_are_none_are_refused(alone):
    for registry in REGISTRIES:
        own, value = next(iter(registry.items()))
        with pytest.raises(ValueError, match=f"{registry.kind} '{re.escape(own)}' is registered already"):
            registry.register(own, value)
        with pytest.raises(ValueError, match="must be a registered one"):
            registry.remove(own)
        for name in ("", "a b", "a/b", "../a", ".hidden"):
            with pytest.raises(ValueError, match="name must be of letters"):
                registry.register(name, value)
    for _ in range(2):
        register_variant("mine", specify("sa"))
        with pytest.raises(ValueError, match="variant 'mine' is registered already"):
            register_variant("mine", specify("psa"))
        VARIANTS.remove("mine")
    with pytest.raises(ValueError, match="decoder 'patch' is registered already"):
        register_decoder("patch")(torch.nn.Linear)
    with pytest.raises(ValueError, match="data set 'sprites' is registered already"):
        register_dataset("sprites")(tiny.tiny_images)


def test_a_row_that_is_registered_is_the_row_under_its_name(alone):
    row = register_variant("sharp", specify("sa", power=2.0), "here")
    assert (row.name, row.source, row.power, row.neural) == ("sharp", "here", 2.0, True)
    assert specify("sharp") is not row
    assert specify("sharp") == VARIANTS["sharp"] == row


def test_an_update_of_ones_own_is_the_members_step(files, alone):
    """The example goes half the way that psa goes, and so stays where psa stays."""
    plugins.load_plugins([str(next(file for file in files if file.stem == "damped"))])
    tokens, start = torch.randn(2, 30, 3, dtype=torch.float64), torch.randn(2, 4, 3, dtype=torch.float64)
    torch.manual_seed(0)
    theirs = build("psa", num_slots=4, input_dim=3, slot_dim=3).double()
    ours = build("damped-psa", num_slots=4, input_dim=3, slot_dim=3).double()
    ours.load_state_dict(theirs.state_dict())
    whole, half = (module(tokens, initial=start, num_iterations=1).loc for module in (theirs, ours))
    assert_close(half, 0.5 * (start + whole), ALGEBRA, "loc")


def test_options_of_a_registered_decoder_reach_it_and_others_are_refused(alone):
    register_decoder("plain")(lambda plan, gain=1.0: torch.nn.Linear(plan.slot_dim, int(gain)))
    config = {"decoder": {"kind": "plain", "options": {"gain": 5.0}}}
    assert build_autoencoder(parse_config(config), (16, 16)).model.decoder.out_features == 5
    for kind, exp in (("plain", "gain"), ("patch", "none")):
        wrong = {"decoder": {"kind": kind, "options": {"gian": 5.0}}}
        with pytest.raises(ConfigError, match=rf"decoder\.options\.gian: no such option for {kind}, expected {exp}"):
            build_autoencoder(parse_config(wrong), (16, 16))


def test_options_of_a_registered_data_set_reach_it_and_others_are_refused(files, alone):
    plugins.load_plugins([str(next(file for file in files if file.stem == "rings"))])
    assert open_split(DataConfig(source="rings", size=20, options={"thickness": 1.0}), "val").thickness == 1.0
    with pytest.raises(ConfigError, match=r"data\.crop: no such option for rings, expected size, seed, num_scenes"):
        open_dataset("rings", crop="center")
    with pytest.raises(ConfigError, match=r"data\.options: expected options without a key of their own, got size"):
        parse_config({"data": {"options": {"size": 3}}})
    autoencoder = tiny.tiny_autoencoder(tiny.WITH_KL)
    assert prepared_as(autoencoder, "rings") == DataConfig(source="rings", size=(16, 16))
    with pytest.raises(DataError, match=r"^wrings: expected a data set \(.*, rings\).* found nothing of that name; "):
        open_dataset("wrings")
