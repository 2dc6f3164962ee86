"""Memory of the service while annotators click: resident memory after the start and as the clicks add up.

    python -m benchmarks.click_memory [--clicks 2000] [--clients 4] [--photos 40]

`semsam serve` with its default settings and the default model; photos are crops of the samples, clicked in turn at
random places by clients that do not wait for each other.
"""

from __future__ import annotations

import argparse
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.label_studio import answer, click_request
from benchmarks.machine import SAMPLES, children, resident_mib
from benchmarks.service import serving

REPORTS = 10


def memory(pid: int) -> float:
    """Of a process and those that it has started, MiB."""
    return sum(map(resident_mib, (pid, *children(pid))))


def make_photos(folder: Path, count: int, rng: np.random.Generator) -> list[Path]:
    """Crops of the sample photos, each another one."""
    samples = [Image.open(path).convert("RGB") for path in sorted(SAMPLES.glob("*.jpg"))]
    made = []
    for number in range(count):
        sample = samples[number % len(samples)]
        left, top = rng.uniform(0, 0.3, 2) * sample.size
        made.append(folder / f"{number:03}.jpg")
        sample.crop((int(left), int(top), *sample.size)).save(made[-1], quality=95)
    return made


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clicks", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--photos", type=int, default=40)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    with ExitStack() as stack:
        data = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        photos = make_photos(data, given.photos, rng)
        sizes = [Image.open(path).size for path in photos]
        url, pid = stack.enter_context(serving(data, data))
        print(f"after the start: {memory(pid):.0f} MiB")

        def click(number: int) -> None:
            photo = int(rng.integers(len(photos)))
            task = {"id": photo, "project": 1, "data": {"image": f"/data/local-files/?d={photos[photo].name}"}}
            at = (float(rng.uniform(5, 95)), float(rng.uniform(5, 95)))
            answer(url, click_request(task, sizes[photo], at) | {"project": "1.2"})

        with ThreadPoolExecutor(given.clients) as clients:
            for turn in range(REPORTS):
                list(clients.map(click, range(given.clicks // REPORTS)))
                clicks = (turn + 1) * (given.clicks // REPORTS)
                print(f"after {clicks} clicks: {memory(pid):.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
