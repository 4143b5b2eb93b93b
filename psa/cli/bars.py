"""Progress on standard error: a command's own bar, and bars of whatever below it takes longer than two seconds."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from time import monotonic

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from psa.progress import Tell

DELAY = 2.0  # seconds
PROCESS = os.getpid()  # a forked one has the terminal too, but is to leave it alone

progress_console = Console(stderr=True)
_shown: list["Bar"] = []


class Bar(Progress):
    """Description, steps, time left, and a line of figures; shown within ``with``. A terminal has room for one."""

    def __init__(self, transient: bool = False) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        super().__init__(*columns, console=progress_console, refresh_per_second=4, transient=transient)

    def start(self) -> None:
        """Show it, in the place of another."""
        for other in tuple(_shown):
            other.stop()
        _shown.append(self)
        super().start()

    def stop(self) -> None:
        """Leave what it shows, or take it away if it is transient."""
        super().stop()
        if self in _shown:
            _shown.remove(self)


@contextmanager
def show_long_work(what: str, total: int | None, at_once: bool) -> Iterator[Tell]:
    """Give work a bar once it has taken ``DELAY``, and take it away when it is done; on a terminal alone.

    The bar stands below the one that the command shows, where it shows one.
    """
    due = monotonic() + (0.0 if at_once else DELAY)
    found: list[tuple[Bar, TaskID]] = []
    with ExitStack() as stack:

        def tell(done: int) -> None:
            if not found and monotonic() >= due:
                bar = _shown[-1] if _shown else stack.enter_context(Bar(transient=True))
                found.append((bar, bar.add_task(escape(what), total=total, figures="")))
                stack.callback(bar.remove_task, found[0][1])
            for bar, task in found:
                bar.update(task, completed=done)

        if not progress_console.is_terminal or os.getpid() != PROCESS:
            yield lambda done: None
            return
        if at_once:
            tell(0)
        yield tell
