"""A clock that was set back: what the store noted in the future waits for nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import select, update

from backend.corrections.inbox import enqueue, process_inbox
from backend.finetuning import jobs
from backend.label_studio.events import parse_webhook
from backend.store.clock import SLACK, bring_back
from backend.store.database import Store
from backend.store.tables import annotations as annotation_rows
from backend.store.tables import jobs as job_rows
from backend.store.tables import tasks
from tests.backend.annotations import KEY, ORIGIN, annotation, brush_row, event, square

LEASE = timedelta(minutes=1)


def test_times_of_the_future_become_those_of_now_and_others_stay(store: Store) -> None:
    now = datetime.now(UTC)
    tomorrow, soon = now + timedelta(days=1), now + SLACK / 2
    for number in (1, 2):
        body = annotation(number, [brush_row("a", square(1, 1, 5))], task=number)
        enqueue(store, parse_webhook(event("ANNOTATION_CREATED", annotation=body)).to_event(ORIGIN))
    process_inbox(store)
    jobs.request(store, KEY, "button", tomorrow)
    assert jobs.claim(store, "dead", LEASE, at=tomorrow) is not None
    with store.write() as connection:
        connection.execute(update(tasks).where(tasks.c.task == 1).values(tried_at=tomorrow))
        connection.execute(update(tasks).where(tasks.c.task == 2).values(tried_at=soon))
        late = annotation_rows.c.annotation == 1
        connection.execute(update(annotation_rows).where(late).values(received_at=tomorrow))
    assert jobs.claim(store, "other", LEASE, at=now) is None
    assert bring_back(store, now) == 3
    assert bring_back(store, now) == 0
    with store.read() as connection:
        assert set(connection.scalars(select(tasks.c.tried_at))) == {now, soon}
        assert max(connection.scalars(select(annotation_rows.c.received_at))) <= datetime.now(UTC)
    taken = jobs.claim(store, "other", LEASE, at=now + LEASE)
    assert taken is not None and taken.worker == "other"
    assert bring_back(store, now) == 0, "a lease ends in the future"
    with store.read() as connection:
        assert connection.scalar(select(job_rows.c.lease_until)) == now + 2 * LEASE
