"""The command line, called in this process as its entry point is."""

from __future__ import annotations

import contextlib
import io
from typing import NamedTuple

from backend.cli.main import main


class Ended(NamedTuple):
    code: int
    stdout: str
    stderr: str


def semsam(*arguments: object) -> Ended:
    """How `semsam ARGUMENTS` ends, and what it prints."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Ended(code, out.getvalue(), err.getvalue())
