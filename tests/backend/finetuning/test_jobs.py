"""Jobs: one open a project, claimed under a lease, brought back when their worker dies."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import insert, update

from backend.errors import StoreError
from backend.finetuning import jobs
from backend.finetuning.jobs import RECENT, REPORT, clear_job_files, job_folder
from backend.finetuning.worker import request_due
from backend.records import ProjectKey
from backend.settings import Settings
from backend.store.database import Store
from backend.store.tables import annotations, projects, regions
from backend.store.totals import changing

KEY, OTHER = ProjectKey("http://ls:8080", 1), ProjectKey("http://ls:8080", 2)
on_both = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
LEASE = timedelta(seconds=60)
NOW = datetime.now(UTC)


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    store = Store.open(database)
    yield store
    store.close()


@on_both
def test_a_project_has_one_open_job_whoever_asks_and_another_when_it_is_done(store: Store) -> None:
    first, new = jobs.request(store, KEY, "button")
    again, _ = jobs.request(store, KEY, "schedule")
    assert new
    assert (again.id, again.trigger) == (first.id, "button")
    other, _ = jobs.request(store, OTHER, "button")
    assert other.id != first.id
    held = jobs.claim(store, "w", LEASE)
    assert held is not None
    assert jobs.request(store, KEY, "command")[0].id == first.id
    assert jobs.finish(store, held, "w", "refused", message="no gain")
    assert jobs.request(store, KEY, "command")[0].id != first.id
    assert [job.message for job in jobs.list_jobs(store, KEY)] == ["", "no gain"]


@on_both
def test_many_who_ask_and_many_who_claim_at_once_get_one_job_and_one_owner(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        asked = list(pool.map(lambda _: jobs.request(store, KEY, "button"), range(8)))
        claimed = list(pool.map(lambda n: jobs.claim(store, f"w{n}", LEASE), range(8)))
    assert len({job.id for job, _ in asked}) == 1
    assert sum(new for _, new in asked) == 1
    assert sum(job is not None for job in claimed) == 1


def test_the_oldest_job_comes_first_and_one_can_be_asked_for_by_number(store: Store) -> None:
    first, _ = jobs.request(store, KEY, "button")
    second, _ = jobs.request(store, OTHER, "button")
    asked = jobs.claim(store, "w", LEASE, only=second.id)
    assert asked is not None
    assert asked.id == second.id
    assert jobs.claim(store, "w", LEASE, only=second.id) is None
    rest = jobs.claim(store, "w", LEASE)
    assert rest is not None
    assert rest.id == first.id


@on_both
def test_a_lease_that_ran_out_brings_the_job_back_and_its_old_owner_changes_nothing_any_more(store: Store) -> None:
    jobs.request(store, KEY, "button")
    dead = jobs.claim(store, "dead", LEASE, at=NOW)
    assert dead is not None
    assert jobs.claim(store, "heir", LEASE, at=NOW + LEASE / 2) is None
    assert jobs.renew(store, dead, "dead", LEASE, at=NOW + LEASE / 2, step=7, stage="fine-tuning")
    assert jobs.claim(store, "heir", LEASE, at=NOW + LEASE) is None
    heir = jobs.claim(store, "heir", LEASE, at=NOW + 2 * LEASE)
    assert heir is not None
    assert (heir.id, heir.attempts, heir.step, heir.started_at) == (dead.id, 2, 7, dead.started_at)
    assert not jobs.renew(store, dead, "dead", LEASE)
    assert not jobs.finish(store, dead, "dead", "promoted")
    assert not jobs.release(store, dead, "dead")
    assert jobs.find(store, heir.id) == heir


def test_a_job_that_kills_its_workers_is_given_up(store: Store) -> None:
    job, _ = jobs.request(store, KEY, "button")
    for attempt in range(jobs.ATTEMPTS):
        assert jobs.claim(store, f"w{attempt}", LEASE, at=NOW + 2 * attempt * LEASE) is not None
    assert jobs.claim(store, "next", LEASE, at=NOW + 9 * LEASE) is None
    ended = jobs.find(store, job.id)
    assert ended.state == "failed"
    assert "died 3 times" in ended.message


def test_a_job_that_is_given_back_waits_again_and_that_is_no_attempt(store: Store) -> None:
    jobs.request(store, KEY, "button")
    for _ in range(jobs.ATTEMPTS + 2):
        held = jobs.claim(store, "w", LEASE)
        assert held is not None
        assert jobs.release(store, held, "w")


def test_a_job_that_is_not_there_is_named(store: Store) -> None:
    with pytest.raises(StoreError, match="job 12: not in the store"):
        jobs.find(store, 12)


@on_both
def test_what_ended_jobs_have_left_is_cleared_once_their_version_is_gone_but_for_the_report(
    store: Store, tmp_path: Path
) -> None:
    made: list[jobs.Job] = []
    for version in ("tiny-kept", "tiny-gone", None):
        jobs.request(store, KEY, "button")
        held = jobs.claim(store, "w", LEASE)
        assert held is not None
        jobs.finish(store, held, "w", "refused", version=version)
        made.append(held)
    made.append(jobs.request(store, KEY, "button")[0])
    kept, gone, none, queued = (job_folder(tmp_path, job) for job in made)
    for place in (kept, gone, none, queued):
        place.mkdir(parents=True)
        (place / "snapshot.jsonl").write_text("[]")
    (gone / REPORT).write_text("<p>no gain</p>")
    later = datetime.now(UTC) + 2 * RECENT
    assert clear_job_files(store, tmp_path, {"tiny-kept"}) == {}, "younger than an hour"
    would = clear_job_files(store, tmp_path, {"tiny-kept"}, dry_run=True, at=later)
    assert would == {made[1].id: 2, made[2].id: 2}
    assert all((place / "snapshot.jsonl").exists() for place in (kept, gone, none, queued))
    assert clear_job_files(store, tmp_path, {"tiny-kept"}, at=later) == would
    assert [path.name for path in gone.iterdir()] == [REPORT]
    assert not none.exists()
    assert all((place / "snapshot.jsonl").exists() for place in (kept, queued))
    assert clear_job_files(store, tmp_path, {"tiny-kept"}, at=later) == {}


def submit(store: Store, count: int, at: datetime) -> None:
    """A project with `count` usable regions that were received at this time."""
    common = {"origin": KEY.origin, "project": 1}
    with store.write() as connection:
        if not connection.execute(update(projects).values(updated_at=at)).rowcount:
            connection.execute(insert(projects).values(**common, title="", label_config="", updated_at=at))
        number = int(at.timestamp())
        connection.execute(
            insert(annotations).values(
                origin=KEY.origin, project=1, task=1, annotation=number, cancelled=False, received_at=at
            )
        )
        with changing(connection, KEY, [1]):
            for index in range(count):
                row = {"task": 1, "annotation": number, "region": str(index), "labels": [], "outcome": "drawn"}
                # Label Studio's clock may be wrong: it is ours that counts
                connection.execute(insert(regions).values(**common, **row, updated_at=NOW - timedelta(days=900)))


def test_enough_new_corrections_or_enough_time_earn_a_job(store: Store) -> None:
    hour = timedelta(hours=1)
    counted = Settings(finetune_after_corrections=3)
    submit(store, 2, NOW - 2 * hour)
    assert request_due(store, counted, NOW) == []
    submit(store, 1, NOW - hour)
    (job,) = request_due(store, counted, NOW)
    assert (job.trigger, job.key) == ("corrections", KEY)
    assert request_due(store, counted, NOW) == [], "the open job stands for all"
    held = jobs.claim(store, "w", LEASE)
    assert held is not None
    jobs.finish(store, held, "w", "refused")
    assert request_due(store, counted, NOW + hour) == [], "those were its own"

    timed = Settings(finetune_after_corrections=0, finetune_every_hours=2.0)
    assert request_due(store, timed, NOW + 3 * hour) == [], "nothing is new"
    submit(store, 1, NOW + hour)
    assert request_due(store, timed, NOW + hour) == []
    (job,) = request_due(store, timed, NOW + 3 * hour)
    assert job.trigger == "schedule"
