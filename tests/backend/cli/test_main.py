"""The command line as a user meets it: every command explains itself, without the weight of torch."""

from __future__ import annotations

import importlib.metadata
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from rich.table import Table

from backend.cli.main import app
from backend.cli.shared import columns_in
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


def test_the_version_is_that_of_the_package() -> None:
    result = semsam("--version")
    assert (result.code, result.stdout) == (0, f"semsam {importlib.metadata.version('semsam')}\n")


def test_no_jobs_yet_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SEMSAM_DATA_DIR", str(tmp_path))
    assert "no fine-tuning jobs yet" in semsam("jobs").stdout


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_wide_table_is_parted_so_that_no_word_breaks(width: int) -> None:
    table = Table("source", *(f"measure_{number}" for number in range(14)), title="figures")
    table.add_row("cars", *(f"{number}.5" for number in range(14)))
    file = io.StringIO()
    Console(width=width, file=file).print(*columns_in(table, width))
    shown = file.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    for number in range(14):
        assert f"measure_{number}" in shown and f"{number}.5" in shown
