"""Regions as the store gives them, made for tests: photos on disk, wholes and parts, several annotators."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from PIL import Image
from sqlalchemy import event, insert, select

from backend.corrections.archive import PhotoArchive
from backend.corrections.queries import to_suggestion
from backend.records import ProjectKey, RegionKey, StoredProject, StoredRegion, Suggestion
from backend.store.database import Store
from backend.store.tables import annotations as annotation_rows
from backend.store.tables import offers, predictions, projects, regions
from backend.store.totals import changing
from semsam_model.data.samples import CocoMask

ORIGIN = "http://labelstudio:8080"
BEGAN = datetime(2026, 3, 1, 9, tzinfo=UTC)
SIZE = (24, 32)


def project(label_config: str = "", number: int = 1, title: str = "Cars") -> StoredProject:
    return StoredProject(ProjectKey(ORIGIN, number), title, label_config, synced_at=None)


def photo(seed: int, size: tuple[int, int] = SIZE, form: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


@contextlib.contextmanager
def query_plans(store: Store) -> Iterator[list[str]]:
    """How SQLite answers each SELECT that is sent meanwhile."""
    plans: list[str] = []

    def explain(_: object, cursor: Any, statement: str, values: Any, *rest: object) -> None:
        if statement.startswith("SELECT"):
            plan = cursor.connection.cursor().execute(f"EXPLAIN QUERY PLAN {statement}", values).fetchall()
            plans.append(" ".join(step[-1] for step in plan))

    event.listen(store._engine, "before_cursor_execute", explain)
    try:
        yield plans
    finally:
        event.remove(store._engine, "before_cursor_execute", explain)


def find_suggestion(store: Store, prompt_id: str) -> Suggestion | None:
    """What was suggested under this prompt id."""
    with store.read() as connection:
        row = connection.execute(select(offers).where(offers.c.prompt_id == prompt_id)).one_or_none()
    return to_suggestion(row) if row else None


def region(mask: np.ndarray, *, task: int = 1, annotation: int = 1, name: str = "r1", **fields: Any) -> StoredRegion:
    """One region; everything about it that is not given is plain."""
    made: dict[str, Any] = {
        "key": RegionKey(ORIGIN, 1, task, annotation, name),
        "image_sha256": "0" * 64,
        "image_url": f"/data/upload/1/{task}.png",
        "width": mask.shape[1],
        "height": mask.shape[0],
        "labels": ("car",),
        "granularity": None,
        "parent": None,
        "mask": CocoMask.of(mask).segmentation,
        "outcome": "accepted",
        "updated_at": BEGAN + timedelta(minutes=annotation),
    }
    return StoredRegion(**made | fields)


def car_park(photos: PhotoArchive, tasks: int, first: int = 1) -> list[StoredRegion]:
    """A car with two wheels and a patch of sky on each photo; every third task has a second, later annotation."""
    found = []
    for task in range(first, first + tasks):
        sha256 = photos.keep(photo(task, form=("PNG", "JPEG", "WEBP")[task % 3]))
        for annotation in (10 * task, 10 * task + 1)[: 2 if task % 3 == 0 else 1]:
            shared: dict[str, Any] = {"task": task, "annotation": annotation, "image_sha256": sha256}
            offered: dict[str, Any] = {"level": 1, "rank": 2, "score": 0.75, "model_version": "v0", "click": (9.5, 8.0)}
            left = task % 8
            found += [
                region(box(left, 4, 24, 20), name="a", granularity="object", **offered, **shared),
                region(box(left, 15, left + 5, 20), name="b", labels=("wheel",), parent="a", level=4, **shared),
                region(box(left + 10, 15, 23, 20), name="c", labels=("wheel", "round"), parent="a", **shared),
                region(box(0, 0, 32, 3), name="d", labels=(), granularity="region", outcome="drawn", **shared),
            ]
    return found


def box(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def fill(store: Store, project: StoredProject, found: Sequence[StoredRegion]) -> None:
    """Put the project and its regions into a database."""
    with store.write() as connection:
        row: Mapping[str, Any] = {"origin": project.key.origin, "project": project.key.project, "title": project.title}
        connection.execute(insert(projects), [row | {"label_config": project.label_config, "updated_at": BEGAN}])
        if found:
            with changing(connection, project.key, {each.key.task for each in found}):
                connection.execute(insert(regions), [region_row(each) for each in found])


def begin(store: Store, key: ProjectKey, annotations: Sequence[int], regions: int) -> None:
    """Make these annotations ones that were begun from predictions with so many regions each."""
    shared = {"origin": key.origin, "project": key.project, "received_at": BEGAN, "updated_at": BEGAN}
    with store.write() as connection, changing(connection, key, annotations):
        for number in annotations:
            begun = {"annotation": number, "task": number, "prediction": number}
            connection.execute(insert(annotation_rows), [shared | begun])
            given = {"origin": key.origin, "prediction": number, "regions": regions, "offered": []}
            connection.execute(insert(predictions), [given])


def region_row(each: StoredRegion) -> dict[str, Any]:
    key = each.key
    own = {"origin": key.origin, "project": key.project, "task": key.task, "annotation": key.annotation}
    same = ("image_sha256", "image_url", "width", "height", "granularity", "parent", "outcome", "prompt_id", "rank")
    same += ("level", "score", "model_version", "iou_with_offer", "seconds", "annotator", "ground_truth", "updated_at")
    same += ("preannotated",)
    x, y = each.click or (None, None)
    return (
        own
        | {"region": key.region, "labels": list(each.labels), "mask": each.mask["counts"], "click_x": x, "click_y": y}
        | {name: getattr(each, name) for name in same}
    )
