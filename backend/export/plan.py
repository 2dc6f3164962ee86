"""What is exported, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from backend.corrections.photos import PhotoArchive
from backend.corrections.tasks import LabelledTask
from backend.records import StoredProject

Format = Literal["coco", "sa1b", "labelstudio", "masks"]
Images = Literal["copy", "reference", "none"]

#: (label, granularity) -> id, from 1.
Categories = Mapping[tuple[str, str], int]


@dataclass(frozen=True)
class Plan:
    """One export."""

    project: StoredProject
    categories: Categories
    photos: PhotoArchive
    target: Path  #: the folder in which everything will lie
    images: Images
    partial: bool  #: not everything visible was annotated


class Writer(Protocol):
    """Writes one format: where photos, masks and lists go, and what stands in them."""

    def write(self, task: LabelledTask) -> None:
        """Everything about one task; after a kill it comes again."""

    def finish(self) -> None:
        """What can be written when all tasks are there."""
