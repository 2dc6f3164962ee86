"""Memory and time of `semsam export` out of a made store: SQLite, photos of 640x480 with ten masks each.

    python -m benchmarks.export_memory [--regions 100000] [--format coco|sa1b|labelstudio|masks] [--folder DIR]

Each export runs in a process of its own; prints its peak resident memory, that of the same process before it began, and
seconds. Run it with two sizes: the peak must not grow with the number of regions.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from sqlalchemy import insert

from backend.corrections.archive import PhotoArchive
from backend.store.database import Store
from backend.store.tables import projects, regions
from benchmarks.machine import ROOT

ORIGIN = "http://labelstudio:8080"
PHOTOS, SIZE, EACH = 100, (480, 640), 10
BATCH = 2000

_EXPORT = """
import json, os, sys, time
from pathlib import Path
from backend.corrections.queries import find_project, stream_regions
from backend.export.run import export
from backend.corrections.archive import PhotoArchive
from backend.store.database import Store
from benchmarks.machine import peak_mib

folder, form = Path(sys.argv[1]), sys.argv[2]
store = Store.open(f"sqlite:///{folder}/semsam.db")
project = find_project(store, 1)
before, began = peak_mib(os.getpid()), time.monotonic()
result = export(stream_regions(store, project.key), project, PhotoArchive(folder / "photos"), folder / form, form=form)
print(json.dumps([before, peak_mib(os.getpid()), time.monotonic() - began, sum(result.regions.values())]))
"""


def rows(count: int, digests: list[str]) -> Iterator[dict[str, Any]]:
    """Made regions: wobbly blobs, every second one a part of the one before."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    shapes = []
    for _ in range(200):
        cy, cx, radius = rng.uniform(60, 420), rng.uniform(60, 580), rng.uniform(15, 150)
        angle = np.arctan2(y - cy, x - cx)
        edge = radius * (1 + 0.15 * np.sin(7 * angle) + 0.05 * np.sin(23 * angle))
        blob = np.hypot(y - cy, x - cx) < edge
        shapes.append(coco_mask.encode(np.asfortranarray(blob.astype(np.uint8)))["counts"].decode())
    now = datetime.now(UTC)
    for number in range(count):
        task, place = divmod(number, EACH)
        yield {
            "origin": ORIGIN,
            "project": 1,
            "task": task + 1,
            "annotation": task + 1,
            "region": f"r{place}",
            "image_sha256": digests[task % len(digests)],
            "image_url": f"/data/upload/1/{task}.jpg",
            "width": SIZE[1],
            "height": SIZE[0],
            "labels": [f"label {number % 40}"],
            "granularity": "part" if place % 2 else "object",
            "parent": f"r{place - 1}" if place % 2 else None,
            "mask": shapes[number % len(shapes)],
            "outcome": "accepted",
            "rank": 1,
            "level": 1 + number % 6,
            "score": 0.8,
            "model_version": "made",
            "updated_at": now,
        }


def make(folder: Path, count: int) -> None:
    """A store with `count` regions."""
    photos = PhotoArchive(folder / "photos")
    digests = []
    for seed in range(PHOTOS):
        buffer = io.BytesIO()
        pixels = np.random.default_rng(seed).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 48)).resize((SIZE[1], SIZE[0])).save(buffer, "JPEG")
        digests.append(photos.keep(buffer.getvalue()))
    store = Store.open(f"sqlite:///{folder}/semsam.db")
    project = {"origin": ORIGIN, "project": 1, "title": "made", "label_config": "", "updated_at": datetime.now(UTC)}
    with store.write() as connection:
        connection.execute(insert(projects), [project])
    made = rows(count, digests)
    while batch := list(islice(made, BATCH)):
        with store.write() as connection:
            connection.execute(insert(regions), batch)
    store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regions", type=int, default=100_000)
    parser.add_argument("--format", default="coco", choices=["coco", "sa1b", "labelstudio", "masks"])
    parser.add_argument("--folder", type=Path, help="a fresh one is made and removed when not given")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        began = time.monotonic()
        make(folder, given.regions)
        print(f"store of {given.regions} regions made in {time.monotonic() - began:.0f} s")
        command = [sys.executable, "-c", _EXPORT, str(folder), given.format]
        before, peak, seconds, written = json.loads(subprocess.check_output(command, cwd=ROOT))
        print(f"{given.format}: {written} regions, peak {peak:.0f} MiB ({before:.0f} before), {seconds:.0f} s")


if __name__ == "__main__":
    main()
