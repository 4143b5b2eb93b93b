"""The run directory: config.toml, metrics.jsonl, checkpoint, state and prior (safetensors), report.html, figures/.

Every file is written beside its place and renamed, so that a reader finds the old one or the new one, never a half.
Nothing here can unpickle.
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from psa.errors import RunError
from psa.files import write_atomically

SCHEMA = 1


def save_tensors(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
    """Write tensors and JSON notes as one safetensors file."""
    # Serialised in memory first: safetensors' own file writer leaves a file of mode 0600.
    payload = save({k: v.detach().contiguous() for k, v in tensors.items()}, {"notes": json.dumps(dict(notes))})
    write_atomically(path, lambda temporary: temporary.write_bytes(payload))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and notes of a file that :func:`save_tensors` wrote.

    Raises:
        RunError: If the file is missing, cut short or not of this kind.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            notes = json.loads((handle.metadata() or {})["notes"])
            return {name: handle.get_tensor(name) for name in handle.keys()}, notes  # noqa: SIM118
    except FileNotFoundError:
        raise RunError(f"{path}: expected a safetensors file, found nothing of that name") from None
    except (SafetensorError, KeyError, json.JSONDecodeError, OSError) as error:
        raise RunError(
            f"{path}: expected a safetensors file written by psa, got one that cannot be read ({error})"
        ) from None


@dataclass(frozen=True)
class RunDirectory:
    """Paths of a run, and its small files."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        """Weights."""
        return self.path / "checkpoint.safetensors"

    @property
    def state(self) -> Path:
        """What resuming needs beside the weights: optimiser, random states, step."""
        return self.path / "state.safetensors"

    @property
    def prior(self) -> Path:
        """The aggregate prior over slots, made when training ends."""
        return self.path / "prior.safetensors"

    @property
    def config(self) -> Path:
        """The configuration, with a schema number."""
        return self.path / "config.toml"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def report(self) -> Path:
        """The page."""
        return self.path / "report.html"

    def create(self) -> None:
        """Make the directory.

        Raises:
            RunError: If something else is in the way.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{self.path}: expected a directory that can be made ({error.strerror})") from None

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write config.toml."""
        text = tomli_w.dumps({"schema": SCHEMA, **config})
        write_atomically(self.config, lambda temporary: temporary.write_text(text))

    def read_config(self) -> dict[str, Any]:
        """The configuration as written.

        Raises:
            RunError: If there is none, or it is not of this schema.
        """
        try:
            config = tomllib.loads(self.config.read_text())
        except (FileNotFoundError, NotADirectoryError):
            raise RunError(f"{self.path}: expected a run directory with config.toml, found none") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RunError(f"{self.config}: expected TOML ({error})") from None
        if config.pop("schema", None) != SCHEMA:
            raise RunError(f"{self.config}: expected schema = {SCHEMA}, written by another version of psa")
        return config

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        with open(self.metrics, "a") as handle:
            handle.write(json.dumps(dict(row)) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl; a last line cut short is left out."""
        if not self.metrics.is_file():
            return []
        rows = []
        for line in self.metrics.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows

    def keep_metrics_before(self, step: int) -> None:
        """Drop lines past a step, which a resumed run writes again."""
        rows = [row for row in self.read_metrics() if row["step"] <= step]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomically(self.metrics, lambda temporary: temporary.write_text(text))
