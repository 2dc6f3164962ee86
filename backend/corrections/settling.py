"""Suggestions lose what nobody can ask for any more: most of a store would be masks that were suggested and not taken.

A region that is submitted again is compared with its suggestion again, so the candidate that became it stays for ever.
The others of the prompt go after a day: the editor offers them no longer. A suggestion that became no region may still
wait in somebody's draft, so it stays as long as `suggestion_days` says and is deleted then: it can only have been
rejected, which the totals have counted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, not_, or_, select

from backend.records import ProjectKey
from backend.store.database import Store
from backend.store.statements import of_project
from backend.store.tables import offers, regions
from backend.store.totals import changing

BATCH = 200  #: suggestions that are settled in one transaction
TAKEN = timedelta(days=1)  #: age of suggestions that became regions, from which on the other candidates go

#: By prompt: ids and ranks of the candidates that became regions.
_Taken = dict[str, set[str | int | None]]


def settle(store: Store, untaken: timedelta, now: datetime | None = None) -> Iterator[int]:
    """Look at every suggestion that is not settled once, the oldest first; how many of each BATCH are now.

    Of one that became a region and is older than `TAKEN`, or than `untaken` where that is less, the candidates that
    became regions stay. One that did not and is older than `untaken` is deleted. Whoever takes the next number may wait
    before: nothing is locked meanwhile, and a look that is cut off is begun again another time. Raises StoreError.
    """
    now = now or datetime.now(UTC)
    named = (offers.c.created_at, offers.c.prompt_id, offers.c.origin, offers.c.project, offers.c.task)
    unsettled = select(*named).where(not_(offers.c.settled), offers.c.created_at < now - min(TAKEN, untaken))
    unsettled = unsettled.order_by(*named[:2]).limit(BATCH)
    query = unsettled
    while True:
        with store.read() as connection:
            some = connection.execute(query).all()
            taken = _taken(connection, some)
        due = [row.prompt_id for row in some if row.prompt_id in taken or row.created_at < now - untaken]
        if due:
            yield _settle(store, due, now - untaken)
        if len(some) < BATCH:
            return
        at, prompt_id = some[-1][:2]
        beyond = or_(offers.c.created_at > at, offers.c.prompt_id > prompt_id)
        query = unsettled.where(offers.c.created_at >= at, beyond)


def _settle(store: Store, due: list[str], before: datetime) -> int:
    """Settle these suggestions in one transaction, but for those that others are about to.

    before: those that became no region are deleted where they were made earlier.
    """
    mine = select(offers).where(not_(offers.c.settled), offers.c.prompt_id.in_(due))
    with store.write() as connection, contextlib.ExitStack() as stack:
        found = list(connection.execute(mine.with_for_update(skip_locked=True)))  # others have those that are locked
        keys = sorted({ProjectKey(row.origin, row.project) for row in found})
        for key in keys:
            # whoever counts a task is done with it: what has been counted as rejected stays so
            stack.enter_context(changing(connection, key, (), offers_only=True))
        taken = _taken(connection, found)
        found = [row for row in found if row.prompt_id in taken or row.created_at < before]
        for key in keys:  # rejected ones stay counted: nobody counts the project until this has ended
            with changing(connection, key, (), offers_only=True):
                pass
        # written anew at the table's end: a row that shrinks where it stands would leave its page as large as before
        connection.execute(delete(offers).where(offers.c.prompt_id.in_([row.prompt_id for row in found])))
        settled = [_settled(row, taken[row.prompt_id]) for row in found if row.prompt_id in taken]
        if settled:
            connection.execute(insert(offers), settled)
    return len(found)


def _taken(connection: Connection, suggestions: Iterable[Any]) -> _Taken:
    """What became of these suggestions; nothing of one that became no region."""
    on_them: dict[ProjectKey, set[int]] = {}
    for row in suggestions:
        on_them.setdefault(ProjectKey(row.origin, row.project), set()).add(row.task)
    found: _Taken = {}
    for key, tasks in on_them.items():
        query = select(regions.c.prompt_id, regions.c.region, regions.c.rank)
        query = query.where(of_project(regions, key), regions.c.task.in_(sorted(tasks)))
        for prompt_id, region, rank in connection.execute(query.where(regions.c.prompt_id.is_not(None))):
            found.setdefault(prompt_id, set()).update((region, rank))
    return found


def _settled(row: Row[Any], taken: set[str | int | None]) -> dict[str, Any]:
    kept = [each for each in row.candidates if {each["region"], each["rank"]} & taken]
    return {**row._mapping, "candidates": kept, "settled": True}
