"""A Label Studio that serves photos, and requests about them as it sends them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from semsam_model.masks.codecs import decode_brush_rle
from tests.backend.studio_http import TOKEN, answering
from tests.paths import BRUSH_WITH_LEVELS

CONFIG = BRUSH_WITH_LEVELS.read_text()
#: The same with labels that have to be told apart.
NAMED = CONFIG.replace(
    '<Label value="object" kind="object" background="#d62728"/>',
    '<Label value="house" kind="object"/><Label value="sky" kind="object"/>'
    '<Label value="window" kind="part" of="house"/>',
).replace('<Label value="part" kind="part" background="#1f77b4"/>', "")


def png(rgb: np.ndarray, orientation: int = 1) -> bytes:
    """A file of these pixels; orientation: EXIF, 1..8."""
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(rgb).save(out, "PNG", exif=exif)
    return out.getvalue()


def photo(seed: int = 0) -> np.ndarray:
    """uint8 (60, 84, 3): squares of random colours."""
    return np.kron(np.random.default_rng(seed).integers(0, 255, (5, 7, 3), np.uint8), np.ones((12, 12, 1), np.uint8))


class Files:
    """What the server holds, by path, and how often each was fetched."""

    def __init__(self) -> None:
        self.content = {
            "/data/upload/1/a.png": png(photo(0)),
            "/data/upload/1/b.png": png(photo(1)),
            "/data/upload/1/turned.png": png(np.rot90(photo(0)).copy(), 6),
            "/data/upload/1/broken.png": png(photo(0))[:40],
        }
        self.fetched: list[str] = []


@contextlib.contextmanager
def serving(files: Files, token: str = TOKEN) -> Iterator[str]:
    """Address of a Label Studio that holds these files."""

    def get(path: str) -> tuple[int, bytes]:
        if not path.startswith("/api/"):  # which is asked in the background, whenever it pleases
            files.fetched.append(path)
        body = files.content.get(path)
        return (404, b"") if body is None else (200, body)

    with answering(get, token=token) as url:
        yield url


def keypoint(x: float, y: float, *, positive: bool = True, control: str = "click_all", **more: Any) -> dict[str, Any]:
    """A click, percent of the photo."""
    return {
        "id": f"k{x}{y}",
        "type": "keypoint",
        "from_name": control,
        "to_name": "image",
        "is_positive": positive,
        "original_width": 84,
        "original_height": 60,
        "image_rotation": 0,
        "value": {"x": x, "y": y, "width": 0.25, "labels": []},
    } | more


def body(rows: list[dict[str, Any]] | None, *names: str, config: str = CONFIG) -> dict[str, Any]:
    """A predict request about these photos, one a task; rows: prompts, None = nobody has clicked."""
    tasks = [{"id": i + 1, "project": 1, "data": {"image": f"/data/upload/1/{n}"}} for i, n in enumerate(names)]
    context = None if rows is None else {"result": rows}
    return {"project": "1.17", "label_config": config, "params": {"context": context}, "tasks": tasks}


def masks(prediction: dict[str, Any]) -> list[np.ndarray]:
    """bool (H, W) each, in the order sent."""
    return [
        decode_brush_rle(row["value"]["rle"], (row["original_height"], row["original_width"]))
        for row in prediction["result"]
        if row["type"] == "brushlabels"
    ]
