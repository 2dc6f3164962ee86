"""Everything in a photo by a grid of clicks, and how many photos `semsam batch` annotates in a second: markdown tables.

    python -m benchmarks.batch everything [--threads 2] [--grid 32] [--repeats 3]
    python -m benchmarks.batch throughput [PHOTOS] [--photos 64] [--workers 1 2] [--threads N] [--ray] [--nodes 1 2]

Every row is measured in a fresh process with the default model (in `throughput`: the settings of the environment, and
so the live version of SEMSAM_DATA_DIR). `everything`: samples/rocket.jpg, 427x640. `throughput`: the photos of a folder
and below (default: samples/), from the first again when it has fewer. Peak memory is that of each process added up,
text encoder included. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from backend.batch.run import Summary, read_config, run
from backend.batch.sources import PHOTO_SUFFIXES, Item
from backend.cli.batch import open_executor
from backend.settings import load_settings
from backend.store.database import open_store
from backend.versions.registry import open_registry
from benchmarks.machine import LABELING, ROCKET, ROOT, SAMPLES, children, cpu_seconds, described, peak_mib
from semsam_model.checkpoints.checkpoint import load_model
from semsam_model.inference.automatic import AutomaticOptions, automatic_masks


def grid(threads: int, side: int) -> dict[str, float]:
    """A grid of `side` x `side` clicks on one photo, in this process."""
    torch.set_num_threads(threads)
    model, _ = load_model()
    loaded = peak_mib(os.getpid())
    rgb = np.array(Image.open(ROCKET).convert("RGB"))
    began, used = time.perf_counter(), cpu_seconds(os.getpid())
    embedding = model.encode(rgb)
    found = automatic_masks(model, embedding, AutomaticOptions(grid=side))
    return {
        "seconds": time.perf_counter() - began,
        "cpu": cpu_seconds(os.getpid()) - used,
        "masks": len(found),
        "loaded": loaded,
        "peak": peak_mib(os.getpid()),
    }


def peak_of_all() -> float:
    """MiB of this process and of those that it has started, added up."""
    total = 0.0
    for pid in [os.getpid(), *children(os.getpid())]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            total += peak_mib(pid)
    return total


@contextlib.contextmanager
def ray_nodes(count: int) -> Iterator[str]:
    """The address of a Ray of so many nodes, each with one CPU and an object store of its own."""
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0", PYTHONPATH=str(ROOT))
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 200 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        for _ in range(count - 1):
            cluster.add_node(**node)
        yield cluster.address
    finally:
        cluster.shutdown()


def models_by_node() -> list[int]:
    """How many processes with a model each Ray node has that this process has started."""
    found = Counter[int]()
    for pid in children(os.getpid()):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::MapWorker(MapBatches(_Worker))"):
                found[int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])] += 1
    return sorted(found.values())


def used_by_all(seen: dict[int, float]) -> float:
    """Processor time of all of them. seen: what each had used when it was last looked at, those that have ended too."""
    for pid in [os.getpid(), *children(os.getpid())]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            seen[pid] = cpu_seconds(pid)
    return sum(seen.values())


def throughput(
    folder: Path, count: int, workers: int, threads: int | None, ray: bool, nodes: int | None
) -> dict[str, float]:
    """`count` photos, by this process and those it starts. nodes: of a Ray that is started for it."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES)
    if not paths:
        raise SystemExit(f"{folder}: no photos")
    config = read_config(LABELING.read_text(encoding="utf-8"))
    times, used, sizes, peaks = list[float](), list[float](), list[int](), list[float]()
    seen, models = dict[int, float](), list[int]()

    def write(prediction: dict[str, Any]) -> None:
        times.append(time.perf_counter())
        used.append(used_by_all(seen))
        peaks.append(peak_of_all())
        if len(times) == count // 2:
            models.extend(models_by_node())
        sizes.append(len(json.dumps(prediction, separators=(",", ":"))))

    with contextlib.ExitStack() as stack:
        settings = load_settings()
        if not settings.data_dir.exists():
            data = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            settings = dataclasses.replace(settings, data_dir=data)
        settings = dataclasses.replace(settings, torch_threads=threads or settings.torch_threads)
        with contextlib.closing(open_store(settings)) as store:
            weights = open_registry(settings, store).live().version.weights
        address = "local" if ray else None if nodes is None else stack.enter_context(ray_nodes(nodes))
        began = time.perf_counter()
        annotate = stack.enter_context(open_executor(settings, weights, config, workers, address))

        def items() -> Iterator[Item]:
            for path in itertools.islice(itertools.cycle(paths), count):
                yield Item(str(path), path.read_bytes, write)

        summary: Summary = run(items(), annotate)
    warm = 4 * workers  # these may have begun while models were loading
    if summary.written <= warm + 1:
        raise SystemExit(f"{summary.written} photos were annotated; ask for more of them")
    return {
        "rate": (len(times) - warm) / (times[-1] - times[warm - 1]),
        "cpu": (used[-1] - used[warm - 1]) / (len(times) - warm),
        "first": times[0] - began,
        "bytes": statistics.fmean(sizes),
        "regions": summary.regions / summary.written,
        "peak": max(peaks),
        "dtype": settings.dtype,  # type: ignore[dict-item]
        "written": summary.written,
        "models": models,  # type: ignore[dict-item]
    }


def measured(*arguments: object) -> dict[str, Any]:
    """What a fresh process measures."""
    command = [sys.executable, "-m", "benchmarks.batch", *map(str, arguments), "--here"]
    return json.loads(subprocess.check_output(command, cwd=ROOT, text=True).splitlines()[-1])


def print_grid(threads: int, side: int, repeats: int) -> None:
    """The table of `everything`."""
    rows = [measured("everything", "--threads", threads, "--grid", side) for _ in range(repeats)]
    rows.sort(key=lambda row: row["seconds"])
    best, worst = rows[0], rows[-1]
    print(f"| {side}x{side} clicks, 427x640, {threads} threads | measured | aim |\n|---|---|---|")
    seconds = f"{best['seconds']:.1f} to {worst['seconds']:.1f} s ({len(rows)} processes)"
    print(f"| seconds, the encoder's among them | {seconds} | 15 s |")
    print(f"| processor seconds | {best['cpu']:.1f} to {max(row['cpu'] for row in rows):.1f} s | |")
    print(f"| peak memory (model loaded: {best['loaded']:.0f} MiB) | {worst['peak']:.0f} MiB | 1,536 MiB |")
    print(f"| masks | {best['masks']} | |")


def print_throughput(given: argparse.Namespace) -> None:
    """The table of `throughput`."""
    columns = "where, workers, torch threads of each, images/s, processor seconds an image, until the first, batch"
    print(f"| {columns.replace(', ', ' | ')} | precision | peak memory |\n|{'---|' * 9}")
    rows = [(on, workers, None) for on in (["here", "Ray"] if given.ray else ["here"]) for workers in given.workers]
    for on, workers, nodes in [*rows, *(("Ray", count, count) for count in given.nodes)]:
        options = ["--threads", given.threads] * bool(given.threads)
        options += ["--nodes", nodes] if nodes else ["--ray"] * (on == "Ray")
        row = measured("throughput", given.photos_in, "--photos", given.photos, "--workers", workers, *options)
        figures = f"{row['rate']:.2f} | {row['cpu']:.2f} s | {row['first']:.1f} s"
        shape = f"1 | {row['dtype']} | {row['peak']:,.0f} MiB"
        if nodes:
            on = f"Ray, {nodes} nodes, models on them: {'+'.join(map(str, row['models']))}"
        print(f"| {on} | {workers} | {given.threads or 'its choice'} | {figures} | {shape} |")
    print(f"\n{row['written']} photos, {row['regions']:.1f} regions and {row['bytes']:,.0f} bytes a prediction.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["everything", "throughput"])
    parser.add_argument("photos_in", metavar="PHOTOS", nargs="?", type=Path, default=SAMPLES)
    parser.add_argument("--photos", type=int, default=64)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--threads", type=int, help="of torch in each process; its own choice, or 2 for everything")
    parser.add_argument("--ray", action="store_true", help="each number of workers on a local Ray, too")
    parser.add_argument("--nodes", type=int, nargs="+", default=[], help="of a Ray, each with a CPU and a worker")
    parser.add_argument("--grid", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here and given.what == "everything":
        print(json.dumps(grid(given.threads or 2, given.grid)))
    elif given.here:
        nodes = given.nodes[0] if given.nodes else None
        found = throughput(given.photos_in, given.photos, given.workers[0], given.threads, given.ray, nodes)
        print(json.dumps(found))
    elif given.what == "everything":
        print_grid(given.threads or 2, given.grid, given.repeats)
    else:
        print_throughput(given)
    if not given.here:
        print(f"\n{described()}")


if __name__ == "__main__":
    main()
