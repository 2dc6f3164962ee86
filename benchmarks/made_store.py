"""Stores of any size with rows as the product writes them, made fast: a thousand annotations, then copies of these.

Annotation n is the only one of task n, of project 1 + n % projects. It has 8 regions: one drawn by hand; in a quarter
of the annotations one that was there before any click; the others accepted, corrected or relabelled from offers of
their own. In every other annotation one prompt more was rejected. An offer has six candidates. One of twenty is
deleted. Up to 2,000 regions of a project have taught the model, each with one of a few real lessons; masks are those
that it answers clicks with (`from_model`).
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import cycle
from typing import Any

import numpy as np
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    LargeBinary,
    String,
    Table,
    cast,
    func,
    insert,
    literal,
    select,
    text,
    type_coerce,
)

from backend.images import decode_photo
from backend.records import ProjectKey
from backend.store.database import Store
from backend.store.statements import of_project
from backend.store.tables import annotations, lesson_sets, lessons, offers, predictions, projects, regions, tasks
from backend.store.totals import recount
from benchmarks.machine import ROCKET, SAMPLES
from semsam_model.adaptation.lessons import make_lesson
from semsam_model.checkpoints.checkpoint import load_model
from semsam_model.inference.predict import predict_candidates
from semsam_model.masks.codecs import encode_brush_rle, encode_coco_rle
from semsam_model.masks.geometry import crop_mask
from semsam_model.types import Click, Prompt

REGIONS = 8  #: of an annotation
BEGAN, SEEN = datetime(2026, 1, 1, tzinfo=UTC), "2026-01-01T00:00:00Z"
LABELS = tuple(f"label {number}" for number in range(50))
LABEL_CONFIG = (
    '<View><Image name="image" value="$image"/><BrushLabels name="mask" toName="image">'
    + "".join(f'<Label value="{each}"/>' for each in LABELS)
    + '</BrushLabels><KeyPointLabels name="click_all" toName="image"><Label value="click" smart="true"/>'
    "</KeyPointLabels></View>"
)
_SIZE = (427, 640)  #: (H, W) of the sample photo
_PHOTO = "/data/local-files/?d="
_BASE = 1000  #: annotations that are made one by one
_CLICKS = 50  #: on each sample photo
_TAUGHT = 2000  #: regions of a project with a lesson
_OUTCOMES = ("accepted",) * 5 + ("corrected", "relabelled", "drawn")


@dataclass(frozen=True)
class FromModel:
    """What the rows have of a real model; none of it by default."""

    digest: str = ""
    lessons: list[bytes] = field(default_factory=list)
    #: COCO RLE counts of the candidates of some clicks; without any, text as long as that of a small mask
    suggested: list[list[str]] = field(default_factory=list)


def fill(store: Store, origin: str, wanted: int, count: int, of_model: FromModel | None = None) -> None:
    """Put `wanted` annotations in `count` projects into an empty store."""
    of_model = of_model or FromModel()
    dice, base = _Dice(of_model), min(wanted, _BASE)
    rows: dict[Table, list[dict[str, Any]]] = {each: [] for each in (tasks, annotations, predictions, regions, offers)}
    for number in range(base):
        for table, row in _annotation(origin, number, count, dice):
            rows[table].append(row)
    with store.write() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA cache_size = -1000000")
        titles = [{"project": 1 + each, "title": f"Project {1 + each}"} for each in range(count)]
        shared = {"origin": origin, "label_config": LABEL_CONFIG, "updated_at": BEGAN}
        connection.execute(insert(projects), [shared | each for each in titles])
        for table, made in rows.items():
            connection.execute(insert(table), made)
            if wanted > base:
                _copy(connection, table, (wanted - 1) // base, count)
        if store.dialect == "postgresql":
            connection.execute(text("ANALYZE"))  # without it each thousand tasks that are counted read every row
        if of_model.lessons:
            _teach(connection, origin, count, of_model)
        for each in titles:
            recount(connection, ProjectKey(origin, each["project"]))
    if store.dialect == "postgresql":
        with store.write() as connection:
            connection.execute(text("ANALYZE"))  # the lessons, too


class _Dice(random.Random):
    """Chance, the same each time."""

    def __init__(self, of_model: FromModel) -> None:
        super().__init__(0)
        self._suggested = of_model.suggested

    def hex(self) -> str:
        return f"{self.getrandbits(128):032x}"

    def masks(self) -> list[str]:
        """Of the six candidates of a click; they are not read."""
        if self._suggested:
            return self.choice(self._suggested)
        letters = "0123456789PQRSTUWXYabcdefghijklmno"
        return ["".join(self.choices(letters, k=self.randint(200, 900))) for _ in range(6)]


def _annotation(origin: str, number: int, count: int, dice: _Dice) -> list[tuple[Table, dict[str, Any]]]:
    at, begun, gone = BEGAN + timedelta(seconds=30 * number), dice.random() < 0.25, dice.random() < 0.05
    deleted_at = at + timedelta(days=1) if gone else None
    where = {"origin": origin, "project": 1 + number % count, "task": number}
    sha256 = hashlib.sha256(str(number).encode()).hexdigest()
    photo = {"image_sha256": sha256, "image_url": f"{_PHOTO}{number}.jpg"}
    found: list[tuple[Table, dict[str, Any]]] = [(tasks, where | photo | {"seen": SEEN})]
    own = {"annotation": number, "annotator": 3, "received_at": at, "updated_at": at, "created_at": at}
    own |= {"deleted_at": deleted_at, "prediction": number if begun else None}
    found.append((annotations, where | own))
    if begun:
        suggested = {"regions": 1, "width": 1000, "height": 1000, "offered": [_candidate(dice, 1, dice.masks()[0])]}
        found.append((predictions, {"origin": origin, "prediction": number} | suggested))
    for place, outcome in enumerate(_OUTCOMES):
        preannotated = begun and not place
        prompt = None if outcome == "drawn" or preannotated else dice.hex()
        row = where | photo | {"annotation": number, "region": dice.hex()[:10], "width": 1000, "height": 1000}
        row |= {"labels": [dice.choice(LABELS)], "mask": dice.masks()[0], "outcome": outcome, "annotator": 3}
        row |= {"updated_at": at, "deleted_at": deleted_at, "preannotated": preannotated, "prompt_id": prompt}
        row |= {"rank": None if outcome == "drawn" else dice.choice((1, 1, 2, 3)), "seconds": 3.0 if prompt else None}
        row |= {"iou_with_offer": None if outcome == "drawn" else 0.9}
        found.append((regions, row))
        if prompt is not None:
            found.append((offers, _offer(where, sha256, prompt, at - timedelta(seconds=20 - place), dice)))
    if number % 2:
        found.append((offers, _offer(where, sha256, dice.hex(), at - timedelta(seconds=5), dice)))
    return found


def _offer(where: dict[str, Any], sha256: str, prompt: str, at: datetime, dice: _Dice) -> dict[str, Any]:
    row = {"prompt_id": prompt, "image_sha256": sha256, "width": 1000, "height": 1000, "milliseconds": 100.0}
    row |= {"prompt": {"clicks": [[500.0, 500.0, True]], "boxes": [], "text": None}, "model_version": "v"}
    return (
        where
        | row
        | {"created_at": at, "candidates": [_candidate(dice, *each) for each in enumerate(dice.masks(), start=1)]}
    )


def _candidate(dice: _Dice, rank: int, mask: str) -> dict[str, Any]:
    own = {"region": dice.hex()[:10], "label": dice.choice(LABELS), "mask": mask}
    return {"rank": rank, "level": rank, "score": dice.random()} | own


def _copy(connection: Connection, table: Table, times: int, count: int) -> None:
    """Add copies of all rows, each with numbers, hashes and times of its own."""
    series = select(literal(1).label("k")).cte("series", recursive=True)
    series = series.union_all(select(series.c.k + 1).where(series.c.k < times))
    moved = [_moved(connection, column, series.c.k, count) for column in table.columns]
    copies = select(*moved).select_from(table.join(series, literal(True)))
    connection.execute(insert(table).from_select([column.name for column in table.columns], copies))


def _moved(connection: Connection, column: Column[Any], k: ColumnElement[int], count: int) -> ColumnElement[Any]:
    """A column of the k-th copy."""
    if column.name in ("task", "annotation", "prediction"):
        return column + _BASE * k
    if column.name == "project":
        return 1 + (column.table.c.task + _BASE * k) % count
    sqlite = connection.dialect.name == "sqlite"
    if column.name == "image_sha256":
        other = func.convert_to(cast(_BASE + k, String), "UTF8") if not sqlite else cast(_BASE + k, String)
        return cast(other.op("||")(func.substr(type_coerce(column, LargeBinary), 5)), LargeBinary)
    if column.name == "prompt_id":
        prefix = func.printf("%08x", k) if sqlite else func.lpad(func.to_hex(k), 8, "0")
        return prefix.op("||")(func.substr(column, 9))
    if column.name == "image_url":
        return literal(_PHOTO).op("||")(cast(column.table.c.task + _BASE * k, String)).op("||")(".jpg")
    if column.name in ("updated_at", "created_at", "received_at"):
        if not sqlite:
            return column + func.make_interval(0, 0, 0, 0, 0, 0, 30 * _BASE * k)
        later = func.printf("+%d seconds", 30 * _BASE * k)
        return func.strftime("%Y-%m-%d %H:%M:%f000", type_coerce(column, String), later)
    return column


def _teach(connection: Connection, origin: str, count: int, of_model: FromModel) -> None:
    """A lesson of each of the newest regions of every project."""
    columns = (*regions.c["task", "annotation", "region"], regions.c.updated_at)
    for project in range(1, count + 1):
        mine = (of_project(regions, ProjectKey(origin, project)), regions.c.deleted_at.is_(None))
        newest = [column.desc() for column in (regions.c.updated_at, *regions.primary_key)]
        rows = connection.execute(select(*columns).where(*mine).order_by(*newest).limit(_TAUGHT)).mappings().all()
        taught = zip(rows, cycle(of_model.lessons))  # as many as there are rows
        connection.execute(insert(lesson_sets), {"origin": origin, "project": project, "model": of_model.digest})
        number = select(lesson_sets.c.id).where(lesson_sets.c.project == project)
        shared = {"lesson_set": connection.scalar(number)}
        connection.execute(insert(lessons), [shared | {**row, "lesson": lesson} for row, lesson in taught])


def rows_as_posted() -> list[dict[str, Any]]:
    """Eight squares on the sample photo, as the editor sends them."""
    found = []
    for place in range(REGIONS):
        mask = _square(place)
        value = {"format": "rle", "rle": encode_brush_rle(*crop_mask(mask), mask.shape), "brushlabels": [LABELS[place]]}
        row = {"id": f"r{place}", "type": "brushlabels", "from_name": "mask", "to_name": "image", "value": value}
        found.append(row | {"original_width": _SIZE[1], "original_height": _SIZE[0]})
    return found


def from_model() -> FromModel:
    """What the default model learns from a few squares, and what it answers clicks on the samples with."""
    model, version = load_model()
    taught, suggested = list[bytes](), list[list[str]]()
    dice = random.Random(0)
    for sample in sorted(SAMPLES.glob("*.jpg")):
        photo = decode_photo(sample.read_bytes(), max_bytes=10**8, max_pixels=10**8).rgb
        embedding = model.encode(photo)
        if sample == ROCKET:
            squares = [(_square(place), LABELS[place]) for place in range(REGIONS)]
            taught = [make_lesson(model, embedding, mask, label=label).to_bytes() for mask, label in squares]
        for _ in range(_CLICKS):
            click = Click(dice.uniform(0, photo.shape[1] - 1), dice.uniform(0, photo.shape[0] - 1))
            found = predict_candidates(model, embedding, Prompt((click,)))
            suggested.append([encode_coco_rle(each.crop, each.bbox, each.size)["counts"] for each in found])
    return FromModel(version.digest, taught, [each for each in suggested if each])


def _square(place: int) -> np.ndarray:
    mask = np.zeros(_SIZE, bool)
    mask[40 * place : 40 * place + 60, 60 * place : 60 * place + 90] = True
    return mask
