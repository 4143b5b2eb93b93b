"""Running an experiment: every unit is kept when it is done, so that an interrupted run goes on with the missing ones.

The folder: experiment.json (what is run), units/UNIT.safetensors (tensors, figures and seconds of a unit), result.json,
result.md, and figures/*.png.
"""

import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch

from psa.errors import ConfigError, RunError
from psa.experiments.experiment import Conclusion, Experiment, Outcome, Progress, require_units
from psa.experiments.tables import markdown
from psa.report.files import save
from psa.report.pictures import figure_png
from psa.runs import load_tensors, save_tensors

DESCRIPTION, UNITS, RESULT, PAGE, FIGURES = "experiment.json", "units", "result.json", "result.md", "figures"
Watch = Callable[[str], Progress]  # told of a unit that begins; what it returns is told of its steps


@dataclass(frozen=True)
class Result:
    """A finished experiment.

    Attributes:
        conclusion: What it says.
        seconds: Wall time of all units, whenever they ran.
        cpu_seconds: Processor time of the same.
        record: What result.json holds.
    """

    conclusion: Conclusion
    seconds: float
    cpu_seconds: float
    record: Mapping[str, Any]


def run_experiment(experiment: Experiment, scale: str, out: Path, watch: Watch) -> Result:
    """Run the units that ``out`` does not hold yet, conclude from all, and write result, page and pictures.

    Args:
        experiment: The claim with its configuration.
        scale: Its name, for the record.
        out: The folder; made where missing.
        watch: Called with every unit's name when it begins.

    Raises:
        RunError: If ``out`` holds another experiment or configuration, or a unit that cannot be read.
        ConfigError: If the device is not to be had, or ``out`` cannot be written.
    """
    _require_device(experiment.device)
    units = require_units(experiment)
    try:
        _claim_folder(experiment, scale, out)
        kept = {unit: _unit(experiment, unit, out / UNITS / f"{unit}.safetensors", watch) for unit in units}
        seconds, cpu_seconds = (sum(kind) for kind in zip(*(spent for _, spent in kept.values()), strict=True))
        conclusion = experiment.conclude({unit: outcome for unit, (outcome, _) in kept.items()})
        record = _record(experiment, scale, conclusion, seconds, cpu_seconds)
        for name, figure in conclusion.pictures.items():
            save(out / FIGURES / f"{name}.png", figure_png(figure))
        save(out / PAGE, page(record, scale).encode())
        save(out / RESULT, (json.dumps(record, indent=2) + "\n").encode())
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror or error})") from None
    return Result(conclusion, seconds, cpu_seconds, record)


def _require_device(device: str) -> None:
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {device}: not to be had here ({str(error).splitlines()[0]})") from None


def _description(experiment: Experiment, scale: str) -> dict[str, Any]:
    """As JSON gives it back, so that it can be compared."""
    described = {"experiment": experiment.name, "scale": scale, "configuration": asdict(experiment)}
    return json.loads(json.dumps(described))


def _claim_folder(experiment: Experiment, scale: str, out: Path) -> None:
    """Write experiment.json, or find this very experiment described there."""
    path, described = out / DESCRIPTION, _description(experiment, scale)
    if path.exists():
        try:
            found = json.loads(path.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RunError(f"{path}: expected what psa experiment wrote, got no JSON ({error})") from None
        if found != described:
            raise RunError(f"{out}: holds another experiment, scale or configuration; give another --out")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out}: holds files that are not an experiment's; give another --out")
    else:
        (out / UNITS).mkdir(parents=True, exist_ok=True)
        save(path, (json.dumps(described, indent=2) + "\n").encode())


def _unit(experiment: Experiment, unit: str, path: Path, watch: Watch) -> tuple[Outcome, tuple[float, float]]:
    """A unit's outcome, and its wall and processor time, from its file if there is one."""
    if not path.exists():
        progress = watch(unit)
        begun, processor = perf_counter(), process_time()
        outcome = experiment.measure(unit, progress)
        spent = {"seconds": perf_counter() - begun, "cpu_seconds": process_time() - processor}
        save_tensors(path, outcome.tensors, {"figures": dict(outcome.figures), **spent})
    tensors, notes = load_tensors(path)
    try:
        return Outcome(notes["figures"], tensors), (notes["seconds"], notes["cpu_seconds"])
    except (KeyError, TypeError):
        raise RunError(f"{path}: expected a unit that psa experiment wrote, got another file") from None


def _record(
    experiment: Experiment, scale: str, conclusion: Conclusion, seconds: float, cpu_seconds: float
) -> dict[str, Any]:
    return {
        **_description(experiment, scale),
        "claim": experiment.claim,
        "source": experiment.source,
        "verdict": conclusion.verdict,
        "reason": conclusion.reason,
        "figures": dict(conclusion.figures),
        "tables": {title: [dict(row) for row in rows] for title, rows in conclusion.tables.items()},
        "pictures": [f"{FIGURES}/{name}.png" for name in conclusion.pictures],
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "machine": f"{os.cpu_count()} cores {platform.machine()}, {torch.get_num_threads()} thread(s), "
        f"{experiment.device}, Python {platform.python_version()}, torch {torch.__version__}",
        "date": datetime.now(UTC).date().isoformat(),
    }


def page(record: Mapping[str, Any], scale: str) -> str:
    """The result as Markdown: claim, verdict, tables, pictures, and how to get it again."""
    parts = [
        f"# {record['experiment']}",
        f"Claim: {record['claim']} ({record['source']})",
        f"Verdict: **{record['verdict']}**. {record['reason']}",
        f"```sh\npsa experiment run {record['experiment']} --scale {scale}\n```",
        f"{record['seconds']:.0f} s, of them {record['cpu_seconds']:.0f} s of processor time, on {record['machine']}; "
        f"{record['date']}.",
    ]
    for title, rows in record["tables"].items():
        parts += [f"## {title}", markdown(rows)]
    parts += [f"![{Path(name).stem}]({name})" for name in record["pictures"]]
    return "\n\n".join(parts) + "\n"
