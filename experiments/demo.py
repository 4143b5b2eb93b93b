"""`psa demo`: scenes taken apart without a label, by several seeds in parallel processes, the best chosen blindly.

Claim: on 32 x 32 sprite scenes whose colours collide, PSA with learned queries and a read-out finds the objects in
minutes on two cores. Four seeds train a fifth of the steps, the best two the rest; which go on and which is shown is
decided by the held-out objective alone, and all are listed.
"""

import math
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event
from pathlib import Path
from time import perf_counter
from typing import Any

import psa
from psa.errors import ConfigError, RunError, TrainingFailed
from psa.inference.config import RunConfig, parse_config
from psa.inference.interrupts import Interrupted, deferred_interrupts
from psa.inference.sessions import Outcome, evaluate_run, open_trainer, resume_run, start_run
from psa.locks import LOCK
from psa.plugins import load_plugins, loaded_plugins
from psa.report import RunsTable
from psa.runs import RunDirectory

# The demo's scenes show every object whole. With the data set's default, which hides up to a twentieth, scores are
# about 0.02 lower (docs/results.md).
SCENES = ("data.min_visible=1.0",)
NUM_CANDIDATES = 4
NUM_FINALISTS = 2
# Every candidate trains this share of the steps; the finalists, chosen by the held-out objective, train the rest.
FIRST_SHARE = 0.2
# Of --seconds, kept for scoring fresh scenes, the baselines and the page.
EVALUATION_SECONDS = 10.0
PROBE_STEPS = 10

Report = Callable[[int, int, int, dict[str, float]], None]
Messages = SimpleQueue[tuple[int, int, int, dict[str, float]]]
_inherited: "tuple[Messages, Event] | None" = None


@dataclass(frozen=True)
class Candidate:
    """One seed's run.

    Attributes:
        seed: training.seed.
        path: Its run directory.
        held_out: Minus the objective on held-out images, nats a dimension: what the choice is made by.
        foreground_ari: On the held-out batch; shown, never used. NaN without masks.
        mse: On the held-out batch.
        steps: Steps trained.
    """

    seed: int
    path: Path
    held_out: float
    foreground_ari: float
    mse: float
    steps: int


@dataclass(frozen=True)
class Demo:
    """What the demo found.

    Attributes:
        chosen: Index of the chosen candidate.
        candidates: All of them.
        outcome: The chosen one on fresh scenes.
        run: The demo's run directory: the chosen candidate's files and the page.
        seconds: Wall time of everything.
    """

    chosen: int
    candidates: Sequence[Candidate]
    outcome: Outcome
    run: RunDirectory
    seconds: float


def candidate_seeds(seed: int) -> list[int]:
    """The training seeds that a demo's seed stands for; different demos share none."""
    return [seed * NUM_CANDIDATES + i for i in range(NUM_CANDIDATES)]


def _inherit(messages: Messages, stop: Event, plugins: Sequence[str]) -> None:
    global _inherited  # a pool's initializer has no other place to leave what its tasks inherit
    _inherited = messages, stop
    load_plugins(plugins)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until the trainer takes it, which finishes its step first


def _train(values: Mapping[str, Any], path: Path, until: int | None) -> Candidate:
    """Train one candidate in this process, from its checkpoint if it has one, up to a step."""
    assert _inherited is not None
    messages, stop = _inherited
    seed = values["training"]["seed"]

    def show(step: int, row: dict[str, float]) -> None:
        messages.put((seed, step, trainer.config.steps, row))
        if stop.is_set():
            trainer.save()
            raise Interrupted

    try:
        if stop.is_set():
            raise Interrupted
        with RunDirectory(path).held():
            started = RunDirectory(path).state.exists()
            trainer = resume_run(path, [], show) if started else start_run(values, path, show)
            trainer.fit(until)
    except Interrupted:
        raise KeyboardInterrupt from None
    except TrainingFailed as error:
        raise TrainingFailed(f"{path}: {error}") from None
    last = trainer.history[-1]
    ari = last.get("foreground_ari", math.nan)
    return Candidate(seed, path, last["held_out"], ari, last["mse"], trainer.step)


def _probe(values: Mapping[str, Any]) -> tuple[float, float]:
    """Seconds to open a run and seconds a step, measured in a process of the pool while the others measure too."""
    begun = perf_counter()
    trainer = open_trainer(parse_config(values), None)
    trainer.train_steps(2)
    opened = perf_counter()
    trainer.train_steps(PROBE_STEPS)
    return opened - begun, (perf_counter() - opened) / PROBE_STEPS


def run_demo(values: Mapping[str, Any], out: Path, seed: int, seconds: float | None, report: Report) -> Demo:
    """Train the candidates in parallel, choose one without labels, evaluate it on fresh scenes, write its page.

    Args:
        values: The configuration, as tables.
        out: The demo's directory; one that holds an earlier demo is replaced.
        seed: The demo's seed.
        seconds: Wall time to aim at; None for the configured number of steps.
        report: Called with (training seed, step, steps, row of metrics or empty).

    Raises:
        RunError: If ``out`` holds something that is not a demo.
    """
    begun = perf_counter()
    config = parse_config(values)
    if seconds is not None and seconds < 10:
        raise ConfigError(f"--seconds {seconds:g}: expected at least 10, to train and draw anything at all")
    with RunDirectory(out).held():
        _clear(out)
        deadline = None if seconds is None else begun + seconds
        candidates = _train_all(config, out, candidate_seeds(seed), deadline, report)
        chosen = min(range(len(candidates)), key=lambda i: (-candidates[i].steps, candidates[i].held_out))
        run = _adopt(candidates[chosen], out)
        outcome = evaluate_run(psa.load(run.path), run, config.data, "test", _table(candidates, chosen))
    return Demo(chosen, candidates, outcome, run, perf_counter() - begun)


def _clear(out: Path) -> None:
    found = [path for path in out.iterdir() if path.name != LOCK]
    if found and not (out / "demo").is_dir():
        raise RunError(f"{out}: holds files that are not a demo's; give another --out")
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    (out / "demo").mkdir(parents=True, exist_ok=True)


def _train_all(
    config: RunConfig, out: Path, seeds: Sequence[int], deadline: float | None, report: Report
) -> list[Candidate]:
    context = multiprocessing.get_context("spawn")
    messages, stop = context.SimpleQueue(), context.Event()
    workers = min(len(seeds), os.cpu_count() or 1)

    def tables(seed: int, steps: int) -> dict[str, Any]:
        training = config.training.model_copy(update={"seed": seed, "threads": 1, "steps": steps})
        return config.model_copy(update={"training": training}).to_toml()

    def train(chosen: Sequence[int], until: int | None) -> list[Candidate]:
        futures = [pool.submit(_train, tables(s, steps), out / "demo" / f"seed-{s}", until) for s in chosen]
        with deferred_interrupts() as caught:  # a signal in the middle of a message would break the queue
            while not all(future.done() for future in futures):
                wait(futures, timeout=0.2)
                while not messages.empty():
                    report(*messages.get())
                if caught:
                    stop.set()
        if caught:
            raise KeyboardInterrupt
        return [future.result() for future in futures]

    steps = config.training.steps
    with ProcessPoolExecutor(workers, context, _inherit, (messages, stop, loaded_plugins())) as pool:
        if deadline is not None:
            steps = _steps_that_fit(list(pool.map(_probe, [tables(s, steps) for s in seeds[:workers]])), deadline)
        first = train(seeds, max(1, round(FIRST_SHARE * steps)))
        finalists = [c.seed for c in sorted(first, key=lambda c: c.held_out)[:NUM_FINALISTS]]
        finished = {c.seed: c for c in train(finalists, None)}
    return [finished.get(c.seed, c) for c in first]


def _steps_that_fit(probes: Sequence[tuple[float, float]], deadline: float) -> int:
    opening, per_step = max(p[0] for p in probes), max(p[1] for p in probes)
    first, final = math.ceil(NUM_CANDIDATES / len(probes)), math.ceil(NUM_FINALISTS / len(probes))
    left = deadline - perf_counter() - EVALUATION_SECONDS - opening * (first + final)
    return max(4, int(left / (per_step * (FIRST_SHARE * first + (1 - FIRST_SHARE) * final))))


def _adopt(candidate: Candidate, out: Path) -> RunDirectory:
    """Copy the chosen run's files up, so that the demo's directory is a run directory itself."""
    source, run = RunDirectory(candidate.path), RunDirectory(out)
    for path in (source.metrics, source.checkpoint, source.state, source.config):
        shutil.copyfile(path, out / path.name)
    return run


def _table(candidates: Sequence[Candidate], chosen: int) -> RunsTable:
    rows = [(c.seed, c.steps, c.held_out, c.mse, c.foreground_ari) for c in candidates]
    headers = ("seed", "steps", "held-out objective (decides)", "MSE", "foreground ARI (not used)")
    return RunsTable(headers, rows, chosen)
