"""What readers of different formats share: options, folders that must be there, JSON, names, lists of problems."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from semsam_model.data.samples import BAD_ENTRY
from semsam_model.errors import DataError


@dataclass(frozen=True)
class ReadOptions:
    """How a source's files are to be understood."""

    granularity: str | None = None  #: of annotations without one
    names: Mapping[str, str] = field(default_factory=dict)  #: the source's spelling -> the label meant
    partial: bool = False  #: not everything visible is annotated, on any photo
    #: What `iscrowd` means: several things in one mask, left out of training; or a single thing, as CVAT writes masks.
    crowd: Literal["group", "single"] = "group"
    #: "part": a colon in a category's name stands between the whole and the part, whether or not the file has the whole
    colon: Literal["part"] | None = None
    #: Keep what training leaves out and evaluation counts: crowd regions, annotated areas, photos without any mask, and
    #: the labels that LVIS and PACO looked for on a photo.
    evaluation: bool = False


AS_WRITTEN = ReadOptions()


def require_folder(folder: Path, what: str, owner: object) -> None:
    """Raises DataError that says what belongs into a folder that is missing, and whose it is."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; the {what} of {owner} belong there")


@contextmanager
def malformed(where: object, expected: str) -> Iterator[None]:
    """What goes wrong in the body, while someone else's file is read, becomes a DataError: WHERE: expected EXPECTED."""
    try:
        yield
    except (OSError, RecursionError, *BAD_ENTRY) as exc:
        raise DataError(f"{where}: expected {expected}: {exc if isinstance(exc, OSError) else repr(exc)}") from exc


def parse_json(content: bytes, kind: type) -> Any:
    """JSON whose outermost value is of a kind (dict or list). Raises ValueError or TypeError."""
    parsed = json.loads(content)
    if not isinstance(parsed, kind):
        raise TypeError(f"expected a {kind.__name__}, got {type(parsed).__name__}")
    return parsed


def split_name(spelled: str) -> tuple[str | None, str]:
    """ "dog:head" -> dog, head; "dog" -> None, dog: the whole that a part's name begins with, and the short name."""
    whole, _, part = spelled.rpartition(":")
    return whole.strip() or None, (part.strip() if whole and part else spelled)


def renamed(names: Mapping[str, str], spelled: str, short: str | None = None) -> str:
    """The label meant: that of the full spelling, else of the short name, else the short name as it is."""
    short = spelled if short is None else short
    return names.get(spelled, names.get(short, short))


def other_index(places: Mapping[Any, int], key: object, own: int) -> int | None:
    """Index of the entry with this id, which is another than one's own; None where there is none."""
    found = places.get(key)
    return None if found == own else found
