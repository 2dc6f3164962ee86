"""The service in a process of its own, for benchmarks."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.machine import ROOT


@contextlib.contextmanager
def serving(data: Path, photos: Path, **settings: str) -> Iterator[tuple[str, int]]:
    """`semsam serve`: (its address, its process), once model and text encoder are loaded. Its log: `log` in `data`.

    data: its folder. photos: the folder that photos with a local path lie in. settings: those that are not the default.
    """
    variables = {"SEMSAM_DATA_DIR": data, "SEMSAM_LOCAL_FILES_ROOT": photos, "SEMSAM_PORT": 0}
    variables |= {f"SEMSAM_{name.upper()}": value for name, value in settings.items()}
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    command = [sys.executable, "-c", "from backend.cli.main import main; main()", "serve"]
    path = data / "log"
    with path.open("w") as log, subprocess.Popen(command, env=environment, cwd=ROOT, stderr=log) as running:
        try:
            while "text encoder ready" not in (said := path.read_text()) or " ready in " not in said:
                time.sleep(0.2)
            yield next(line for line in said.splitlines() if "listening on" in line).split()[-1], running.pid
        finally:
            running.terminate()
