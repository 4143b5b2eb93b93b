"""The ``psa`` command: one module a command; the only part of ``psa`` that imports upward."""

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer

from psa.allocator import keep_freed_memory
from psa.cli.bars import progress_console, show_long_work
from psa.cli.bench import bench
from psa.cli.check import check
from psa.cli.common import print_json
from psa.cli.compare import compare
from psa.cli.configs import configs
from psa.cli.data import data
from psa.cli.demo import demo
from psa.cli.diagnose import diagnose
from psa.cli.encode import encode
from psa.cli.evaluate import evaluate
from psa.cli.experiment import experiment
from psa.cli.sample import sample
from psa.cli.slots import slots
from psa.cli.train import train
from psa.errors import PsaError, Stopped, TrainingFailed
from psa.files import NO_ROOM
from psa.plugins import load_plugins
from psa.progress import watching

app = typer.Typer(
    name="psa",
    help="Slot-based scene models as inference in an explicit probabilistic program.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (demo, train, configs, evaluate, encode, sample, slots, compare, check, diagnose, bench):
    app.command()(command)
app.add_typer(experiment)
app.add_typer(data)


@app.callback()
def prepare(
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE.py|MODULE",
            help="Your module that registers variants, decoders or data sets; its code runs. Repeatable.",
        ),
    ] = None,
) -> None:
    """Slot-based scene models as inference in an explicit probabilistic program."""
    load_plugins(plugin or ())


DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """So that whoever is stopped by it can leave things whole, and says how to go on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 bad input or usage, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    keep_freed_memory()
    message = "interrupted"  # Ctrl-C outside training: typer returns 130 and no exception
    try:
        with _sigterm_as_ctrl_c(), watching(show_long_work):
            code = app(args=given, prog_name="psa", standalone_mode=False) or DONE
    except PsaError as error:
        code, message = BAD_INPUT, str(error)
    except TrainingFailed as error:
        code, message = FAILED, str(error)
    except (Stopped, KeyboardInterrupt, typer.Abort) as error:
        code, message = INTERRUPTED, str(error) or message
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        code, message = FAILED, f"{error.filename or 'a file'}: cannot be written ({error.strerror})"
    except Exception as error:
        # typer's own usage errors, whichever copy of click a version of it carries
        if not hasattr(error, "format_message"):
            raise
        code, message = BAD_INPUT, f"{error.format_message()} (psa COMMAND --help explains)"
    if code != DONE:
        if "--json" in given:
            print_json({"error": message})
        progress_console.print(f"psa: {message}", markup=False, highlight=False, soft_wrap=True)
    sys.exit(code)
