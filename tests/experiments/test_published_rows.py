"""Rows of published tables: each builds at its full size, and trains a step on data of the layout it expects."""

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import assert_says_one_line, run
from layouts import write_clevr, write_clevrtex, write_coco, write_shapestacks, write_voc
from tfrecord_bytes import example, record
from tfrecord_bytes import write as write_records
from tiny import options, write_folder
from tolerances import assert_close

from psa.experiments.published import data_sets as on
from psa.experiments.published.registry import PUBLISHED
from psa.experiments.published.rows import Dataset, PublishedRow
from psa.inference.autoencoder import build_autoencoder
from psa.inference.config import RunConfig, override, parse_config
from psa.inference.sessions import open_trainer, with_network
from psa.inference.variants import VARIANTS

# What makes a step of a published size dear, made small. Every other key is as published.
SIZES: Mapping[str, Any] = {
    "data.size": 16,
    "encoder.channels": 8,
    "encoder.token_dim": 8,
    "slots.slot_dim": 8,
    "slots.overrides.hidden_dim": 8,
    "decoder.hidden_dim": 8,
    "code.vocabulary": 8,
    "code.channels": 8,
    "bottleneck.projection_dim": 8,
    "training.batch_size": 2,
    "training.num_held_out": 2,
    "training.threads": 1,
}
GIVEN = {"data.source"} | {f"features.{key}" for key in ("architecture", "options", "cache", "shape", "checksum")}


def records(name: str) -> Callable[[Path], Path]:
    def write(root: Path) -> Path:
        root.mkdir()
        return write_records(root / "data.tfrecords", *(example(record(name, seed)[0]) for seed in range(3)))

    return write


FOLDERS = (on.BIRDS, on.DOGS, on.CARS, on.FLOWERS, on.YCB, on.SCANNET, on.YANG_COCO)
LAYOUTS: Mapping[str, Callable[[Path], Path]] = {
    on.CLEVR_WITH_MASKS.name: records("clevr"),
    on.OBJECTS_ROOM.name: records("train"),
    on.MULTI_DSPRITES.name: records("colored_on_colored"),
    on.CLEVR.name: lambda root: write_clevr(root, 2),
    on.SHAPESTACKS.name: lambda root: write_shapestacks(root, 1),
    on.CLEVRTEX.name: lambda root: write_clevrtex(root, 10),
    on.COCO.name: lambda root: write_coco(root, 4),
    on.VOC.name: lambda root: write_voc(root, 2),
    "folder": lambda root: write_folder(root, 6),
}

Copies = Callable[[Dataset], Path]


@pytest.fixture(scope="session")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Copies:
    """A user's copy of each data set, written when it is first asked for; folders of images are one."""
    written: dict[str, Path] = {}

    def copy(dataset: Dataset) -> Path:
        name = "folder" if dataset in FOLDERS else dataset.name
        if name not in written:
            written[name] = LAYOUTS[name](tmp_path_factory.mktemp("copy") / "data")
        return written[name]

    return copy


def flat(config: RunConfig) -> dict[str, Any]:
    tables = config.model_dump()
    found = {f"{name}.{key}": value for name, table in tables.items() for key, value in table.items()}
    overrides = found.pop("slots.overrides")
    return found | {f"slots.overrides.{key}": value for key, value in overrides.items()}


def small(row: PublishedRow, copy: Path, cache: Path) -> list[str]:
    """The settings that make a row small and give it its data, and a network where it needs one."""
    published = flat(parse_config(row.values()))
    settings = [f"{key}={value}" for key, value in SIZES.items() if published.get(key) is not None]
    settings.append(f"data.source={copy}")
    if row.needs:
        network = "features.options={size=16, hidden_dim=8, num_layers=1}"
        settings += ["features.architecture=small", network, f"features.cache={cache}"]
    return settings


ROWS = pytest.mark.parametrize("row", PUBLISHED.values(), ids=list(PUBLISHED))


@ROWS
@pytest.mark.usefixtures("unchecked")
def test_a_row_trains_a_step_on_data_of_its_layout(row: PublishedRow, copies: Copies, tmp_path_factory):
    values = override(row.values(), small(row, copies(row.dataset), tmp_path_factory.getbasetemp() / "features"))
    config = with_network(parse_config(values))
    own, published = flat(config), flat(parse_config(row.values()))
    assert {key for key in own if own[key] != published[key]} <= set(SIZES) | GIVEN
    trainer = open_trainer(config, None)
    before = {name: value.clone() for name, value in trainer.autoencoder.state_dict().items()}
    trainer.train_steps(1)
    assert trainer.skipped == 0
    assert math.isfinite(trainer._state.loss_sum)
    moved = {name for name, value in trainer.autoencoder.state_dict().items() if not torch.equal(value, before[name])}
    for part in ("guide.encoder.", "model.decoder."):
        assert any(name.startswith(part) for name in moved), part
    learns = any(True for _ in trainer.autoencoder.guide.inference.parameters())
    assert learns == any(name.startswith("guide.inference.") for name in moved)


@ROWS
@pytest.mark.usefixtures("unchecked")
def test_a_row_builds_at_its_published_size(row: PublishedRow):
    config = parse_config(override(row.values(), ["features.shape=[768, 14, 14]"]))
    assert isinstance(config.data.size, int)
    with torch.device("meta"):
        autoencoder = build_autoencoder(config, (config.data.size, config.data.size))
    assert all(parameter.is_meta for parameter in autoencoder.parameters())


def layers(network: torch.nn.Module) -> list[tuple[int, int, int]]:
    """Kernel, stride and channels of convolutions, in order."""
    kinds = (torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    found = [layer for layer in network.modules() if isinstance(layer, kinds)]
    return [(layer.kernel_size[0], layer.stride[0], layer.out_channels) for layer in found]


@pytest.mark.usefixtures("unchecked")
def test_networks_of_the_mixture_rows_are_those_of_tables_9_and_10():
    """As printed, the values in parentheses too."""
    plain, last = (5, 1, 64), (3, 1, 4)
    for data, size, stride, ups in (("shapestacks", 128, 2, 4), ("clevrtex", 128, 2, 4), ("objects-room", 64, 1, 3)):
        config = parse_config(PUBLISHED[f"bo-qsa.{data}.bo-qsa-mixture"].values())
        with torch.device("meta"):
            autoencoder = build_autoencoder(config, (size, size))
        assert layers(autoencoder.guide.encoder) == [(5, stride, 64), plain, plain, plain]
        assert layers(autoencoder.model.decoder) == [(5, 2, 64)] * ups + [plain] * (5 - ups) + [last]
        assert autoencoder.model.decoder.grid_size == (8, 8)


def test_settings_are_those_of_tables_11_to_13():
    slots = {"shapestacks": (8, 12), "objects-room": (5, 6), "birds": (3, 3), "dogs": (2, 2), "cars": (2, 2)}
    for data, counts in (slots | {"flowers": (2, 2)}).items():
        for decoder, count in zip(("mixture", "transformer"), counts, strict=True):
            config = parse_config(PUBLISHED[f"bo-qsa.{data}.bo-qsa-{decoder}"].values())
            assert (config.slots.num_slots, config.slots.num_iterations) == (count, 3 + 1)
            assert config.slots.slot_dim == {"mixture": 64, "transformer": 256}[decoder]
            assert config.data.size == (64 if data == "objects-room" else 128)
            assert (config.training.steps, config.training.batch_size) == (250_000, 128)
            quiet = config.slots.overrides.get("initialiser") == "queries"
            assert quiet == (data in ("cars", "flowers"))
            assert quiet or config.training.noise_steps == 30_000
            if decoder == "transformer":
                assert (config.code.vocabulary, config.code.kernel, config.decoder.dropout) == (1024, 3, 0.1)
                assert (config.training.learning_rate, config.training.code_learning_rate) == (1e-4, 3e-4)
                assert_close(config.code.anneal_share * config.training.steps, 30_000)


def test_names_are_paper_data_system_and_rows_of_one_setting_have_one_name():
    seen: dict[str, str] = {}
    for name, row in PUBLISHED.items():
        assert len(name.split(".")) == 3
        assert row.figures
        assert str(row.values()) not in seen or row.dataset in FOLDERS, (name, seen.get(str(row.values())))
        seen[str(row.values())] = name
        assert row.values()["slots"]["variant"] in VARIANTS


@pytest.mark.parametrize("name", ["psa.voc.psa-transformer", "bo-qsa.dogs.sa-transformer", "psa.objects-room.psa-ard"])
@pytest.mark.usefixtures("unchecked")
def test_psa_train_takes_a_row_by_name_and_tells_the_figures_that_correspond(name, copies, tmp_path):
    row = PUBLISHED[name]
    settings = [*small(row, copies(row.dataset), tmp_path / "features"), "training.steps=1"]
    settings = [setting for setting in settings if not setting.startswith("data.source")]
    out = ("--out", tmp_path / "run", "--json")
    found = run("train", name, "--data", copies(row.dataset), *out, *options(settings))
    assert found.code == 0, found.err
    kind = found.json["masks"][found.json["mask_kind"]]
    for figure in row.figures:
        for key in figure.ours.split(", "):
            assert key in found.json or key in kind, key


def test_the_configuration_of_a_row_is_a_file_that_psa_train_takes(tmp_path):
    row = PUBLISHED["bo-qsa.birds.slate"]
    found = run("configs", row.name)
    assert found.code == 0
    assert found.out.startswith(f"# {row.name}: {row.source}\n")
    assert "\n# table 5, IoU / Dice: 36.1 / 51.0 (foreground_iou, foreground_dice)\n" in found.out
    assert parse_config(tomllib.loads(found.out)) == parse_config(row.values())
    assert run("configs", row.name, "--json").json["configs"][0]["config"] == row.values()
    listed = run("configs")
    assert all(name in listed.out for name in PUBLISHED)


def command_fails(arguments: Sequence[object], *words: str) -> None:
    assert_says_one_line(run(*arguments), 2, *words)


def test_what_is_no_row_and_a_row_without_its_data_are_told_in_one_line(tmp_path):
    near = "the nearest are bo-qsa.dogs.sa-transformer, "
    command_fails(["train", "bo-qsa.dogs.sa-transfomer"], "expected a TOML file or a published row", near)
    command_fails(["configs", "bo-qsa.dogs.sa-transfomer"], "expected a published row, ", near)
    command_fails(
        ["train", "psa.voc.sa"], "expected your copy of PASCAL VOC 2012", "psa train psa.voc.sa --data VOC2012"
    )
    command_fails(["train", tmp_path / "none.toml"], "none.toml: expected a TOML file")
    command = ["train", "psa.voc.sa", "--data", tmp_path / "none", "--out", tmp_path / "run"]
    command_fails(command, "features.weights: expected a safetensors file of vit_base_patch16_224.dino, got none")
