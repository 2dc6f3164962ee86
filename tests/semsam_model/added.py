"""Houses with a model's masks in an overlay beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from semsam_model.config import parse_config
from semsam_model.data.added_masks import AddedMask, photo_line, settings_line
from semsam_model.data.mixture import Mixture, MixtureConfig, read_mixture
from tests.semsam_model.houses import write_source

#: A roof inside the house, and a path beside it.
ROOF, PATH = (4, 9, 8, 56), (45, 48, 0, 64)


def write_houses(folder: Path, photos: int) -> None:
    """Houses marked partial, and the overlay `houses.jsonl` with two masks for each."""
    write_source(folder, "houses", photos, partial=True)
    lines = [settings_line({"weights": "tiny"})]
    for number in range(photos):
        masks = []
        for (top, bottom, left, right), granularity, parent in ((ROOF, "part", 0), (PATH, "region", None)):
            mask = np.zeros((48, 64), bool)
            mask[top:bottom, left:right] = True
            masks.append(AddedMask(mask, granularity, parent, 0.8, 0.9))
        lines.append(photo_line(f"houses/{number}.png", 3, masks))
    (folder / "houses.jsonl").write_bytes(b"".join(lines))


def read_houses(folder: Path, *, added: bool = True, **settings: Any) -> Mixture:
    """The houses, with all feeds, as a source with these settings."""
    feeds = ["masks", "boxes", "iou", "object_names", "part_names"]
    source = {"name": "houses", "kind": "coco", "path": "houses.json", "feeds": feeds, "added": "houses.jsonl"}
    return read_mixture(parse_config(MixtureConfig, {"sources": [source | settings]}, "mixture"), folder, added=added)
