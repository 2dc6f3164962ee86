"""An annotation as Label Studio posts or lists it -> its regions, one at a time, each with its mask or its problem.

Rows with one id are one region: its geometry, and beside it its labels, its level, its note, each with a copy of the
mask that nobody reads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le
from pydantic import AllowInfNan, BeforeValidator, Field, Strict, StringConstraints, model_validator

from backend.errors import BadRequest
from backend.label_studio.fields import MAX_TEXT, Id, Text, Time, clean
from backend.label_studio.label_config import LabelConfig
from semsam_model.errors import DataError
from semsam_model.masks.geometry import Size
from semsam_model.masks.label_studio import declares_size, listed_texts, region_mask, region_shape, row_labels
from semsam_model.types import GRANULARITIES, LEVELS, Granularity
from semsam_model.validation import Flag, JsonModel, Lenient, check

#: Problem of a region that does not say the size of its photo, until the photo is there.
WAITS_FOR_PHOTO = "original_width and original_height are not given: it waits for the photo"
_OUTLINES = ("polygon", "rectangle", "ellipse")


@dataclass(frozen=True, eq=False)
class AnnotatedRegion:
    """One region that can be used."""

    id: str
    mask: np.ndarray  #: bool (H, W), not empty
    labels: tuple[str, ...]
    parent: str | None
    edited: bool  #: the editor says that it was suggested and its geometry then changed
    suggested: bool  #: it carries the id of a prompt that this backend answered
    preannotated: bool  #: it was suggested without a click
    granularity: Granularity | None
    level: int | None  #: chosen by the annotator, else of the candidate
    prompt_id: str | None
    rank: int | None
    score: float | None  #: the suggestion's expected IoU; of a region from elsewhere, what it says
    model_version: str | None
    concept_score: float | None = None  #: of a concept model, not calibrated
    #: as they came, where they can be laid over a photo of another size than they say
    rows: tuple[Any, ...] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class MalformedRegion:
    """One region that cannot be used, as it came."""

    id: str
    problem: str
    rows: tuple[Any, ...] = field(repr=False)


def _region_id(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):  # as importers write it
        value = str(value)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT:
        raise ValueError
    return clean(value)


def _listed(value: Any) -> Any:
    return [] if value is None else value


def _id_of_user(value: Any) -> Any:
    return value.get("id") if isinstance(value, dict) else value


class Annotation(JsonModel):
    """One annotation as of `updated_at`."""

    id: Id
    project: Id
    task: Id
    annotator: Lenient[Annotated[Id, BeforeValidator(_id_of_user)]] = Field(default=None, alias="completed_by")
    created_at: Time
    updated_at: Time
    cancelled: Flag = Field(default=False, alias="was_cancelled")
    ground_truth: Flag = False
    #: Label Studio's id of the prediction that it was begun from
    prediction: Lenient[Id] = Field(default=None, alias="parent_prediction")
    #: null where it was skipped through the API
    rows: Annotated[list[Any], BeforeValidator(_listed)] = Field(alias="result", repr=False)

    @model_validator(mode="before")
    @classmethod
    def _default_creation_time(cls, value: Any) -> Any:
        if isinstance(value, dict) and not value.get("created_at") and "updated_at" in value:
            return value | {"created_at": value["updated_at"]}
        return value

    def regions(self, config: LabelConfig) -> Iterator[AnnotatedRegion | MalformedRegion]:
        """Its regions in the order drawn; prompts, relations and answers about the whole photo are none.

        A row without an id is a region of its own, named by its place: "#3".
        """
        groups: dict[str, list[Any]] = {}
        for number, row in enumerate(self.rows):
            name = f"#{number}"
            with contextlib.suppress(ValueError):
                name = _region_id(row.get("id") if isinstance(row, dict) else None)
            groups.setdefault(name, []).append(row)
        for name, rows in groups.items():
            region = read_region(name, rows, config)
            if region is not None:
                yield region


def parse_annotation(value: Any, *, project: int | None = None, task: int | None = None) -> Annotation:
    """An annotation from a webhook or the API; project and task where it does not name them. Raises BadRequest."""
    named = {"project": project, "task": task} | value if isinstance(value, dict) else value
    return check(Annotation, named, "annotation", BadRequest)


# ------------------------------------------------------------------------------------------------------------- regions


_Score = Annotated[float, Strict(), AllowInfNan(False), Ge(-1e6), Le(1e6)]


class _Meta(JsonModel):
    """What a suggested region carries through the editor; `predictions` writes it."""

    prompt_id: Lenient[Annotated[str, StringConstraints(pattern=r"^[!-~]{1,64}$")]] = None
    preannotated: Flag = False
    granularity: Lenient[Granularity] = None
    level: Lenient[Annotated[int, Strict(), Ge(1), Le(len(LEVELS))]] = None
    candidate: Lenient[Annotated[int, Strict(), Ge(1), Le(10**6)]] = None
    expected_iou: Lenient[_Score] = None
    concept_score: Lenient[_Score] = None
    model_version: Lenient[Text] = None


class _Geometry(JsonModel):
    """The row of a region that holds its mask."""

    parent: Lenient[Annotated[str, BeforeValidator(_region_id)]] = Field(default=None, alias="parentID")
    origin: Any = None
    score: Lenient[_Score] = None
    meta: Lenient[_Meta] = None


def read_region(
    name: str, rows: list[Any], config: LabelConfig, photo: Size | None = None
) -> AnnotatedRegion | MalformedRegion | None:
    """The rows of one region -> the region; None where no row has a geometry.

    photo: (H, W) of its photo, where that is known; else the rows must say it.
    """
    try:
        return _region(name, rows, config, photo)
    except DataError as error:
        return MalformedRegion(name, str(error), tuple(rows))


def _region(name: str, rows: list[Any], config: LabelConfig, photo: Size | None) -> AnnotatedRegion | None:
    """None where no row has a geometry. Raises DataError."""
    for row in rows:
        check(dict[Any, Any], row, f"region {name}", DataError)
    row = next((row for row in rows if region_shape(row) is not None), None)
    if row is None:
        return None
    geometry = check(_Geometry, row, "region", DataError)
    _check_image(row, config)
    if photo is None and not declares_size(row):
        raise DataError(WAITS_FOR_PHOTO)
    mask = region_mask(row, photo)
    assert mask is not None  # it has a shape
    if not mask.any():
        raise DataError(f"region {name}: expected a mask with at least one pixel, got an empty one")
    labels = _labels(rows)
    meta = geometry.meta or _Meta()
    return AnnotatedRegion(
        id=name,
        mask=mask,
        labels=labels,
        parent=geometry.parent,
        edited=geometry.origin == "prediction-changed",
        suggested=meta.prompt_id is not None,
        preannotated=meta.prompt_id is not None and meta.preannotated,
        rows=tuple(rows) if region_shape(row) in _OUTLINES else None,
        granularity=_granularity(labels, meta.granularity, config),
        level=_chosen_level(rows, config) or meta.level,
        prompt_id=meta.prompt_id,
        rank=meta.candidate,
        score=geometry.score if meta.expected_iou is None else meta.expected_iou,
        model_version=meta.model_version,
        concept_score=meta.concept_score,
    )


def _check_image(row: dict[str, Any], config: LabelConfig) -> None:
    """Raises DataError for a region of another photo of the task than the first, which alone is kept."""
    image, page = row.get("to_name"), row.get("item_index") or 0
    is_other = config.image_name is not None and image not in (None, config.image_name)
    if is_other or page:
        where = f"<Image name={str(image)[:40]!r}>" + (f", item_index {str(page)[:20]}" if page else "")
        raise DataError(
            f"drawn on {where}: expected the task's first photo, {config.image_name!r}; regions of further photos of a "
            "task are not kept, import one task a photo"
        )


def _labels(rows: list[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(clean(label)[:MAX_TEXT] for row in rows for label in row_labels(row)))


def _granularity(labels: tuple[str, ...], of_suggestion: Granularity | None, config: LabelConfig) -> Granularity | None:
    """What the first label with a `kind` says, else what the suggestion said."""
    kinds = {label.value: label.kind for label in config.labels}
    kind = next((kinds[label] for label in labels if kinds.get(label)), of_suggestion)
    return next((granularity for granularity in GRANULARITIES if granularity == kind), None)


def _chosen_level(rows: list[dict[str, Any]], config: LabelConfig) -> int | None:
    levels = {clean(choice): level for level, choice in config.level_values.items()}
    rows = [row for row in rows if config.level and row.get("from_name") == config.level]
    chosen = (clean(choice)[:MAX_TEXT] for row in rows for choice in listed_texts(row, "choices"))
    return next((levels[choice] for choice in chosen if choice in levels), None)
