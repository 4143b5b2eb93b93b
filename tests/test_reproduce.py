"""docs/reproduce.md: the rows of the registry, commands that parse, and its longer examples on small data."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from layouts import write_clevr

from psa.cli import app
from psa.data import open_dataset
from psa.experiments.published.registry import PUBLISHED, find_published
from psa.experiments.registry import EXPERIMENTS
from psa.inference.config import override, parse_config

PAGE = (Path(__file__).parents[1] / "docs" / "reproduce.md").read_text()
PAPERS = {"psa": "PSA", "smm": "SMM", "bo-qsa": "BO-QSA", "covariance": "Covariance regularisation"}


def sections() -> dict[str, str]:
    parts = re.split(r"^### (.*)$", PAGE, flags=re.MULTILINE)
    return {heading: body.partition("\n## ")[0] for heading, body in zip(parts[1::2], parts[2::2], strict=True)}


def test_the_page_has_the_rows_of_the_registry_with_their_commands_and_figures():
    found = set()
    for heading, body in sections().items():
        for command, published in re.findall(r"^\| `(psa train [^`]*)` \| (.*) \|$", body, flags=re.MULTILINE):
            ours = re.search(r"^Ours: ((?:`[^`]*`(?:, | of )?)+)\.", body, flags=re.MULTILINE)
            assert ours is not None, heading
            found.add((heading, command, published, ours.group(1).replace("`", "")))
    expected = {
        (f"{PAPERS[name.partition('.')[0]]}, {figure.table}", row.command, figure.published, figure.ours)
        for name, row in PUBLISHED.items()
        for figure in row.figures
    }
    assert found == expected


def test_every_file_in_a_command_is_explained():
    table = PAGE.partition("| in commands |")[2].partition("\n\n")[0]
    assert {row.dataset.copy for row in PUBLISHED.values()} <= set(re.findall(r"`(\w+(?:\.0)?)`", table))


def commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`(psa [a-z][^`]*)`", PAGE)
    return [*(line for block in blocks for line in block.splitlines() if line), *spans]


def test_every_command_parses():
    assert len(commands()) > len(PUBLISHED)
    group: Any = typer.main.get_command(app)
    for text in commands():
        name, *words = text.partition(" > ")[0].removeprefix("psa ").split()
        command = group.commands[name]
        if hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        context = command.make_context(name, [word.replace("NAME", "psa.voc.sa") for word in words])
        config = context.params.get("config")
        if config is not None and not config.endswith(".toml"):
            parse_config(override(find_published(config).values(), context.params["settings"] or []))
        if name == "experiment":
            assert context.params["name"] in EXPERIMENTS


def test_settings_of_the_generator_are_its_own():
    given = re.search(r"`--data (\S+) --set data\.(\w+)=(\w+) --set data.num_scenes=60000`", PAGE)
    assert given is not None
    source, option, value = given.groups()
    assert open_dataset(source, "train", num_scenes=1, **{option: value})[0].image.shape == (64, 64, 3)


def block(heading: str) -> str:
    body = PAGE.partition(f"{heading}\n")[2]
    return body.partition("```python\n")[2].partition("```")[0]


@pytest.mark.usefixtures("unchecked")
def test_the_example_of_set_prediction_runs_on_a_copy_of_clevr(tmp_path, monkeypatch, capsys):
    write_clevr(tmp_path / "CLEVR_V1.0", 6)
    monkeypatch.chdir(tmp_path)
    small = ["data.size=16", "encoder.channels=4", "slots.slot_dim=8", "training.steps=2", "training.batch_size=2"]
    small += ["encoder.token_dim=8", "slots.overrides.hidden_dim=8"]
    code = block("## SMM").replace('settings = ["training.device=cuda"]', f"settings = {small}")
    assert str(small) in code
    exec(compile(code, "reproduce.md", "exec"), {})
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [float(threshold) for threshold, _ in printed] == [np.inf, 1.0, 0.5, 0.25, 0.125, 0.1, 0.2]
    assert all(0 <= float(precision) <= 1 for _, precision in printed)


def test_the_example_of_two_runs_reads_what_psa_encode_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    slots, masks = generator.normal(size=(40, 3, 4)), generator.random((40, 3, 8, 8))
    order = generator.permuted(np.tile(np.arange(3), (40, 1)), axis=1)
    np.savez("a.npz", slots=slots, masks=masks, weights=np.full((40, 3), 1 / 3))
    turned = np.take_along_axis(2 * slots[..., ::-1] + 1, order[..., None], 1)
    seen = np.take_along_axis(masks, order[..., None, None], 1)
    np.savez("b.npz", slots=turned, masks=seen, weights=np.full((40, 3), 1 / 3))
    exec(compile(block("### SMCC of two runs"), "reproduce.md", "exec"), {})
    score, r2, null = map(float, capsys.readouterr().out.split())
    assert score > 0.999
    assert r2 > 0.999
    assert null < 0.5
