"""What the store holds, counted rightly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.finetuning import jobs
from backend.records import Preannotated, ProjectKey
from backend.service.status import POINTS, Status, StatusReader, read_status
from backend.store.database import Store
from tests.backend.status_data import NOW, history, judged, preannotated
from tests.backend.stored import ORIGIN, begin, fill, project

on_both = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    opened = Store.open(database)
    yield opened
    opened.close()


@on_both
def test_the_status_counts_what_was_taken_of_what_was_offered(store: Store) -> None:
    regions = history(200)
    fill(store, project(), regions)
    status = read_status(store)
    (mine,) = status.projects
    outcomes = [each.outcome for each in regions]
    assert mine.counts.by_outcome == {name: outcomes.count(name) for name in mine.counts.by_outcome}
    assert mine.accepted == outcomes.count("accepted") / 200
    offered = [each for each in regions if each.rank]
    kept = [each for each in offered if each.outcome in ("accepted", "relabelled")]
    assert status.overall is not None
    assert status.overall.masks == len(offered)
    assert status.overall.level == sum(each.rank == 1 for each in offered) / len(offered)
    assert status.overall.label == sum(each.outcome == "accepted" for each in kept) / len(kept)
    assert sum(point.masks for point in status.curve) == len(offered) and len(status.curve) <= POINTS
    assert all(a.until <= b.since for a, b in zip(status.curve, status.curve[1:], strict=False))
    first, last = status.curve[0], status.curve[-1]
    assert (first.level or 1) < (last.level or 0) and (first.seconds or 0) > (last.seconds or 9)


@on_both
def test_what_was_there_before_any_click_is_told_apart(store: Store) -> None:
    fill(store, project(), [*history(40), *preannotated(3)])
    begin(store, project().key, range(1000, 1003), regions=10)
    status = read_status(store)
    assert status.projects[0].counts.regions == 40 + 27
    assert status.projects[0].counts.preannotated == Preannotated(3, accepted=18, corrected=6, relabelled=3, deleted=3)
    clicked = [each for each in history(40) if each.rank]
    assert status.overall is not None and status.overall.masks == len(clicked)


def test_an_empty_store_has_an_empty_status(store: Store) -> None:
    assert read_status(store) == Status()


def test_marked_deletions_and_deleted_projects_do_not_count(store: Store) -> None:
    from sqlalchemy import update

    from backend.store.tables import projects, regions
    from backend.store.totals import changing

    fill(store, project(), history(20))
    with store.write() as connection, changing(connection, project().key, [1]):
        connection.execute(update(regions).where(regions.c.task == 1).values(deleted_at=NOW))
    status = read_status(store)
    assert status.projects[0].counts.regions == 16
    assert sum(point.masks for point in status.curve) == len([e for e in history(20) if e.rank and e.key.task > 1])
    with store.write() as connection:
        connection.execute(update(projects).values(deleted_at=NOW))
    assert read_status(store).projects == ()


def test_the_queue_and_the_newest_judgement_are_told(store: Store) -> None:
    assert read_status(store).last_gate is None
    judged(store, 1, promoted=False)
    judged(store, 1, promoted=True)
    jobs.request(store, ProjectKey(ORIGIN, 1), "button", at=NOW)
    status = read_status(store)
    assert [(job.state, job.trigger) for job in status.jobs][:2] == [("queued", "button"), ("promoted", "corrections")]
    assert status.last_gate == status.jobs[1]


def test_the_status_is_kept_for_a_while_and_without_the_database_it_says_why_it_is_not_known(tmp_path: Path) -> None:
    opened = Store.open(f"sqlite:///{tmp_path}/gone.db")
    fill(opened, project(), history(20))
    reader, hasty = StatusReader(opened, tmp_path, keep_s=60), StatusReader(opened, tmp_path, keep_s=0)
    assert reader.status() == hasty.status() == read_status(opened)
    opened.close()
    for file in tmp_path.glob("gone.db*"):
        file.unlink()
    (tmp_path / "gone.db").write_bytes(b"not a database" * 100)
    assert "gone.db" in hasty.status().problem
    assert reader.status().projects  # kept
    opened.close()
