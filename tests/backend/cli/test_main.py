"""The command line as a user meets it: every command explains itself, without the weight of torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from backend.cli.main import app
from tests.backend.cli.semsam import semsam
from tests.paths import ROOT


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group: (its words, the command)."""
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name))


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_and_option_explains_itself(words: tuple[str, ...]) -> None:
    result = semsam(*words, "--help")
    assert result.code == 0 and f"Usage: semsam {' '.join(words)}".rstrip() in " ".join(result.stdout.split())
    command = COMMANDS[words]
    assert command.help
    assert not [each.name for each in command.params if not getattr(each, "help", None)]


def test_help_comes_without_torch() -> None:
    code = "import sys; from backend.cli.main import app; app(['--help'], standalone_mode=False)"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0
