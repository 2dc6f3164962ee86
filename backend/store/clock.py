"""Times of our own clock that lie in the future, because it was set back: they would keep what they stand for waiting
until the clock has caught up.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from sqlalchemy import func, or_, select, update

from backend.store.database import Store
from backend.store.tables import annotations as annotation_rows
from backend.store.tables import inbox, jobs, predictions, projects, tasks

log = logging.getLogger(__name__)

#: What the clocks of several machines may differ by.
SLACK = timedelta(minutes=2)
#: The longest that a job may be held for: its lease ends in the future.
LONGEST_LEASE = timedelta(hours=1)

_TIMES = (
    *(annotation_rows.c.received_at, annotation_rows.c.deleted_at),
    *(tasks.c.tried_at, tasks.c.deleted_at, predictions.c.tried_at, inbox.c.received_at),
    *(projects.c.updated_at, projects.c.deleted_at, projects.c.missed_at, projects.c.synced_at),
    *(jobs.c.requested_at, jobs.c.started_at, jobs.c.finished_at, jobs.c.lease_until),
)


def bring_back(store: Store, now: datetime) -> int:
    """Make times of the future those of now; how many rows had any. Raises StoreError."""
    late = {
        column: column > now + SLACK + (LONGEST_LEASE if column is jobs.c.lease_until else timedelta())
        for column in _TIMES
    }
    of_table = {column.table: [each for each in _TIMES if each.table is column.table] for column in _TIMES}
    with store.read() as connection:
        counted = {
            table: connection.scalar(select(func.count()).select_from(table).where(or_(*(late[c] for c in columns))))
            for table, columns in of_table.items()
        }
    found = sum(number or 0 for number in counted.values())
    if found:
        with store.write() as connection:
            for column, condition in late.items():
                connection.execute(update(column.table).where(condition).values({column.name: now}))
        log.warning(
            "%d rows of the store are of a later time than now: the clock was set back; they count as of now", found
        )
    return found
