"""Who is told of long work: the command line installs what shows it; without that nobody is, at no cost."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from operator import length_hint
from typing import TypeVar

Item = TypeVar("Item")
Tell = Callable[[int], object]  # is told how much is done
# What shows work: told its name, how much there is (None where that is not known) and whether to show it at once.
Watcher = Callable[[str, int | None, bool], AbstractContextManager[Tell]]

_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Within it, ``watcher`` is asked to show what ``long_work`` does."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


@contextmanager
def long_work(what: str, total: int | None = None, at_once: bool = False) -> Iterator[Tell]:
    """Work that may take seconds; what it yields is to be called with how much is done.

    Args:
        what: The work in a few words, such as "opening a.tfrecords".
        total: How much there is to do.
        at_once: Shown before it has taken long: for what takes long and cannot tell on its way.
    """
    watcher = _watcher.get()
    with nullcontext(_ignore) if watcher is None else watcher(what, total, at_once) as tell:
        yield tell


def watched(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """The items, as ``long_work`` that is done item by item."""
    with long_work(what, length_hint(items, 0) or None if total is None else total) as tell:
        for done, item in enumerate(items, 1):
            yield item
            tell(done)


def _ignore(done: int) -> None:
    pass
