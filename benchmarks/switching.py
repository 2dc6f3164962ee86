"""From `activate` in one process to the first answer of the new version in another, with clicks all the while.

    python -m benchmarks.switching [--switches 10]

The default model and a copy of it with other weights, `semsam serve` with its default settings, clicks on one sample
photo, one after the other; the text encoder is loaded first.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from PIL import Image

from backend.settings import Settings
from backend.store.database import open_store
from backend.versions.registry import open_registry
from benchmarks.label_studio import answer, click_request
from benchmarks.machine import ROCKET, ROOT
from semsam_model.checkpoints.checkpoint import load_model, save


def ask(url: str) -> tuple[str, float]:
    """(version that answered a click, milliseconds)."""
    task = {"id": 1, "project": 1, "data": {"image": f"/data/local-files/?d={ROCKET.name}"}}
    prediction, milliseconds = answer(url, click_request(task, Image.open(ROCKET).size) | {"project": "1.2"})
    return prediction["model_version"], milliseconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--switches", type=int, default=10)
    count = parser.parse_args().switches
    with ExitStack() as stack:
        data = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store = open_store(Settings(data_dir=data))
        stack.callback(store.close)
        registry = open_registry(Settings(data_dir=data), store)
        model, _ = load_model()
        with torch.no_grad():
            next(model.parameters()).mul_(1.001)
        save(data / "other.safetensors", model, model.config, half=True)
        other = registry.register(data / "other.safetensors", parent=registry.base.version)
        variables = {"SEMSAM_DATA_DIR": data, "SEMSAM_LOCAL_FILES_ROOT": ROCKET.parent, "SEMSAM_PORT": 0}
        environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
        command = [sys.executable, "-c", "from backend.cli.main import main; main()", "serve"]
        log = stack.enter_context((data / "log").open("w+"))
        running = stack.enter_context(subprocess.Popen(command, env=environment, cwd=ROOT, stderr=log))
        stack.callback(running.terminate)
        while "text encoder ready" not in (said := (data / "log").read_text()) or " ready in " not in said:
            time.sleep(0.2)
        url = next(line for line in said.splitlines() if "listening on" in line).split()[-1]
        warm = [ask(url)[1] for _ in range(20)]
        print(f"warm click: median {sorted(warm)[10]:.0f} ms; load average {os.getloadavg()[0]:.1f}")
        seconds, old = [], []
        for turn in range(count):
            wanted = (registry.rollback() if turn % 2 else registry.activate(other.version)).version.version
            began = time.perf_counter()
            answers = [ask(url)]
            while answers[-1][0] != wanted:
                time.sleep(0.05)
                answers.append(ask(url))
            seconds.append(time.perf_counter() - began)
            old += [milliseconds for _, milliseconds in answers[:-1]]
        print(f"until the first answer of the new version: {min(seconds):.1f} to {max(seconds):.1f} s")
        print(f"clicks answered by the old version meanwhile: {len(old)}, slowest {max(old):.0f} ms")


if __name__ == "__main__":
    main()
