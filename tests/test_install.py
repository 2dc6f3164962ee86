"""scripts/install.sh where it must fail: one clear line, exit status 1, nothing half-made."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.paths import ROOT

UNREACHABLE = "http://127.0.0.1:9/simple"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """As much of the repository as the script reads."""
    for name in ("scripts/install.sh", "requirements.txt", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def install(checkout: Path, *wanted: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return subprocess.run(
        [checkout / "scripts" / "install.sh", *wanted],
        env={**kept, "PIP_CONFIG_FILE": os.devnull, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_without_a_package_index_it_says_so_and_removes_the_unfinished_environment(checkout: Path) -> None:
    killed = checkout / ".venv-ls"  # what a run that was killed leaves must not pass for an environment either
    (killed / "bin").mkdir(parents=True)
    (killed / "bin" / "python").symlink_to(sys.executable)
    (killed / ".unfinished").touch()
    done = install(checkout, "label-studio", PIP_INDEX_URL=UNREACHABLE, PIP_RETRIES="0")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("Cannot reach the Python package index for Label Studio")
    assert not killed.exists()


@pytest.mark.slow
def test_of_two_that_are_installed_side_by_side_each_tells_why_it_fails_and_none_is_left(checkout: Path) -> None:
    done = install(checkout, "semsam", "label-studio", PIP_PROXY="http://127.0.0.1:9", PIP_RETRIES="0")
    assert done.returncode == 1
    told = [line.split(":")[0] for line in sorted(done.stderr.splitlines())]
    assert told[0].startswith("Cannot reach the Python package index for Label Studio")
    assert told[1:] == ["Cannot reach the Python package index for semsam"]
    assert not (checkout / ".venv").exists() and not (checkout / ".venv-ls").exists()


@pytest.mark.slow
def test_stopped_halfway_both_end_and_leave_nothing(checkout: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, contextlib.ExitStack() as connections:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        process = subprocess.Popen(
            [checkout / "scripts" / "install.sh", "semsam", "label-studio"],
            env={**os.environ, "PIP_CONFIG_FILE": os.devnull, "PIP_PROXY": address, "PYTHON": sys.executable},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        silent.settimeout(100)
        for _ in range(2):  # until both wait for an answer
            connections.enter_context(silent.accept()[0])
        os.killpg(process.pid, signal.SIGTERM)  # SIGINT is ignored by what a script starts in the background
        _, told = process.communicate(timeout=60)
    assert (process.returncode, told.strip()) == (130, "Stopped; nothing half-made is left behind.")
    assert not (checkout / ".venv").exists() and not (checkout / ".venv-ls").exists()


def test_an_environment_made_by_hand_is_kept_when_its_update_fails(checkout: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", checkout / ".venv"], check=True)
    assert install(checkout, "semsam").returncode == 1
    assert (checkout / ".venv" / "bin" / "python").exists()
    assert not (checkout / ".venv" / ".installed").exists()


def test_without_a_python_that_is_new_enough_it_says_which_are(checkout: Path, tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("bash", "cat", "cksum", "dirname", "env", "mkdir", "rm"):
        (programs / name).symlink_to(shutil.which(name) or pytest.fail(name))
    done = install(checkout, "semsam", PATH=str(programs), PYTHON="")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("Python 3.11, 3.12 or 3.13 is needed")
    assert not (checkout / ".venv").exists()


def test_the_read_me_the_package_and_the_installer_name_the_same_pythons() -> None:
    oldest, newest = re.findall(r"\(3, (\d+)\)", (ROOT / "scripts" / "install.sh").read_text())
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert wanted == f">=3.{oldest},<3.{int(newest) + 1}"
    *others, last = [f"3.{minor}" for minor in range(int(oldest), int(newest) + 1)]
    assert f"Python {', '.join(others)} or {last}" in (ROOT / "README.md").read_text()


def test_a_full_disk_is_found_before_anything_is_made(checkout: Path, tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    df = programs / "df"
    df.write_text("#!/bin/sh\necho Filesystem Blocks Used Available\necho /dev/x 1000000 900000 100000\n")
    df.chmod(0o755)
    done = install(checkout, "semsam", PATH=f"{programs}:{os.environ['PATH']}")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "Not enough disk space" in done.stderr
    assert "97 MB are free" in done.stderr
    assert not (checkout / ".venv").exists()


def test_an_installation_that_is_up_to_date_runs_nothing(checkout: Path) -> None:
    read = (checkout / "requirements.txt").read_bytes() + (checkout / "pyproject.toml").read_bytes()
    checksum = subprocess.run(["cksum"], input=read, capture_output=True, check=True).stdout.decode().strip()
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").symlink_to(shutil.which("false") or pytest.fail("false"))
    (checkout / ".venv" / ".installed").write_text(f"{checkout} {checksum}")
    done = install(checkout, "semsam")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_unknown_word_is_refused(checkout: Path) -> None:
    done = install(checkout, "everything")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "'everything'" in done.stderr
