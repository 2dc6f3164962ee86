"""Clicks as Label Studio sends them, on made photos in a folder that the service reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.backend.annotations import CONFIG

SIZE = (96, 128)  #: (H, W)


def make_photos(folder: Path, count: int) -> list[str]:
    """Names of so many PNGs, each unlike the others."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (SIZE[0] // 8, SIZE[1] // 8, 3), dtype=np.uint8)
        names.append(f"{number:04}.png")
        Image.fromarray(np.kron(pixels, np.ones((8, 8, 1), np.uint8))).save(folder / names[-1])
    return names


def click(task: int, photo: str, at: tuple[float, float] = (50, 50), project: int = 1) -> dict[str, Any]:
    """A predict request. at: percent of the photo."""
    row = {"id": f"k{task}", "type": "keypoint", "from_name": "click_cycle", "to_name": "image", "is_positive": True}
    row |= {"original_width": SIZE[1], "original_height": SIZE[0], "image_rotation": 0}
    row["value"] = {"x": at[0], "y": at[1], "width": 0.3}
    tasks = [{"id": task, "project": project, "data": {"image": f"/data/local-files/?d={photo}"}}]
    params = {"context": {"result": [row]}}
    return {"project": f"{project}.1769860800", "label_config": CONFIG, "params": params, "tasks": tasks}
