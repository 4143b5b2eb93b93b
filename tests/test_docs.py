"""The pages say what the code does: examples run, links, names and keys exist, tables equal what they describe."""

import dataclasses
import importlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from pydantic import BaseModel
from registered import forget

from psa.cli import app
from psa.data.sprites import SpriteOptions
from psa.experiments.registry import EXPERIMENTS
from psa.inference import failures
from psa.inference.config import RECIPE, RunConfig
from psa.inference.variants import VARIANTS, VariantSpec

ROOT = Path(__file__).resolve().parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*DOCS, ROOT / "README.md"]
LINKED = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
NOT_RUN = "<!-- not run -->"
SECTIONS = "data|encoder|slots|decoder|code|features|objective|bottleneck|training"


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def examples(page: Path) -> Iterator[tuple[int, str]]:
    """(line number, code) of each python block that is to run."""
    text = page.read_text()
    for block in re.finditer(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        if not text[: block.start()].rstrip().endswith(NOT_RUN):
            yield text.count("\n", 0, block.start()) + 1, block.group(1)


def rows(text: str) -> list[list[str]]:
    """Cells of the lines that are table rows; an escaped bar or one within math stays in its cell."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory; torch's generator and threads, and what is registered, as they were afterwards."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        yield tmp_path
    forget()
    torch.set_num_threads(threads)


@pytest.mark.parametrize("page", [page for page in PAGES if list(examples(page))], ids=relative)
@pytest.mark.usefixtures("apart")
def test_examples_run(page: Path):
    namespace: dict[str, Any] = {"__name__": "example"}
    for line, code in examples(page):
        exec(compile("\n" * line + code, str(page), "exec"), namespace)


def slug(heading: str) -> str:
    """A heading's anchor on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", LINKED, ids=relative)
def test_relative_links_point_to_something(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.exists(), f"{relative(page)}: no file {target}"
        if anchor:
            anchors = [slug(heading) for heading in re.findall(r"^#+ (.*)$", prose(found), flags=re.MULTILINE)]
            assert anchor in anchors, f"{relative(page)}: no heading {target}"


def resolve(name: str) -> object:
    """The module, or the attribute or field of one, that a dotted name stands for."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            names = [field.name for field in dataclasses.fields(found)] if dataclasses.is_dataclass(found) else []
            found = None if part in names and not hasattr(found, part) else getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("page", LINKED, ids=relative)
def test_dotted_names_resolve(page: Path):
    for name in set(re.findall(r"`(psa(?:\.\w+)+)", page.read_text())):
        try:
            resolve(name)
        except (ModuleNotFoundError, AttributeError) as error:
            pytest.fail(f"{relative(page)}: {name} does not exist ({error})")


def keys_of(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Default of every dotted key."""
    found: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            found |= keys_of(info.annotation, f"{prefix}{name}.")
        else:
            found[prefix + name] = info.get_default(call_default_factory=True)
    return found


KEYS = keys_of(RunConfig)
COLUMNS = {field.name for field in dataclasses.fields(VariantSpec)} - {"name", "source"}


def is_key(key: str) -> bool:
    if key.startswith(("data.options.", "decoder.options.")):
        return True
    column = key.removeprefix("slots.overrides.")
    return key in KEYS or (column != key and (column in COLUMNS or column == "COLUMN"))


# How messages name the split of a data set; a key of no configuration, and listed among the messages.
SPOKEN = {"data.split"}


@pytest.mark.parametrize("page", LINKED, ids=relative)
def test_settings_exist(page: Path):
    text = page.read_text()
    used = re.findall(r"--set[ =]\"?([A-Za-z_.]+)=", text)
    assert set(used) - {"KEY", "key"} <= {key for key in used if is_key(key)}, relative(page)
    named = re.findall(rf"`((?:{SECTIONS})\.[a-z_]+(?:\.\w+)?)(?:=[^`]*)?`", prose(page))
    wrong = {key for key in named if not is_key(key)} - SPOKEN
    assert not wrong, f"{relative(page)}: no keys {wrong}"


def written(value: object) -> str:
    return "left out" if value is None else f"`{json.dumps(value)}`"


def test_the_table_of_keys_equals_the_configuration():
    section = (ROOT / "docs" / "cli.md").read_text().partition("| Key | Default |")[2]
    table = {cells[0].strip("`"): cells[1] for cells in rows(section) if cells[0].startswith("`")}
    assert table == {key: written(value) for key, value in KEYS.items()}


def flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tables.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def test_the_table_of_the_recipe_equals_it():
    section = (ROOT / "docs" / "scene.md").read_text().partition("| Key | Value | For |")[2].partition("\n\n")[0]
    table = {cells[0].strip("`"): cells[1] for cells in rows(section) if cells[0].startswith("`")}
    assert table == {key: written(value) for key, value in flat(RECIPE).items()}


def test_the_table_of_members_equals_the_codes():
    text = (ROOT / "docs" / "em_family.md").read_text()
    header, *body = rows(text[text.index("| name | initialiser |") :].partition("\n\n")[0])
    assert [cells[0].strip("`") for cells in body] == list(VARIANTS)
    shown = header[1:]
    assert {*shown, "power", "variance_floor", "hidden_dim", "covariance", "prior"} == COLUMNS | {"source"}
    for cells in body:
        spec = VARIANTS[cells[0].strip("`")]
        for column, cell in zip(shown, cells[1:], strict=True):
            value = getattr(spec, column)
            expected = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
            expected = f"{value:g}" if isinstance(value, float) else expected
            assert cell.strip("`") == expected, (spec.name, column)
        assert (spec.power, spec.variance_floor, spec.hidden_dim) == (1.0, 1e-4, 128)
        assert spec.covariance == "diagonal"


def test_every_column_is_explained():
    text = (ROOT / "docs" / "em_family.md").read_text()
    section = text[text.index("| Column | Values |") :].partition("\n\n")[0]
    explained = {cells[0].strip("`") for cells in rows(section) if cells[0].startswith("`")}
    assert explained == COLUMNS


def test_the_table_of_sprite_options_has_their_defaults():
    section = (ROOT / "docs" / "data.md").read_text().partition("## Sprites")[2].partition("\n## ")[0]
    table = {cells[0].strip("`"): cells[1] for cells in rows(section) if cells[0].startswith("`")}
    defaults = {name: written(value) for name, value in vars(SpriteOptions()).items()}
    assert defaults.items() <= table.items()


def commands_of(group: Any, prefix: str = "") -> dict[str, Any]:
    """Every command by its words, those of groups included."""
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        words = f"{prefix}{name}"
        found |= commands_of(command, f"{words} ") if hasattr(command, "commands") else {words: command}
    return found


def test_every_command_and_option_is_described():
    text = (ROOT / "docs" / "cli.md").read_text()
    commands = commands_of(typer.main.get_command(app))
    assert set(re.findall(r"^## psa (.*)$", text, flags=re.MULTILINE)) == set(commands)
    for name, command in commands.items():
        section = text.partition(f"## psa {name}\n")[2].partition("\n## ")[0]
        described = {cells[0].strip("`").split()[0] for cells in rows(section)}
        options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        assert {option for option in described if option.startswith("--")} == options - {"--help"}, name


def test_every_experiment_has_its_row():
    text = (ROOT / "docs" / "experiments.md").read_text()
    named = {cells[0].strip("`") for cells in rows(text.partition("| experiment | claim |")[2].partition("\n\n")[0])}
    assert named - {"---"} == set(EXPERIMENTS)


def test_thresholds_of_failures_are_the_codes():
    text = (ROOT / "docs" / "failures.md").read_text()
    for measure, threshold in (
        ("largest_share", failures.ONE_SLOT_SHARE),
        ("layout_agreement", failures.TILING_AGREEMENT),
        ("unexplained", failures.UNEXPLAINED),
    ):
        row = next(cells for cells in rows(text) if cells[0] == f"`{measure}`")
        assert f"above {threshold}" in row[2], measure
