import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from psa.errors import RunError
from psa.locks import LOCK, held


@contextmanager
def another_process(do: Callable[[], object]) -> Iterator[int]:
    """A process that does something, says so, and waits to be killed."""
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            do()
            os.write(told, b"done")
            signal.pause()
        finally:
            os._exit(1)
    try:
        assert os.read(ready, 4) == b"done"
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(told)


def test_another_process_is_refused_in_one_line_that_names_the_folder_and_the_holder(tmp_path):
    with another_process(held(tmp_path).__enter__) as pid:
        for _ in range(2):  # being refused takes nothing from the holder
            with pytest.raises(RunError, match=rf"{tmp_path}: is in use by process {pid} on \S+; wait") as caught:
                held(tmp_path).__enter__()
            assert "\n" not in str(caught.value)
        assert os.listdir(tmp_path) == [LOCK]


def test_the_lock_of_a_process_that_was_killed_is_free_and_leaves_nothing(tmp_path):
    with another_process(held(tmp_path).__enter__):
        pass
    assert (tmp_path / LOCK).exists()
    with held(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / LOCK).read_text()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", ["", "process 1 on here", "x" * 1000])
def test_a_stale_file_does_not_block(tmp_path, content):
    (tmp_path / LOCK).write_text(content)
    with held(tmp_path):
        assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on")


def test_processes_that_the_holder_forked_do_not_keep_the_lock(tmp_path):
    with held(tmp_path):
        keeper = another_process(lambda: None)
        keeper.__enter__()
    try:
        with held(tmp_path):
            pass
    finally:
        keeper.__exit__(None, None, None)


def test_a_process_is_kept_from_itself_by_whatever_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with held(tmp_path / "run"), pytest.raises(RunError, match="run: is in use by this process already"):
        held(Path("run")).__enter__()
    with held(Path("run")):
        pass


def test_a_folder_that_was_made_for_nothing_is_gone_again(tmp_path):
    with pytest.raises(ZeroDivisionError), held(tmp_path / "a"):
        _ = 1 / 0
    assert os.listdir(tmp_path) == []
    with held(tmp_path / "a"):
        (tmp_path / "a" / "file").write_text("")
    assert os.listdir(tmp_path / "a") == ["file"]
    (tmp_path / "empty").mkdir()
    with held(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty").is_dir()


def test_a_holder_that_leaves_between_opening_and_locking_does_not_leave_two_holders(tmp_path, monkeypatch):
    lockf, calls = fcntl.lockf, []

    def late(handle, flags):
        if not calls:
            (tmp_path / LOCK).unlink()  # the holder ends
        calls.append(handle.name)
        lockf(handle, flags)

    monkeypatch.setattr(fcntl, "lockf", late)
    with held(tmp_path):
        assert len(calls) == 2
        with another_process(lambda: refused(tmp_path)):
            pass


def refused(folder: Path) -> None:
    from psa import locks

    locks._held.clear()  # the fork's copy of what its parent holds
    with pytest.raises(RunError, match="is in use by process"):
        held(folder).__enter__()


def test_a_file_in_the_way_is_a_run_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file: expected a directory that can be made and locked \(File exists\)"):
        held(tmp_path / "file").__enter__()


def test_a_file_system_that_has_no_locks_is_a_run_error(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    with pytest.raises(RunError, match="No locks available"):
        held(tmp_path).__enter__()
