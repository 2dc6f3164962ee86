"""What became of pre-annotated regions: those that were suggested without a click.

Whoever made such a prediction, the service or `semsam batch` on another machine, Label Studio holds it, and an
annotation names the one that it was begun from. So each prediction is read there once, by its id, when the first such
annotation comes. Until then a region counts as the editor says: accepted, or corrected without an IoU.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import Row, and_, or_, select

from backend.corrections.outcomes import judge_mask
from backend.corrections.queries import BATCH, RETRY_AFTER, begun_from_a_prediction
from backend.errors import BadRequest, NotFound, TokenRefused, Unreachable
from backend.label_studio.annotations import AnnotatedRegion, parse_annotation
from backend.label_studio.client import LabelStudio
from backend.label_studio.fields import clean
from backend.label_studio.label_config import LabelConfig
from backend.records import ProjectKey, RegionKey
from backend.store.database import Store
from backend.store.statements import BEGUN_FROM, BELONGS_TO, IS_USABLE, change_regions, of_project, to_record, upsert
from backend.store.tables import annotations as annotation_rows
from backend.store.tables import predictions, regions
from backend.store.totals import changing
from semsam_model.errors import SemsamError, Stopped
from semsam_model.masks.codecs import decode_coco_rle, encode_coco_rle
from semsam_model.masks.geometry import crop_mask
from semsam_model.types import ShouldStop, never_stop

log = logging.getLogger(__name__)


class Judged(NamedTuple):
    """Numbers. The log and the store say why a prediction could not be read."""

    regions: int
    predictions_failed: int


def judge_preannotated(
    store: Store,
    label_studio: LabelStudio,
    key: ProjectKey,
    *,
    retry: bool = False,
    should_stop: ShouldStop = never_stop,
) -> Judged:
    """Read the predictions that a project's annotations were begun from, and judge the regions that came from them.

    A prediction that failed is tried again after `RETRY_AFTER`, or, with `retry`, now; one that is gone never is.
    should_stop: asked before each prediction. Repeatable, and may be cut off anywhere. Raises Stopped, StoreError.
    """
    failed = _read_predictions(store, label_studio, key, retry, should_stop)
    judged = 0
    while waiting := _unjudged(store, key):
        outcomes = [(to_record(RegionKey, row), row.updated_at, _outcome(row)) for row in waiting]
        with store.write() as connection, changing(connection, key, {row.task for row in waiting}):
            change_regions(connection, outcomes)
        judged += len(waiting)
    return Judged(judged, failed)


def _read_predictions(
    store: Store, label_studio: LabelStudio, key: ProjectKey, retry: bool, should_stop: ShouldStop
) -> int:
    """Save what the predictions suggest; how many could not be read."""
    began, failed = datetime.now(UTC), 0
    while unread := _unread(store, key, began if retry else began - RETRY_AFTER):
        name = label_studio.project_on(key.origin, key.project)
        for number in unread:
            if should_stop():
                raise Stopped(f"project {key}: reading predictions ended early")
            values: dict[str, Any] = {"regions": 0, "offered": [], "problem": None, "tried_at": datetime.now(UTC)}
            try:
                values |= _suggested(label_studio.get_prediction(number, project=name), key)
            except (Unreachable, TokenRefused):
                raise  # it would be the same with all others
            except SemsamError as error:
                failed += 1
                values["problem"] = clean(str(error))[:2000]
                if isinstance(error, NotFound | BadRequest):  # gone or malformed: trying again would not help
                    values["tried_at"] = None
                log.warning("project %s prediction %d: not read: %s", key, number, error)
            begun = select(annotation_rows.c.task).where(
                of_project(annotation_rows, key), annotation_rows.c.prediction == number
            )
            with store.write() as connection:
                affected = {task for task in connection.scalars(begun) if task is not None}
                with changing(connection, key, affected):
                    row = {"origin": key.origin, "prediction": number, **values}
                    connection.execute(upsert(connection, predictions), row)
    return failed


def _unread(store: Store, key: ProjectKey, tried_before: datetime) -> list[int]:
    missing = or_(
        predictions.c.prediction.is_(None),
        and_(predictions.c.problem.is_not(None), predictions.c.tried_at < tried_before),
    )
    query = (
        select(annotation_rows.c.prediction)
        .distinct()
        .select_from(annotation_rows.outerjoin(predictions, BEGUN_FROM))
        .where(begun_from_a_prediction(key), missing)
    )
    with store.read() as connection:
        return list(connection.scalars(query.order_by(annotation_rows.c.prediction).limit(BATCH)))


def _suggested(prediction: dict[str, Any], key: ProjectKey) -> dict[str, Any]:
    """Columns for what a prediction suggests; regions that no model of ours made do not count. Raises BadRequest."""
    found = [
        region
        for region in parse_annotation(prediction, project=key.project).regions(LabelConfig())
        if isinstance(region, AnnotatedRegion) and region.preannotated
    ]
    if not found:
        return {}
    height, width = size = found[0].mask.shape
    suggested = [
        {
            "region": region.id,
            "label": region.labels[0] if region.labels else None,
            "mask": encode_coco_rle(*crop_mask(region.mask), (height, width))["counts"],
            "concept_score": region.concept_score,
            "model_version": region.model_version,
        }
        for region in found
        if region.mask.shape == size
    ]
    return {"regions": len(suggested), "width": width, "height": height, "offered": suggested}


def _unjudged(store: Store, key: ProjectKey) -> Sequence[Any]:
    """Pre-annotated regions without an IoU whose prediction has been read: their columns and `suggested_*`."""
    suggested = [predictions.c[name].label(f"suggested_{name}") for name in ("width", "height", "offered")]
    query = (
        select(*regions.columns, *suggested)
        .select_from(regions.join(annotation_rows, BELONGS_TO).join(predictions, BEGUN_FROM))
        .where(
            of_project(regions, key),
            IS_USABLE,
            regions.c.preannotated,
            regions.c.iou_with_offer.is_(None),
            predictions.c.problem.is_(None),
        )
    )
    with store.read() as connection:
        return connection.execute(query.limit(BATCH)).all()


def _outcome(row: Row[Any]) -> dict[str, Any]:
    """What changes in a region's row. One that is not in the prediction is a copy that the annotator made: drawn."""
    candidate = next((each for each in row.suggested_offered if each["region"] == row.region), None)
    if candidate is None:
        return {"outcome": "drawn", "preannotated": False}
    mask = decode_coco_rle({"size": [row.height, row.width], "counts": row.mask})
    size = [row.suggested_height, row.suggested_width]
    suggested = decode_coco_rle({"size": size, "counts": candidate["mask"]})
    edited = row.outcome == "corrected"  # as the editor said
    outcome, overlap = judge_mask(mask, row.labels, suggested, candidate["label"], edited=edited)
    return {"outcome": outcome, "iou_with_offer": overlap}
