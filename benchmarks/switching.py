"""From `activate` in one process to the first answer of the new version in another, with clicks all the while.

    python -m benchmarks.switching [--switches 10]

The default model and a copy of it with other weights, `semsam serve` with its default settings, clicks on one sample
photo, one after the other; the text encoder is loaded first.
"""

from __future__ import annotations

import argparse
import os
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
from benchmarks.machine import ROCKET
from benchmarks.service import serving
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
        url, _ = stack.enter_context(serving(data, ROCKET.parent))
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
