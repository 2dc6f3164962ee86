"""A model version, and that one became the live one: plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ModelVersion:
    """A version as it was registered. Whether its files are still right says `Registry.problems`."""

    number: int  #: 0 is the model of the settings; the others count from 1
    version: str  #: mobile-1a2b3c4d5e6f, as predictions name it
    model: str  #: name of the model config
    digest: str  #: of the weights' content, 64 hex digits
    weights: Path  #: weights file
    parent: str | None = None  #: version that it was trained from
    data_digest: str | None = None  #: of the data that it was trained on
    figures: Mapping[str, Any] = field(default_factory=dict)  #: what was measured before it was registered
    files_digest: str | None = None  #: of everything in its folder; None for version 0
    created_at: datetime | None = None
    pinned: bool = False  #: never pruned
    pruned_at: datetime | None = None  #: when its files were removed

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.weights.parent

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            **vars(self),
            "weights": str(self.weights),
            "figures": dict(self.figures),
            "created_at": self.created_at and self.created_at.isoformat(),
            "pinned": self.pinned or self.number == 0,
            "pruned_at": self.pruned_at and self.pruned_at.isoformat(),
        }


@dataclass(frozen=True)
class Activation:
    """That a version became the live one."""

    number: int  #: counts up with every activation; 0 = nothing has ever been activated
    version: ModelVersion
    over: int | None = None  #: number of the activation that a rollback goes back to; None at the bottom
    at: datetime | None = None
    reason: str = ""


@dataclass(frozen=True)
class Pruned:
    """What `Registry.prune` removed, or would."""

    versions: list[ModelVersion]
    strays: list[Path]  #: folders that belong to no version
    size: int  #: bytes
