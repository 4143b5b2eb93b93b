"""What a row of a published table is: a configuration, the data it expects, and the figure it stands for."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

import tomli_w

from psa.inference.config import RunConfig

Tables = Mapping[str, Mapping[str, Any]]

# Of the likelihood, so that minus its log is the papers' squared error, summed over an image, and a constant.
SQUARED_ERROR: Tables = {"objective": {"sigma": 0.5**0.5, "kl_weight": 0.0}}


@dataclass(frozen=True)
class Dataset:
    """A data set that users have a copy of.

    Attributes:
        name: Of the data set.
        copy: What ``--data`` names.
        options: Its part of the table ``data``.
    """

    name: str
    copy: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """A published figure.

    Attributes:
        table: Where it stands in the paper.
        published: The figure, as printed.
        ours: The figure of ours that corresponds: keys of what ``psa evaluate --json`` prints, or what gives it.
    """

    table: str
    published: str
    ours: str


@dataclass(frozen=True)
class PublishedRow:
    """A system on a data set, as a paper trains it.

    Attributes:
        name: ``paper.data.system``.
        source: The paper.
        dataset: What it is trained on.
        tables: The configuration without ``data.source``.
        figures: What was published of it.
        needs: Keys that only the user can give, beside ``data.source``, with what they are.
    """

    name: str
    source: str
    dataset: Dataset
    tables: Tables
    figures: tuple[Figure, ...]
    needs: Mapping[str, str]

    @property
    def command(self) -> str:
        """What trains it, with capitals in the place of the user's files."""
        needed = "".join(f" --set {key}={place}" for key, place in self.needs.items())
        return f"psa train {self.name} --data {self.dataset.copy}{needed}"

    def values(self) -> dict[str, Any]:
        """The configuration's tables, a copy."""
        return deepcopy({name: dict(table) for name, table in self.tables.items()})

    def to_json(self) -> dict[str, Any]:
        """Plain values: what it is, where it is from, and its configuration."""
        about = {"name": self.name, "source": self.source, "data": self.dataset.name, "command": self.command}
        return about | {"figures": [asdict(figure) for figure in self.figures], "config": self.values()}

    def to_toml(self) -> str:
        """A configuration file: what it is of as a comment, then the tables."""
        head = [f"{self.name}: {self.source}", f"on {self.dataset.name}", self.command]
        head += [f"{figure.table}: {figure.published} ({figure.ours})" for figure in self.figures]
        values = self.values()
        ordered = {name: values[name] for name in RunConfig.model_fields if name in values}
        return "".join(f"# {line}\n" for line in head) + "\n" + tomli_w.dumps(ordered)


def row(
    source: str,
    name: str,
    dataset: Dataset,
    layers: Sequence[Tables],
    *figures: Figure,
    needs: Mapping[str, str] = MappingProxyType({}),
) -> PublishedRow:
    """A row whose configuration is the data set's options with layers of tables on top."""
    return PublishedRow(name, source, dataset, merged({"data": dataset.options}, *layers), figures, needs)


def merged(*tables: Tables) -> Tables:
    """Tables on top of each other: later keys win, and the keys of ``slots.overrides`` one by one."""
    found: dict[str, dict[str, Any]] = {}
    for layer in tables:
        for name, table in layer.items():
            own = found.setdefault(name, {})
            changes = {**own.get("overrides", {}), **table.get("overrides", {})}
            own |= table
            if changes:
                own["overrides"] = changes
    return found
