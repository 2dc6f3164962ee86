"""Running totals are what a count of everything would say, whatever has come in."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, delete, select, update

from backend.corrections.archive import PhotoArchive
from backend.corrections.inbox import enqueue, process_inbox
from backend.corrections.photos import fetch_photos
from backend.corrections.prediction_outcomes import judge_preannotated
from backend.corrections.queries import count
from backend.corrections.suggestions import save_suggestions
from backend.corrections.updates import GONE_PIECE
from backend.errors import NotFound
from backend.label_studio.events import parse_webhook
from backend.records import OUTCOMES, Counts, Preannotated
from backend.store.database import Store
from backend.store.tables import annotations, offers, predictions, regions, tasks, totals
from semsam_model.errors import Stopped
from tests.backend.annotations import KEY, ORIGIN, annotation, answered, brush_row, event, square
from tests.backend.stored import photo


class Studio:
    """As much of Label Studio's client as fetching asks for: photos by their address, predictions by number."""

    def project_on(self, origin: str, project: int) -> str:
        return f"{project}.1"

    def fetch_image(self, value: str, *, task_id: int, **_: Any) -> bytes:
        return photo(task_id % 3, size=(40, 60))  # three photos for six tasks

    def get_prediction(self, number: int, **_: Any) -> dict[str, Any]:
        if number % 3 == 0:
            raise NotFound(f"prediction {number}")
        rows = [preannotated_row(f"p{place}", place) for place in range(3)]
        return annotation(number, rows, model_version="mobile-1")


def preannotated_row(region: str, place: int) -> dict[str, Any]:
    meta = {"prompt_id": f"photo-{place}", "candidate": 1, "level": 1, "model": "mobile-1", "preannotated": True}
    return brush_row(region, square(4 * place, 2, 6), meta=meta, origin="prediction")


def counted(connection: Connection) -> Counts:
    """Everything, counted in plain Python from the rows."""
    every = [list(connection.execute(select(table))) for table in (regions, annotations, offers, predictions)]
    all_regions, all_annotations, all_offers, all_predictions = every
    live = [row for row in all_regions if row.deleted_at is None]
    usable = [row for row in live if row.outcome is not None]
    outcomes = Counter(row.outcome for row in usable)
    there = [row for row in all_annotations if row.deleted_at is None and not row.cancelled]
    accepted = {row.prompt_id for row in live}
    rejected = [
        offer
        for offer in all_offers
        if offer.prompt_id not in accepted
        and any(a.task == offer.task and a.updated_at and a.updated_at >= offer.created_at for a in there)
    ]
    read = {row.prediction: row for row in all_predictions if row.problem is None}
    begun = [row for row in there if row.prediction is not None]
    known = {row.annotation: read[row.prediction].regions for row in begun if row.prediction in read}
    known = {number: suggested for number, suggested in known.items() if suggested}
    before = [row for row in live if row.preannotated]
    became = Counter(row.outcome for row in before if row.outcome in ("accepted", "corrected", "relabelled"))
    kept = sum(row.annotation in known for row in before)
    return Counts(
        regions=len(usable),
        images=len({row.image_sha256 for row in usable} - {None}),
        by_outcome={name: outcomes[name] for name in OUTCOMES},
        rejected=len(rejected),
        malformed=len(live) - len(usable),
        deleted=len(all_regions) - len(live),
        preannotated=Preannotated(
            annotations=len(known),
            **became,
            deleted=max(0, sum(known.values()) - kept),
            unread=sum(row.prediction not in read for row in begun),
        ),
    )


def put(store: Store, body: dict[str, Any]) -> None:
    enqueue(store, parse_webhook(body).to_event(ORIGIN))
    process_inbox(store)


def some_annotation(store: Store, dice: random.Random, seconds: float) -> dict[str, Any]:
    """One of a dozen annotations of six tasks, new or changed: drawn, accepted, pre-annotated, unreadable regions."""
    number = dice.randrange(12)
    task, rows = number % 6, [brush_row("drawn", square(20, 10, 8))]
    if dice.random() < 0.5:
        answer, suggested = answered([square(1, 1, 9), square(30, 20, 9)], task=task, at_s=seconds - 1)
        rows += dice.sample(suggested, dice.randrange(3))
        suggestion = answer.suggestion()
        assert suggestion is not None
        with store.write() as connection:
            save_suggestions(connection, [replace(suggestion, key=KEY)])
    if dice.random() < 0.3:
        rows.append({"id": "odd", "type": "brushlabels", "value": {"format": "rle", "rle": "none"}})
    more: dict[str, Any] = {"was_cancelled": dice.random() < 0.1}
    if number % 2:
        rows += [preannotated_row(f"p{place}", place) for place in range(dice.randrange(4))]
        more["parent_prediction"] = number
    return annotation(number, rows, task=task, updated=seconds, **more)


def test_totals_stay_what_a_count_of_everything_says(store: Store, tmp_path: Path) -> None:
    dice, studio, photos = random.Random(5), Studio(), PhotoArchive(tmp_path / "photos")
    met: set[str] = set()
    for step in range(60):
        seconds, kind = 10.0 * step, dice.random()
        if kind < 0.6:
            put(store, event("ANNOTATION_UPDATED", annotation=some_annotation(store, dice, seconds)))
        elif kind < 0.7:
            gone = [{"id": number} for number in dice.sample(range(14), 2)]
            put(store, event("ANNOTATIONS_DELETED", annotations=gone))
        elif kind < 0.75:
            put(store, event("TASKS_DELETED", tasks=[{"id": dice.randrange(6)}]))
        elif kind < 0.9:
            fetch_photos(store, studio, photos, KEY, retry=True)  # type: ignore[arg-type]
        else:
            judge_preannotated(store, studio, KEY, retry=True)  # type: ignore[arg-type]
        with store.read() as connection:
            expected = counted(connection)
        assert count(store, KEY) == expected, step
        met |= {name for name, number in (vars(expected) | vars(expected.preannotated)).items() if number}
    assert {"images", "rejected", "malformed", "deleted", "annotations", "unread"} <= met
    with store.write() as connection:  # a store from before there were totals
        connection.execute(delete(totals))
    assert count(store, KEY) == expected


def test_a_store_that_was_never_counted_is_counted_when_it_is_opened(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"sqlite:///{tmp_path}/semsam.db"
    old = Store.open(url)
    put(old, event("ANNOTATION_CREATED", annotation=annotation(1, [brush_row("a", square(1, 1, 9))])))
    with old.write() as connection:
        connection.execute(update(totals).values(counted=False, drawn=99))
    old.close()
    with caplog.at_level("INFO"):
        new = Store.open(url)
    assert "counting project 7 of http://ls:8080, 1 of 1" in caplog.text
    with new.read() as connection:
        assert connection.execute(select(totals.c.drawn, totals.c.counted)).one() == (1, True)
    new.close()


class Cut(BaseException):
    """The process ends."""


def test_a_large_deletion_is_worked_in_a_piece_at_a_time_and_again_where_it_was_cut_off(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = 2 * GONE_PIECE + 5
    made = [annotation(number, [brush_row("a", square(1, 1, 9))], task=number) for number in range(many)]
    for each in made:
        put(store, event("ANNOTATION_CREATED", annotation=each))
    gone = event("ANNOTATIONS_DELETED", annotations=[{"id": number} for number in range(many)])
    enqueue(store, parse_webhook(gone).to_event(ORIGIN))
    written: list[int] = []
    write = Store.write

    @contextmanager
    def watched(self: Store) -> Iterator[Connection]:
        with write(self) as connection:
            yield connection
        with self.read() as connection:
            deleted = connection.scalars(select(regions.c.task).where(regions.c.deleted_at.is_not(None))).all()
        written.append(len(deleted))
        if len(written) == 1:
            raise Cut

    monkeypatch.setattr(Store, "write", watched)
    with pytest.raises(Cut):
        process_inbox(store)
    process_inbox(store)
    assert written == [GONE_PIECE, GONE_PIECE, 2 * GONE_PIECE, many]
    assert count(store, KEY).deleted == many and count(store, KEY).regions == 0


def test_photos_are_saved_many_at_a_time_and_what_was_fetched_before_a_stop_stays(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(45):
        put(
            store,
            event("ANNOTATION_CREATED", annotation=annotation(number, [brush_row("a", square(1, 1, 9))], task=number)),
        )
    photos, studio, writes = PhotoArchive(tmp_path / "photos"), Studio(), list[int]()
    monkeypatch.setattr("backend.corrections.photos._TOGETHER_S", 1e9)
    write = Store.write

    @contextmanager
    def counted(self: Store) -> Iterator[Connection]:
        writes.append(1)
        with write(self) as connection:
            yield connection

    monkeypatch.setattr(Store, "write", counted)
    asked = iter([False] * 25)
    with pytest.raises(Stopped):
        fetch_photos(store, studio, photos, KEY, should_stop=lambda: next(asked, True))  # type: ignore[arg-type]
    assert len(writes) == 2
    with store.read() as connection:
        kept = connection.scalars(select(tasks.c.task).where(tasks.c.image_sha256.is_not(None))).all()
    assert sorted(kept) == list(range(25))
    assert fetch_photos(store, studio, photos, KEY) == (20, 0)  # type: ignore[arg-type]
    assert len(writes) <= 2 + 2
