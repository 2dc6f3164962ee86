"""What a project's annotations teach a concept model: what its scores are worth, and how a thing looks in a photo."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from sqlalchemy import Column, Select, select

from backend.adaptation.lessons import Look
from backend.corrections.queries import begun_from_a_prediction
from backend.records import ProjectKey
from backend.store.database import Store
from backend.store.statements import BEGUN_FROM, IS_USABLE, of_project, of_task
from backend.store.tables import annotations as annotation_rows
from backend.store.tables import predictions, regions
from semsam_model.checkpoints.header import Version
from semsam_model.masks.codecs import decode_coco_rle
from semsam_model.masks.geometry import Size, tight_bbox
from semsam_model.types import Box

if TYPE_CHECKING:
    from semsam_model.network.query_calibration import Curve

ENOUGH = 40  #: judged regions from which on a project says what scores are worth
NEWEST = 200  #: annotations that say it
WORTH_S = 20.0  #: seconds after which what scores are worth in a project that changes is found anew
EXAMPLES = 8  #: regions of one label and photo, the newest


def fit_worth(store: Store, key: ProjectKey, concepts: str) -> Curve | None:
    """The curve from scores of a concept model to what annotators kept of what it offered; None for too few.

    concepts: its version, as predictions carry it.

    A region that was kept with its label is worth its IoU with the suggested mask, any other nothing. Raises
    StoreError.
    """
    from semsam_model.network.query_calibration import Curve

    pairs = list(_judged(store, key, concepts))
    if len(pairs) < ENOUGH:
        return None
    scores, worth = np.array(pairs, float).T
    return Curve.fitted(scores, worth, np.full(len(pairs), 1 / len(pairs)))


class _Worth(NamedTuple):
    """What scores of a concept model are worth in a project."""

    concepts: Version
    seen: Look  #: when that was found
    until: float  #: time from which it may be found anew
    curve: Curve | None


class ConceptWorth:
    """What scores of a concept model are worth, of every project. One thread weighs, any may ask."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[ProjectKey, _Worth] = {}

    def of(self, key: ProjectKey, concepts: Version) -> Curve | None:
        """None while too few are known. From memory."""
        known = self._known.get(key)
        return known.curve if known is not None and known.concepts == concepts else None

    def weigh(self, concepts: Version, projects: Mapping[ProjectKey, Look]) -> None:
        """Fit what the scores are worth in those of the projects that have changed. Raises StoreError."""
        for key, look in projects.items():
            known = self._known.get(key)
            if known is not None and known[:2] == (concepts, look):
                continue
            if known is None or known.concepts != concepts or time.monotonic() >= known.until:
                curve = fit_worth(self._store, key, concepts.version) if look.state.enabled else None
                self._known[key] = _Worth(concepts, look, time.monotonic() + WORTH_S, curve)


def examples_of(store: Store, key: ProjectKey, task: int, photo: Size) -> dict[str, tuple[Box, ...]]:
    """Boxes of the regions of a task's photo of this size, (H, W), by their first label. Raises StoreError."""
    columns = regions.c.labels, regions.c.mask, regions.c.height, regions.c.width, regions.c.updated_at
    with store.read() as connection:
        rows = connection.execute(select(*columns).where(of_task(regions, key, task), IS_USABLE)).all()
    # not ordered by the database: that would be by an index of the whole project
    rows = sorted(rows, key=lambda row: row.updated_at, reverse=True)
    found: dict[str, list[Box]] = {}
    for row in rows:
        mine = found.setdefault(row.labels[0], []) if row.labels and (row.height, row.width) == photo else None
        if mine is not None and len(mine) < EXAMPLES:
            mask = decode_coco_rle({"size": [row.height, row.width], "counts": row.mask})
            mine.append(Box(*tight_bbox(mask)))
    return {label: tuple(boxes) for label, boxes in found.items()}


def _newest(key: ProjectKey, *columns: Column[Any]) -> Select[Any]:
    """Query: the newest annotations that were begun from predictions which were read, with these columns too."""
    return (
        select(annotation_rows.c.annotation, annotation_rows.c.task, *columns)
        .select_from(annotation_rows.join(predictions, BEGUN_FROM))
        .where(begun_from_a_prediction(key), predictions.c.problem.is_(None), predictions.c.regions > 0)
        .order_by(annotation_rows.c.updated_at.desc(), annotation_rows.c.annotation.desc())
        .limit(NEWEST)
    )


def _judged(store: Store, key: ProjectKey, concepts: str) -> Iterator[tuple[float, float]]:
    """Score and worth of what the concept model offered to the newest annotations whose regions are all judged."""
    columns = [
        regions.c[name] for name in ("annotation", "region", "labels", "outcome", "preannotated", "iou_with_offer")
    ]
    with store.read() as connection:
        begun = connection.execute(_newest(key, predictions.c.offered)).all()
        mine = of_project(regions, key), regions.c.task.in_([row.task for row in begun])
        rows = connection.execute(select(*columns).where(*mine, IS_USABLE)).all()
    kept = {(row.annotation, row.region): row for row in rows}
    waiting = {row.annotation for row in rows if row.preannotated and row.iou_with_offer is None}
    for annotation, _, offered in begun:
        for each in () if annotation in waiting else offered:
            score, version = each.get("concept_score"), each.get("model_version") or ""
            if score is None or not version.endswith(f"@{concepts}"):
                continue
            row = kept.get((annotation, each["region"]))
            right = row is not None and row.iou_with_offer is not None and list(row.labels[:1]) == [each["label"]]
            yield score, row.iou_with_offer if right and row is not None else 0.0
