"""docs/develop/architecture.md as tests: imports between rooms point down, and light modules load without torch."""

import re
import subprocess
import sys

import pytest

from tests.paths import ROOT


def test_every_contract_of_import_linter_is_kept() -> None:
    """Those of pyproject.toml: rooms and who may reach torch, Flask, SQL and the network, by whatever way."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    result = subprocess.run([*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    "module",
    [
        "semsam_model.config",
        "semsam_model.types",
        "semsam_model.checkpoints.header",
        "backend.cli.main",
        "backend.service.service",
        "backend.web.server",
    ],
)
def test_what_starts_before_the_model_loads_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("package", ["semsam_model", "backend"])
def test_the_document_of_the_architecture_names_every_room_and_ground_file(package: str) -> None:
    text = (ROOT / "docs" / "develop" / "architecture.md").read_text(encoding="utf-8")
    section = text.split(f"\n## {package}\n")[1].split("\n## ")[0]
    described = set(re.findall(r"`(\w+)`", section))
    children = [path for path in (ROOT / package).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    assert {path.stem for path in children} - {"__init__"} <= described
