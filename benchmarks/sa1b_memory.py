"""Memory while SA-1B is read: a made folder (or tar) of many entries, walked by one process or by several workers.

    python -m benchmarks.sa1b_memory [--entries 100000] [--read 20000] [--workers 2] [--tar] [--folder DIR]

Prints the resident memory after the index, and every fifth of the way while photos and masks are read in random order.
Entries are small photos with two masks each: it is the number of entries that is measured, not their size.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import multiprocessing
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.machine import resident_mib
from semsam_model.data.readers.sa1b import read_sa1b
from semsam_model.data.samples import CocoMask, Sample

SIDE = 32


def entries(count: int) -> Iterator[tuple[str, bytes]]:
    """File names and contents of `count` photos with their JSON."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    mask = np.zeros((SIDE, SIDE), bool)
    mask[4:20, 6:25] = True
    masks = [CocoMask.of(mask).segmentation, CocoMask.of(mask.T).segmentation]
    for number in range(count):
        image = {"image_id": number, "width": SIDE, "height": SIDE, "file_name": f"sa_{number}.jpg"}
        annotations = [{"id": k, "segmentation": each, "area": 304} for k, each in enumerate(masks)]
        yield f"sa_{number}.jpg", buffer.getvalue()
        yield f"sa_{number}.json", json.dumps({"image": image, "annotations": annotations}).encode()


def make(folder: Path, count: int, tar: bool) -> Path:
    """Write the set below `folder` unless it is there; returns the folder or tar to read."""
    target = folder / (f"sa_{count}.tar" if tar else f"sa_{count}")
    if target.exists():
        return target
    if not tar:
        target.mkdir(parents=True)
        for name, content in entries(count):
            (target / name).write_bytes(content)
        return target
    with tarfile.open(target, "w") as archive:
        for name, content in entries(count):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return target


def walk(samples: Sequence[Sample], read: int, seed: int, say: bool) -> float:
    """Read `read` photos with all masks in random order; returns the growth in MiB after the first tenth."""
    order = np.random.default_rng(seed).integers(len(samples), size=read)
    settled = 0.0
    for done, index in enumerate(order.tolist(), start=1):
        sample = samples[index]
        sample.image()
        for region in range(len(sample.regions)):
            sample.mask(region)
        if done == max(1, read // 10):
            gc.collect()
            settled = resident_mib()
        if say and done % max(1, read // 5) == 0:
            print(f"  {done:8,} read  {resident_mib():7.1f} MiB")
    gc.collect()
    return resident_mib() - settled


def _work(samples: Sequence[Sample], read: int, seed: int, growth: multiprocessing.SimpleQueue[float]) -> None:
    growth.put(walk(samples, read, seed, say=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--read", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tar", action="store_true")
    parser.add_argument("--folder", type=Path, help="kept and used again; a temporary one when not given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        target = make(options.folder or Path(temporary), options.entries, options.tar)
        gc.collect()
        before, began = resident_mib(), time.perf_counter()
        samples = read_sa1b(target).samples
        gc.collect()
        print(f"{len(samples):,} entries indexed in {time.perf_counter() - began:.1f} s")
        print(f"resident {before:.1f} MiB before, {resident_mib():.1f} MiB with the index")
        print(f"one process: {walk(samples, options.read, 0, say=True):+.1f} MiB after the first tenth")
        growth: multiprocessing.SimpleQueue[float] = multiprocessing.SimpleQueue()
        share = options.read // max(1, options.workers)
        workers = [
            multiprocessing.Process(target=_work, args=(samples, share, seed, growth))
            for seed in range(1, options.workers + 1)
        ]
        for worker in workers:
            worker.start()
        for _ in workers:
            print(f"a worker: {growth.get():+.1f} MiB after the first tenth")
        for worker in workers:
            worker.join()


if __name__ == "__main__":
    main()
