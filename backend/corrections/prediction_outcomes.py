"""What became of regions that were offered without a click.

Whoever made such a prediction, the service or `semsam batch` on another machine, Label Studio holds it, and an
annotation names the one that it was begun from. So what was offered is asked for there, once it matters: each
prediction once, by its id. Until then a region counts as its editor says: accepted, or corrected without an IoU.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Row, and_, or_, select, update

from backend.corrections.outcomes import judge_mask
from backend.corrections.queries import BEGUN_FROM, begun_from_a_prediction
from backend.errors import BadRequest, NotFound
from backend.label_studio.annotations import AnnotatedRegion, parse_annotation
from backend.label_studio.client import LabelStudio
from backend.label_studio.fields import clean
from backend.label_studio.label_config import LabelConfig
from backend.records import ProjectKey
from backend.store.database import Store, upsert
from backend.store.tables import annotations as annotation_rows
from backend.store.tables import predictions, regions
from semsam_model.errors import SemsamError
from semsam_model.masks.codecs import decode_coco_rle, encode_coco_rle
from semsam_model.masks.geometry import crop_mask

log = logging.getLogger(__name__)

RETRY_AFTER = timedelta(minutes=10)
_BATCH = 50


def judge_preannotated(
    store: Store, label_studio: LabelStudio, key: ProjectKey, *, retry: bool = False
) -> tuple[int, int]:
    """Fetch the predictions that a project's annotations were begun from, and hold their regions against them.

    (regions judged, predictions that could not be read: the log and the store say why). One that failed is tried again
    after `RETRY_AFTER`, or, with `retry`, now; one that is gone never. Repeatable, and may be cut off anywhere. Raises
    StoreError.
    """
    failed = _fetch(store, label_studio, key, retry)
    judged = 0
    while waiting := _unjudged(store, key):
        for row in waiting:
            _judge(store, row)
        judged += len(waiting)
    return judged, failed


def _fetch(store: Store, label_studio: LabelStudio, key: ProjectKey, retry: bool) -> int:
    began, failed = datetime.now(UTC), 0
    while waiting := _unread(store, key, began if retry else began - RETRY_AFTER):
        name = label_studio.project_on(key.origin, key.project)
        for number in waiting:
            values: dict[str, Any] = {"regions": 0, "offered": [], "problem": None, "tried_at": datetime.now(UTC)}
            try:
                values |= _offered(label_studio.get_prediction(number, project=name), key)
            except SemsamError as error:
                failed += 1
                values |= {"problem": clean(str(error))[:2000]} | ({"tried_at": None} if _final(error) else {})
                log.warning("project %s prediction %d: not read: %s", key, number, error)
            with store.write() as connection:
                statement = upsert(connection, predictions).values(origin=key.origin, prediction=number, **values)
                connection.execute(
                    statement.on_conflict_do_update(index_elements=["origin", "prediction"], set_=values)
                )
    return failed


def _final(error: SemsamError) -> bool:
    """Gone, or never to be read: as good as it gets."""
    return isinstance(error, NotFound | BadRequest)


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
        return list(connection.scalars(query.order_by(annotation_rows.c.prediction).limit(_BATCH)))


def _offered(prediction: dict[str, Any], key: ProjectKey) -> dict[str, Any]:
    """Columns for what a prediction offers; regions that are not of a model of ours are none. Raises BadRequest."""
    found = [
        region
        for region in parse_annotation(prediction, project=key.project).regions(LabelConfig())
        if isinstance(region, AnnotatedRegion) and region.preannotated
    ]
    if not found:
        return {}
    height, width = size = found[0].mask.shape
    offered = [
        {
            "region": region.id,
            "label": region.labels[0] if region.labels else None,
            "mask": encode_coco_rle(*crop_mask(region.mask), (height, width))["counts"],
        }
        for region in found
        if region.mask.shape == size
    ]
    return {"regions": len(offered), "width": width, "height": height, "offered": offered}


def _unjudged(store: Store, key: ProjectKey) -> Sequence[Any]:
    mine = and_(regions.c.origin == annotation_rows.c.origin, regions.c.annotation == annotation_rows.c.annotation)
    columns = (*regions.primary_key, *(regions.c[name] for name in ("mask", "width", "height", "labels", "outcome")))
    offered = [predictions.c[name].label(f"offered_{name}") for name in ("width", "height", "offered")]
    query = (
        select(*columns, regions.c.updated_at, *offered)
        .select_from(regions.join(annotation_rows, mine).join(predictions, BEGUN_FROM))
        .where(
            regions.c.origin == key.origin,
            regions.c.project == key.project,
            regions.c.preannotated,
            regions.c.iou_with_offer.is_(None),
            regions.c.deleted_at.is_(None),
            regions.c.problem.is_(None),
            predictions.c.problem.is_(None),
        )
    )
    with store.read() as connection:
        return connection.execute(query.limit(_BATCH)).all()


def _judge(store: Store, row: Row[Any]) -> None:
    """One that carries our mark under another id is a copy that the annotator made: drawn."""
    candidate = next((each for each in row.offered_offered if each["region"] == row.region), None)
    values: dict[str, Any] = {"outcome": "drawn", "preannotated": False}
    if candidate is not None:
        mask = decode_coco_rle({"size": [row.height, row.width], "counts": row.mask})
        size = [row.offered_height, row.offered_width]
        offered = decode_coco_rle({"size": size, "counts": candidate["mask"]})
        edited = row.outcome == "corrected"  # as the editor said
        outcome, overlap = judge_mask(mask, row.labels, offered, candidate["label"], edited=edited)
        values = {"outcome": outcome, "iou_with_offer": overlap}
    same = [column == getattr(row, column.name) for column in (*regions.primary_key, regions.c.updated_at)]
    with store.write() as connection:
        connection.execute(update(regions).where(*same).values(**values))
