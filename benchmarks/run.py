"""`make bench`: the figures of docs/results/speed.md, measured on this machine in one run.

    python -m benchmarks.run [--threads 2] [--weights-dir DIR] [--only swin|mobile|soak]

Swin-T runs with random weights of the published shape unless DIR holds swin_t.safetensors: the values change no timing.
The reference figures are those published code reached on two cores for the same 427x640 photo.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from backend.images import decode_photo
from backend.inference.label_embeddings import LabelEmbedder, LabelVectors
from backend.inference.loaded import Loaded
from backend.inference.predictor import PhotoSource, Predictor, predict_prompt
from backend.metrics import Metrics
from benchmarks.machine import ROCKET, described, peak_mib, resident_mib
from semsam_model.checkpoints.checkpoint import load_model
from semsam_model.checkpoints.header import Version
from semsam_model.config import read_model_config
from semsam_model.inference.predict import predict_candidates
from semsam_model.inference.zoom import crop_encoder
from semsam_model.masks.codecs import encode_brush_rle
from semsam_model.network.model import SemanticSAM, build_model
from semsam_model.text_encoder import TextEncoder
from semsam_model.types import Click, Prompt

SMALL, LARGE = (427, 640), (3000, 4000)  #: (H, W) of the photos


def median_ms(action: Callable[[], object], repeats: int) -> float:
    """Median milliseconds of `action` over `repeats` runs after one warm-up."""
    action()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


def click_to_rle(model: SemanticSAM, rgb: np.ndarray) -> tuple[float, float, int]:
    """(encode ms, warm click to brush RLE ms, embedding bytes) for one photo."""
    height, width = rgb.shape[:2]
    encode = median_ms(lambda: model.encode(rgb), 5)
    embedding = model.encode(rgb)
    prompt = Prompt((Click(width * 0.5, height * 0.5),))

    def warm() -> None:
        for c in predict_candidates(model, embedding, prompt):
            encode_brush_rle(c.crop, c.bbox, c.size)

    return encode, median_ms(warm, 30), embedding.nbytes


def cold_click(model: SemanticSAM, photo: bytes) -> float:
    """Milliseconds from the bytes of a photo to brush RLE, nothing cached."""

    def run() -> None:
        rgb = decode_photo(photo, max_bytes=len(photo), max_pixels=100_000_000).rgb
        prompt = Prompt((Click(rgb.shape[1] / 2, rgb.shape[0] / 2),))
        for c in predict_candidates(model, model.encode(rgb), prompt, encode_crop=crop_encoder(model, rgb)):
            encode_brush_rle(c.crop, c.bbox, c.size)

    return median_ms(run, 9)


def sample_photo(size: tuple[int, int]) -> np.ndarray:
    """samples/rocket.jpg (427x640) resized to (H, W)."""
    image = Image.open(ROCKET).convert("RGB")
    return np.array(image.resize((size[1], size[0]), Image.Resampling.BICUBIC))


def soak(model: SemanticSAM, version: Version, clicks: int, photos: int) -> tuple[float, float, float]:
    """`clicks` over `photos` photos by four threads through a cache of ten embeddings.

    Returns resident MiB once the cache is full, at the end, and milliseconds a click.
    """
    rng = np.random.default_rng(0)
    rolled = [np.roll(sample_photo((300, 400)), i * 7, 1) for i in range(photos)]
    one = model.encode(rolled[0]).nbytes
    embedder = LabelEmbedder(LabelVectors(TextEncoder()), model.config)  # loads nothing until it is asked
    predictor = Predictor(lambda: Loaded(model, version, embedder), cache_bytes=10 * one, metrics=Metrics())
    predictor.start()
    order = rng.integers(0, photos, clicks)

    def go(i: int) -> None:
        at = int(order[i])
        prompt = Prompt((Click(float(i % 399), float(i % 299)),))
        candidates = predict_prompt(predictor, PhotoSource(f"{at:064x}", lambda: rolled[at]), prompt).value
        for c in candidates:
            encode_brush_rle(c.crop, c.bbox, c.size)

    with ThreadPoolExecutor(4) as pool:
        warm = clicks // 4
        list(pool.map(go, range(warm)))
        gc.collect()
        full = resident_mib()
        began = time.perf_counter()
        list(pool.map(go, range(warm, clicks)))
        each = (time.perf_counter() - began) / (clicks - warm) * 1000
    gc.collect()
    return full, resident_mib(), each


def measure_mobile(table: Table) -> None:
    """Add the rows of the default model."""
    model, _ = load_model()
    encode, warm, nbytes = click_to_rle(model, sample_photo(SMALL))
    _, warm_large, _ = click_to_rle(model, sample_photo(LARGE))
    table.add_row("mobile encode", f"{encode:.0f} ms", "", "")
    table.add_row("mobile cold click, file to RLE", f"{cold_click(model, ROCKET.read_bytes()):.0f} ms", "700 ms", "")
    table.add_row("mobile warm click, decode to RLE", f"{warm:.1f} ms", "40 ms", "")
    table.add_row("mobile warm click, 4000x3000 photo", f"{warm_large:.0f} ms", "300 ms", "")
    table.add_row("mobile embedding", f"{nbytes / 1e6:.1f} MB", "", "")
    table.add_row("peak memory so far", f"{peak_mib(os.getpid()):.0f} MiB", "", "")


def measure_swin(table: Table, weights_dir: Path | None) -> None:
    """Add the rows of Swin-T, with random weights without `weights_dir`."""
    if weights_dir is None:
        torch.manual_seed(0)
        model = build_model(read_model_config("swin_t")).eval()
    else:
        model, _ = load_model("swin_t", folder=weights_dir)
    encode, warm, nbytes = click_to_rle(model, sample_photo(SMALL))
    _, warm_large, _ = click_to_rle(model, sample_photo(LARGE))
    table.add_row("Swin-T encode, float32", f"{encode / 1000:.2f} s", "3.5 s", "5.9-6.5 s")
    table.add_row("Swin-T warm click, decode to RLE", f"{warm:.0f} ms", "60 ms", "210 ms cached, 6,100 ms as is")
    table.add_row("Swin-T warm click, 4000x3000 photo", f"{warm_large:.0f} ms", "300 ms", "")
    table.add_row("Swin-T embedding", f"{nbytes / 1e6:.1f} MB", "", "52.4 MB")
    table.add_row("peak memory of this process", f"{peak_mib(os.getpid()):.0f} MiB", "", "1,600 MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--weights-dir", type=Path, default=None)
    parser.add_argument("--only", choices=("mobile", "swin", "soak"), default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console(width=130)
    table = Table("figure", "measured", "aim", "published code", title="medians, lower is better")

    if arguments.only in (None, "mobile"):
        measure_mobile(table)
    if arguments.only in (None, "soak"):
        full, end, each = soak(*load_model(), 1000, 50)
        memory = f"{full:.0f} -> {end:.0f} MiB, {each:.0f} ms a click"
        table.add_row("1,000 clicks, 50 photos, 4 threads", memory, "no growth", "")
    if arguments.only in (None, "swin"):
        measure_swin(table, arguments.weights_dir)
    console.print(table)
    console.print(f"{arguments.threads} threads, {described()}")


if __name__ == "__main__":
    main()
