"""An annotation as Label Studio posts or lists it -> its regions, one at a time, each with its mask or its problem.

Rows with one id are one region: its geometry, and beside it its labels, its level, its note, each with a copy of the
mask that nobody reads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeGuard

import numpy as np

from backend.errors import BadRequest
from backend.label_studio.label_config import LabelConfig
from backend.label_studio.requests import MISSING, as_list, as_object, wrong_field
from backend.records import Granularity
from semsam_model.errors import DataError
from semsam_model.masks.label_studio import region_mask, region_shape

MAX_ID = 2**63 - 1
_MAX_TEXT = 1000  #: characters of an id, label or version kept


@dataclass(frozen=True, eq=False)
class AnnotatedRegion:
    """One region that can be used."""

    id: str
    mask: np.ndarray  #: bool (H, W), not empty
    labels: tuple[str, ...]
    parent: str | None
    edited: bool  #: the editor says that it was offered and its geometry then changed
    offered: bool  #: it carries the id of a prompt of ours
    preannotated: bool  #: it was offered without a click
    granularity: Granularity | None
    level: int | None  #: chosen by the annotator, else of the candidate
    prompt_id: str | None
    rank: int | None
    score: float | None
    model_version: str | None


@dataclass(frozen=True)
class MalformedRegion:
    """One region that cannot be used, as it came."""

    id: str
    problem: str
    rows: tuple[Any, ...] = field(repr=False)


@dataclass(frozen=True)
class Annotation:
    """One annotation as of `updated_at`."""

    id: int
    project: int
    task: int
    annotator: int | None
    created_at: datetime
    updated_at: datetime
    cancelled: bool
    ground_truth: bool
    prediction: int | None  #: Label Studio's id of the one that it was begun from
    rows: tuple[Any, ...] = field(repr=False)

    def regions(self, config: LabelConfig) -> Iterator[AnnotatedRegion | MalformedRegion]:
        """Its regions in the order drawn; prompts, relations and answers about the whole photo are none."""
        groups: dict[str, list[Any]] = {}
        for number, row in enumerate(self.rows):
            known = row.get("id") if isinstance(row, dict) else None
            name = known if isinstance(known, str) and known and len(known) <= _MAX_TEXT else f"#{number}"
            groups.setdefault(clean(name), []).append(row)
        for name, rows in groups.items():
            try:
                region = _region(name, rows, config)
            except (DataError, BadRequest) as error:
                yield MalformedRegion(name, str(error), tuple(rows))
            else:
                if region is not None:
                    yield region


def parse_annotation(value: Any, *, project: int | None = None, task: int | None = None) -> Annotation:
    """An annotation from a webhook or the API; project and task where it does not name them. Raises BadRequest."""
    annotation = as_object(value, "annotation")
    updated = _time(annotation, "updated_at")
    completed_by = annotation.get("completed_by")
    if isinstance(completed_by, dict):
        completed_by = completed_by.get("id")
    return Annotation(
        id=label_studio_id(annotation.get("id"), "annotation.id"),
        project=label_studio_id(annotation.get("project", project), "annotation.project"),
        task=label_studio_id(annotation.get("task", task), "annotation.task"),
        annotator=completed_by if is_id(completed_by) else None,
        created_at=_time(annotation, "created_at") if annotation.get("created_at") else updated,
        updated_at=updated,
        cancelled=annotation.get("was_cancelled") is True,
        ground_truth=annotation.get("ground_truth") is True,
        prediction=parent if is_id(parent := annotation.get("parent_prediction")) else None,
        rows=tuple(as_list(annotation.get("result", MISSING), "annotation.result")),
    )


def is_id(value: Any) -> TypeGuard[int]:
    """Whether this can be an id of Label Studio's."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_ID


def label_studio_id(value: Any, name: str) -> int:
    """Raises BadRequest for what is no id."""
    if not is_id(value):
        raise wrong_field(name, "an id", value)
    return int(value)


def clean(text: str) -> str:
    """Text that every database takes: no NUL, no half of a surrogate pair."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def _time(annotation: Mapping[str, Any], key: str) -> datetime:
    value = annotation.get(key, MISSING)
    try:
        if isinstance(value, str):
            parsed = datetime.fromisoformat(value)
            return parsed.astimezone(UTC) if parsed.tzinfo else parsed.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        pass
    raise wrong_field(f"annotation.{key}", "a time such as 2026-01-31T12:00:00.123456Z", value)


def _region(name: str, rows: list[Any], config: LabelConfig) -> AnnotatedRegion | None:
    bad = [row for row in rows if not isinstance(row, dict)]
    if bad:
        raise wrong_field(f"region {name}", "an object", bad[0])
    geometry = next((row for row in rows if region_shape(row) is not None), None)
    if geometry is None:
        return None
    if name.startswith("#"):
        raise wrong_field("region.id", "a text", geometry.get("id", MISSING))
    mask = region_mask(geometry)
    assert mask is not None  # it has a shape
    if not mask.any():
        raise DataError(f"region {name}: expected a mask with at least one pixel, got an empty one")
    labels = _labels(rows)
    meta = geometry["meta"] if isinstance(geometry.get("meta"), dict) else {}
    prompt_id = _text(meta.get("prompt_id"))
    if prompt_id is not None and not re.fullmatch(r"[!-~]{1,64}", prompt_id):
        prompt_id = None
    origin = geometry.get("origin")
    return AnnotatedRegion(
        id=name,
        mask=mask,
        labels=labels,
        parent=_text(geometry.get("parentID")),
        edited=origin == "prediction-changed",
        offered=prompt_id is not None,
        preannotated=prompt_id is not None and meta.get("preannotated") is True,
        granularity=_granularity(labels, meta, config),
        level=_chosen_level(rows, config) or _number(meta.get("level"), 1, 6),
        prompt_id=prompt_id,
        rank=_number(meta.get("candidate"), 1, 10**6),
        score=_score(geometry.get("score")),
        model_version=_text(meta.get("model_version")),
    )


def _labels(rows: list[dict[str, Any]]) -> tuple[str, ...]:
    """<Labels> beside a plain <Brush> writes them in a row of its own."""
    found: dict[str, None] = {}
    for row in rows:
        kind, value = row.get("type"), row.get("value")
        if isinstance(kind, str) and kind.endswith("labels") and isinstance(value, dict):
            listed = value.get(kind)
            for label in listed if isinstance(listed, list) else []:
                if (text := _text(label)) is not None:
                    found.setdefault(text)
    return tuple(found)


def _granularity(labels: tuple[str, ...], meta: Mapping[str, Any], config: LabelConfig) -> Granularity | None:
    kinds = {label.value: label.kind for label in config.labels}
    said = next((kinds[label] for label in labels if kinds.get(label)), None) or meta.get("granularity")
    if said == "object":
        return "object"
    if said == "part":
        return "part"
    return "region" if said == "region" else None


def _chosen_level(rows: list[dict[str, Any]], config: LabelConfig) -> int | None:
    levels = {choice: level for level, choice in config.level_values.items()}
    for row in rows:
        value = row.get("value")
        if config.level and row.get("from_name") == config.level and isinstance(value, dict):
            choices = value.get("choices")
            for choice in choices if isinstance(choices, list) else []:
                if isinstance(choice, str) and choice in levels:
                    return levels[choice]
    return None


def _text(value: Any) -> str | None:
    return clean(value)[:_MAX_TEXT] if isinstance(value, str) and value else None


def _number(value: Any, low: int, high: int) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high else None


def _score(value: Any) -> float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6
    return float(value) if usable and math.isfinite(value) else None
