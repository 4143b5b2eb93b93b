"""Bars of long work: where they appear, and that nothing appears where work is quick or nobody looks."""

import io
import os

import pytest
from command_line import run
from formats import FORMATS
from rich.console import Console

from psa.cli import bars
from psa.data import open_dataset
from psa.progress import long_work, watched, watching


@pytest.fixture
def terminal(monkeypatch) -> io.StringIO:
    """Standard error as a terminal, on which all work takes long."""
    text = io.StringIO()
    monkeypatch.setattr(bars, "progress_console", Console(file=text, force_terminal=True, width=100))
    monkeypatch.setattr(bars, "DELAY", 0.0)
    return text


def count_to(number: int) -> None:
    with watching(bars.show_long_work):
        assert list(watched(range(number), "counting [/red]")) == list(range(number))


def test_long_work_has_a_bar_that_goes_when_it_is_done(terminal):
    count_to(3)
    assert "counting [/red]" in terminal.getvalue()  # a file's name is no markup
    assert "/3" in terminal.getvalue()
    assert not bars._shown


def test_quick_work_and_work_that_nobody_watches_print_nothing(terminal, monkeypatch):
    list(watched(range(3), "counting"))
    monkeypatch.setattr(bars, "DELAY", 60.0)
    count_to(3)
    assert terminal.getvalue() == ""


def test_what_cannot_tell_on_its_way_is_shown_at_once(terminal, monkeypatch):
    monkeypatch.setattr(bars, "DELAY", 60.0)
    with watching(bars.show_long_work), long_work("one step", at_once=True):
        assert bars._shown
    assert "one step" in terminal.getvalue()


def test_nothing_is_printed_where_no_terminal_is_or_in_another_process(terminal, monkeypatch):
    monkeypatch.setattr(bars, "PROCESS", os.getpid() + 1)
    count_to(3)
    assert terminal.getvalue() == ""
    monkeypatch.undo()
    plain = io.StringIO()
    monkeypatch.setattr(bars, "progress_console", Console(file=plain))
    monkeypatch.setattr(bars, "DELAY", 0.0)
    count_to(3)
    assert plain.getvalue() == ""


def test_long_work_below_a_commands_own_bar_is_a_line_of_it(terminal):
    with bars.Bar() as own:
        own.add_task("commanding", total=2, figures="")
        with watching(bars.show_long_work), long_work("below", 5) as tell:
            tell(2)
            assert [task.description for task in own.tasks] == ["commanding", "below"]
            assert own.tasks[1].completed == 2
        assert [task.description for task in own.tasks] == ["commanding"]


def test_a_commands_own_bar_takes_the_place_of_one_of_long_work(terminal):
    with watching(bars.show_long_work), long_work("below", 5) as tell:
        tell(1)
        with bars.Bar() as own:
            tell(2)
            assert bars._shown == [own]
    assert not bars._shown


def test_an_error_on_the_way_takes_the_bar_away(terminal):
    items = iter(())
    with pytest.raises(StopIteration), watching(bars.show_long_work), long_work("failing", at_once=True):
        next(items)
    assert "failing" in terminal.getvalue()
    assert not bars._shown


def test_commands_show_long_work(terminal, tmp_path):
    FORMATS["folder"][0](tmp_path / "pictures")
    assert run("data", "inspect", tmp_path / "pictures", "--split", "all").code == 0
    assert "opening pictures" in terminal.getvalue()


QUICK = {"HDF5", "HDF5, converted", "VOC", "VOC, classes", "tokens"}  # one header, or lists of names


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in QUICK])
def test_opening_every_layout_tells_what_it_does(terminal, tmp_path, name):
    write, open_it = FORMATS[name]
    write(tmp_path)
    with watching(bars.show_long_work):
        dataset = open_it(tmp_path)
        opened = terminal.getvalue()
        dataset.__getitems__(range(2))
    assert "opening" in opened or "making" in opened
    assert f"reading {dataset.info.name}" in terminal.getvalue()


@pytest.mark.parametrize("name", ["sprites", "tetrominoes", "mixture-2d"])
def test_generators_tell_how_much_they_have_made(terminal, name):
    with watching(bars.show_long_work):
        open_dataset(name, num_scenes=300)
    assert f"making {name}" in terminal.getvalue()
    assert "/2" in terminal.getvalue()
