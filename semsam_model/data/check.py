"""`semsam data check`: reads a mixture once, photo by photo and mask by mask, and reports what is in it.

Writes `report.json` and `contact_sheet.png`, a row of photos a source: objects green, regions blue, parts in warm
colours over their wholes. One photo is held at a time, so any size of data can be checked.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from semsam_model.data.folder import evenly_spaced
from semsam_model.data.mixture import Mixture
from semsam_model.data.samples import Dataset, Region, Sample
from semsam_model.errors import DataError
from semsam_model.files import named, write_bytes
from semsam_model.masks.drawing import draw_mask, draw_outline, resize_mask, scaled
from semsam_model.types import GRANULARITIES

#: A part that lies in its whole by less than this is counted as loose.
LOOSE = 0.9
TILE = 224  #: longer side of a photo on the contact sheet, pixels
_TITLE = 18
_TINTS = {
    "object": ((60, 200, 90),),
    "region": ((70, 120, 250),),
    "part": ((250, 150, 30), (240, 60, 60), (250, 220, 60)),
}


@dataclass
class SourceCheck:
    """What one source holds. Areas and containments are shares."""

    weight: float
    photos: int = 0  #: read whole
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  #: photos of a (width, height)
    masks: Counter[str] = field(default_factory=Counter)  #: by granularity
    empty: int = 0  #: masks without a pixel
    areas: Counter[int] = field(default_factory=Counter)  #: masks by area, share of the photo as a power of 2, rounded
    boxes: int = 0  #: masks that are filled rectangles, nobody having drawn an outline
    with_parent: int = 0  #: masks whose whole can be read
    containment: float = 0.0  #: sum of the shares of them that lie inside their whole
    smallest_containment: float = 1.0
    loose: int = 0  #: of them, those below LOOSE
    labels: dict[str, Counter[str]] = field(default_factory=lambda: {kind: Counter() for kind in GRANULARITIES})
    skipped: list[str] = field(default_factory=list)

    def count(self, regions: Sequence[Region], masks: Sequence[np.ndarray | None]) -> None:
        """Count the masks of a photo, bool (H, W); None for one that cannot be read."""
        for region, mask in zip(regions, masks, strict=True):
            if mask is None:
                continue
            area = int(np.count_nonzero(mask))
            self.masks[region.granularity] += 1
            self.boxes += region.box_only
            if region.name is not None:
                self.labels[region.granularity][region.name] += 1
            if not area:
                self.empty += 1
                continue
            self.areas[int(np.floor(np.log2(area / mask.size) + 0.5))] += 1
            whole = None if region.parent is None else masks[region.parent]
            if whole is not None:
                inside = np.count_nonzero(mask & whole) / area
                self.with_parent += 1
                self.containment += inside
                self.smallest_containment = min(self.smallest_containment, inside)
                self.loose += inside < LOOSE

    def to_dict(self) -> dict[str, Any]:
        """What report.json holds of a source."""
        widths, heights = ([size[axis] for size in self.sizes] or [0] for axis in (0, 1))
        return {
            "photos": self.photos,
            "weight": round(self.weight, 3),
            "width": [min(widths), max(widths)],
            "height": [min(heights), max(heights)],
            "masks": {kind: self.masks[kind] for kind in GRANULARITIES},
            "empty_masks": self.empty,
            "rectangles_only": self.boxes,
            "area_share": {f"about 2^{power}": self.areas[power] for power in sorted(self.areas, reverse=True)},
            "with_parent": self.with_parent,
            "mean_containment": round(self.containment / self.with_parent, 4) if self.with_parent else None,
            "smallest_containment": round(self.smallest_containment, 4) if self.with_parent else None,
            "loose": self.loose,
            "labels": {kind: dict(self.labels[kind].most_common()) for kind in GRANULARITIES},
            "skipped": self.skipped,
        }


def check_mixture(
    mixture: Mixture,
    out: Path,
    *,
    per_source: int = 8,
    console: Console | None = None,
    on_photo: Callable[[], None] = lambda: None,
) -> dict[str, SourceCheck]:
    """Read everything once; write OUT/report.json and OUT/contact_sheet.png; print a table and what was skipped.

    Returns what each source holds. per_source: photos of a source on the contact sheet, evenly spaced. on_photo: called
    after each photo. Photos and masks that cannot be read are counted and named; they raise nothing.
    """
    console = console or Console()
    checks, rows = dict[str, SourceCheck](), list[np.ndarray]()
    for name, dataset in mixture.datasets.items():
        checks[name], tiles = _check_source(dataset, mixture.shares[name], per_source, on_photo)
        rows.append(_row(name, tiles, per_source))
    out.mkdir(parents=True, exist_ok=True)
    report, sheet = out / "report.json", out / "contact_sheet.png"
    content = {name: found.to_dict() for name, found in checks.items()}
    write_bytes(report, json.dumps({"by_source": content}, indent=1, ensure_ascii=False).encode())
    with named(sheet):
        Image.fromarray(np.concatenate(rows)).save(sheet)
    _print(console, checks)
    console.print(f"written to {report} and {sheet}")
    return checks


def _check_source(
    dataset: Dataset, weight: float, tiles: int, on_photo: Callable[[], None]
) -> tuple[SourceCheck, list[np.ndarray]]:
    found, shown = SourceCheck(weight, skipped=list(dataset.skipped)), list[np.ndarray]()
    shown_indices = set(evenly_spaced(range(len(dataset.samples)), tiles))
    for index in range(len(dataset.samples)):
        sample = dataset.samples[index]
        try:
            image = sample.image()
        except DataError as exc:
            found.skipped.append(str(exc))
        else:
            masks = _masks(sample, found)
            found.photos += 1
            found.sizes[sample.width, sample.height] += 1
            found.count(sample.regions, masks)
            if index in shown_indices:
                shown.append(_tile(image, sample.regions, masks))
        on_photo()
    return found, shown


def _masks(sample: Sample, found: SourceCheck) -> list[np.ndarray | None]:
    """bool (H, W) of each region; None, and a line in `found.skipped`, for one that cannot be read."""
    masks: list[np.ndarray | None] = []
    for index in range(len(sample.regions)):
        try:
            masks.append(sample.mask(index))
        except DataError as exc:
            found.skipped.append(str(exc))
            masks.append(None)
    return masks


# -------------------------------------------------------------------------------------------------------------- showing


def _tile(image: np.ndarray, regions: Sequence[Region], masks: Sequence[np.ndarray | None]) -> np.ndarray:
    """uint8 (TILE, TILE, 3): the photo with its masks, large ones first."""
    shown = scaled(image, TILE / max(image.shape[:2]))
    known = [(region, mask) for region, mask in zip(regions, masks, strict=True) if mask is not None]
    for number, (region, mask) in enumerate(sorted(known, key=lambda pair: -np.count_nonzero(pair[1]))):
        inside, tints = resize_mask(mask, shown), _TINTS[region.granularity]
        draw_mask(shown, inside, tints[number % len(tints)], 0.38)
        draw_outline(shown, inside, tints[number % len(tints)], 1)
    tile = np.full((TILE, TILE, 3), 24, np.uint8)
    tile[: shown.shape[0], : shown.shape[1]] = shown
    return tile


def _row(name: str, tiles: Sequence[np.ndarray], count: int) -> np.ndarray:
    row = np.full((TILE + _TITLE, count * TILE, 3), 24, np.uint8)
    cv2.putText(row, name, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (235, 235, 235), 1, cv2.LINE_AA)
    for place, tile in enumerate(tiles):
        row[_TITLE:, place * TILE : (place + 1) * TILE] = tile
    return row


def _print(console: Console, checks: dict[str, SourceCheck]) -> None:
    table = Table("source", "photos", *GRANULARITIES, "labels", "in whole", "loose", "skipped", box=None)
    table.columns[0].no_wrap = True
    rows = {name: found.to_dict() for name, found in checks.items()}
    for name, found in checks.items():
        inside = rows[name]["mean_containment"]
        table.add_row(
            name,
            str(found.photos),
            *(str(found.masks[kind]) for kind in GRANULARITIES),
            str(sum(len(labels) for labels in found.labels.values())),
            "" if inside is None else f"{100 * inside:.1f} %",
            "" if inside is None else f"{found.loose} of {found.with_parent}",
            str(len(found.skipped)),
        )
    console.print(table)
    for name, row in rows.items():
        sides = (f"{low}..{high}" if low < high else str(low) for low, high in (row["width"], row["height"]))
        console.print(f"{name}: photos of {' x '.join(sides)} pixels", markup=False, highlight=False)
    for name, found in checks.items():
        for kind, labels in found.labels.items():
            if labels:
                listed = ", ".join(f"{label} {count}" for label, count in labels.most_common())
                console.print(f"{name}, {len(labels)} {kind} labels: {listed}", markup=False, highlight=False)
        for line in found.skipped[:20]:
            console.print(f"{name}, skipped: {line}", markup=False, highlight=False)
        if len(found.skipped) > 20:
            console.print(f"{name}: {len(found.skipped) - 20} more skipped, see report.json", highlight=False)
