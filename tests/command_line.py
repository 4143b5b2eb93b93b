"""The command line as its user meets it: a command run in this process, and what it must say and leave."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from psa.cli import main


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        return json.loads(self.out.splitlines()[-1])


def run(*arguments: object) -> Result:
    """``psa`` with these arguments."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return Result(caught.value.code, out.getvalue(), err.getvalue())


def assert_says_one_line(result: Result, code: int, *words: object) -> None:
    """The error is the one last line of standard error, and holds the words; no traceback."""
    assert result.code == code, result.err
    lines = result.err.rstrip().splitlines()
    assert [line for line in lines if line.startswith("psa: ")] == lines[-1:] != []
    assert "Traceback" not in result.err
    for word in words:
        assert str(word) in lines[-1]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file at any depth, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
