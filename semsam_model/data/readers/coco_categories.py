"""Categories of COCO-style files -> what their annotations are: object, part or region, its name, the whole of a part.

The first that is there tells a part from an object:

    annotation `granularity`            object, part or region; our own exports
    category `granularity`              the same
    category `part_of`                  a part; name or id of the category of the whole
    category `supercategory`            PART or OBJECT, as PACO has them
    category name "whole:part"          a part, where "whole" is a category of the file, or the setting `colon` says so
    the source's `granularity` setting  for files that hold only parts, as PartImageNet's
    category `isthing` 0                a region: panoptic stuff
    otherwise                           an object

The name: the first of the annotation's `labels`, as in our own exports, else the category's. Of a part, what follows
the colon; any other colon belongs to the name ("12:00", "defect: scratch").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from semsam_model.data.readers.coco_entries import same_id
from semsam_model.data.readers.entries import ReadOptions, renamed, split_name
from semsam_model.data.readers.losses import Losses
from semsam_model.data.samples import BAD_ENTRY
from semsam_model.types import GRANULARITIES

#: Least share of a part's box that the box of its whole holds.
_HELD = 0.9


@dataclass(frozen=True)
class Category:
    """What a category says of its annotations."""

    granularity: str | None
    name: str
    whole: str | None = None  #: name of the category it is a part of


NAMELESS = Category(None, "")


class Categories:
    """The categories of one file."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], options: ReadOptions, losses: Losses) -> None:
        self._options = options
        self._by_id: dict[Any, Category] = {}
        self._by_name: dict[str, Category] = {}
        named: dict[Any, Mapping[str, Any]] = {}
        rivals: set[Any] = set()
        for row in rows:
            try:
                key, name = same_id(row["id"]), str(row["name"])
            except BAD_ENTRY as exc:
                losses.add("category", repr(row.get("name", row.get("id"))), exc, 0)
                continue
            if named.setdefault(key, row)["name"] != name:
                rivals.add(key)
                losses.add("category", repr(name), f"id {key!r} is that of another category, too: no name", 0)
        spelled = {key: str(row["name"]).strip() for key, row in named.items()}
        for key, row in named.items():
            try:
                if key not in rivals:
                    self._by_id[key] = self._by_name[spelled[key]] = _category(row, spelled, options)
            except BAD_ENTRY as exc:
                losses.add("category", repr(row["name"]), exc, 0)

    def of(self, entry: Mapping[str, Any]) -> Category:
        """The category of an annotation; NAMELESS where the file does not list it. By its id, else by its name."""
        value = entry.get("category_id")
        found = self._by_id.get(same_id(value))
        return found or (self._by_name.get(value, NAMELESS) if isinstance(value, str) else NAMELESS)

    def problem(self, entry: Mapping[str, Any]) -> str | None:
        """Why an annotation's category cannot be read; None where it can, or none is meant."""
        if "category_id" not in entry or self.of(entry) is not NAMELESS or entry.get("labels"):
            return None
        return f"category {entry['category_id']!r} is not one of the file's: read without a name"[:200]

    def describe(self, entry: Mapping[str, Any]) -> tuple[str, str | None, str | None]:
        """Granularity, name, and the name of the whole of a part whose category says it."""
        category = self.of(entry)
        granularity = entry.get("granularity") or category.granularity or self._options.granularity or "object"
        labels = entry.get("labels")
        if isinstance(labels, list) and labels and isinstance(labels[0], str):
            # Our own export: a colon in a label means nothing.
            return granularity, renamed(self._options.names, labels[0]), None
        return granularity, category.name or None, category.whole if granularity == "part" else None


def _category(row: Mapping[str, Any], spelled: Mapping[Any, str], options: ReadOptions) -> Category:
    """spelled: category id -> name, of all categories."""
    name, above, of = str(row["name"]).strip(), row.get("supercategory"), row.get("part_of")
    granularity = row.get("granularity")
    if granularity is None and of is not None:
        granularity = "part"
    elif granularity is None and above in ("PART", "OBJECT"):
        granularity = above.lower()
    whole, short = split_name(name)
    known = whole in spelled.values() or options.colon == "part" or options.granularity == "part"
    if whole and granularity is None and known:
        granularity = "part"
    if granularity != "part":
        whole, short = None, name
    if of is not None:
        whole = spelled.get(same_id(of), str(of))
    if granularity is None and options.granularity is None and row.get("isthing") == 0:
        granularity = "region"
    if granularity not in (None, *GRANULARITIES):
        raise ValueError(f"granularity {granularity!r}")
    if (granularity or options.granularity) == "part" and not whole and isinstance(above, str) and above != "PART":
        # PartImageNet: "Quadruped Head" under "Quadruped".
        whole, short = above, name.removeprefix(above).strip(" _-") or name
    return Category(granularity, renamed(options.names, name, short), renamed(options.names, whole or "") or None)


def smallest_around(
    part: Mapping[str, Any], name: str, entries: Sequence[Mapping[str, Any]], categories: Sequence[Category]
) -> int | None:
    """Index of the smallest entry of a category whose box holds the part's box."""
    inner, around = _box(part), []
    for index, (entry, category) in enumerate(zip(entries, categories, strict=True)):
        if category.name == name and entry is not part:
            outer = _box(entry)
            shared = np.minimum(inner[2:], outer[2:]) - np.maximum(inner[:2], outer[:2])
            if _area(shared) >= _HELD * _area(inner[2:] - inner[:2]):
                around.append((_area(outer[2:] - outer[:2]), index))
    return min(around)[1] if around else None


def _box(entry: Mapping[str, Any]) -> np.ndarray:
    """x0, y0, x1, y1; NaN where the entry has no box, so that it lies in no other and holds none."""
    try:
        x, y, width, height = map(float, entry["bbox"])
    except BAD_ENTRY:
        return np.full(4, np.nan)
    return np.array((x, y, x + width, y + height))


def _area(sides: np.ndarray) -> float:
    return float(sides.clip(min=0).prod())
