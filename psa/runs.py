"""The run directory: config.toml, metrics.jsonl, checkpoint, state and prior (safetensors), report.html, figures/.

Every file is written beside its place and renamed, so that a reader finds the old one or the new one, never a half.
Nothing here can unpickle.
"""

import json
import os
import tomllib
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from psa.errors import RunError
from psa.files import remove_leftovers, write_atomically
from psa.locks import held
from psa.seals import BrokenSeal, check_seal, sealed, unsealed, without_seal

SCHEMA = 2
READABLE = (1, SCHEMA)  # 1, psa 0.1.0: no checksums, and state.safetensors does not say whose it is


def save_tensors(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
    """Write tensors and JSON notes as one safetensors file, which holds its checksum.

    Raises:
        OSError: If it cannot be written, as on a full disk; what was there stays.
    """
    # Serialised in memory first: safetensors' own file writer leaves a file of mode 0600.
    contiguous = {name: value.detach().contiguous() for name, value in tensors.items()}
    payload = sealed(save(contiguous, {"notes": json.dumps(unsealed(notes))}))
    write_atomically(path, lambda temporary: temporary.write_bytes(payload))


def load_tensors(
    path: Path, remedy: str = "restore it from a copy, or make it anew"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and notes of a file that :func:`save_tensors` wrote.

    Args:
        path: The file.
        remedy: What its user can do where it is spoiled.

    Raises:
        RunError: If the file is missing, cut short, changed since it was written, or not of this kind.
    """
    try:
        check_seal(path)
        with safe_open(path, framework="pt") as handle:
            notes = without_seal(json.loads((handle.metadata() or {})["notes"]))
            return {name: handle.get_tensor(name) for name in handle.keys()}, notes  # noqa: SIM118
    except FileNotFoundError:
        raise RunError(f"{path}: expected a safetensors file, found nothing of that name") from None
    except (SafetensorError, BrokenSeal, KeyError, ValueError, OSError) as error:
        raise RunError(
            f"{path}: expected a safetensors file written by psa, got one that cannot be read ({error}); {remedy}"
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

    @property
    def picture(self) -> Path:
        """The pictures of the page."""
        return self.path / "figures" / "scenes.png"

    def create(self) -> None:
        """Make the directory.

        Raises:
            RunError: If something else is in the way.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{self.path}: expected a directory that can be made ({error.strerror})") from None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from writing here; see :func:`psa.locks.held`. What killed ones left is removed.

        Raises:
            RunError: If another process holds the directory, or it cannot be made.
        """
        with held(self.path):
            for path in (self.checkpoint, self.state, self.prior, self.config, self.metrics, self.report, self.picture):
                remove_leftovers(path)
            yield

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write config.toml; the name that a run got from its first configuration stays."""
        text = tomli_w.dumps(config)
        name = self.name if self.config.exists() else f"{zlib.crc32(text.encode()):08x}"  # a resumed run keeps its name
        head = {"schema": SCHEMA} | ({} if name is None else {"run": name})
        write_atomically(self.config, lambda temporary: temporary.write_text(tomli_w.dumps(head | dict(config))))

    @property
    def name(self) -> str | None:
        """Which run this is: runs that began with the same configuration are the same. None without, or of schema 1.

        Raises:
            RunError: If there is a configuration that cannot be read.
        """
        return self._read()[1] if self.config.exists() else None

    def read_config(self) -> dict[str, Any]:
        """The configuration as written.

        Raises:
            RunError: If there is none, or it is of no schema that is known.
        """
        return self._read()[0]

    def _read(self) -> tuple[dict[str, Any], str | None]:
        try:
            config = tomllib.loads(self.config.read_text())
        except (FileNotFoundError, NotADirectoryError):
            raise RunError(f"{self.path}: expected a run directory with config.toml, found none") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RunError(f"{self.config}: expected TOML ({error})") from None
        schema, name = config.pop("schema", None), config.pop("run", None)
        if schema not in READABLE:
            raise RunError(
                f"{self.config}: expected schema = {' or '.join(map(str, READABLE))}, got {schema}; "
                "use the version of psa that wrote the run"
            )
        return config, name

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl.

        Raises:
            OSError: If it cannot be written; its ``filename`` is that of the file.
        """
        try:
            with open(self.metrics, "a") as handle:
                handle.write(json.dumps(dict(row)) + "\n")
        except OSError as error:
            error.filename = str(self.metrics)
            raise

    def bring_metrics_to_disk(self) -> None:
        """Before a checkpoint is: no loss of power then takes a row that the checkpoint counts on."""
        if self.metrics.exists():
            with open(self.metrics, "rb") as handle:
                os.fsync(handle.fileno())

    def read_metrics(self) -> list[dict[str, Any]]:
        """All rows of metrics.jsonl, which have a step; a line cut short or spoiled is left out."""
        if not self.metrics.is_file():
            return []
        rows = []
        for line in self.metrics.read_text(errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows.append(row)
        return rows

    def keep_metrics_before(self, step: int) -> None:
        """Drop lines past a step, which a resumed run writes again."""
        rows = [row for row in self.read_metrics() if row["step"] <= step]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomically(self.metrics, lambda temporary: temporary.write_text(text))
