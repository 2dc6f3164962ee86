"""Old suggestions lose what nobody can ask for any more: most of a store is masks that were suggested and not taken.

A region that is submitted again is compared with its suggestion again, so a suggestion stays while it may still be
taken, and what became a region stays for ever. What was suggested longer ago than that and became none goes: it can
only have been rejected, which the totals have counted.
"""

from __future__ import annotations

import contextlib
from datetime import datetime
from typing import Any

from sqlalchemy import Row, delete, insert, not_, select

from backend.records import ProjectKey
from backend.store.database import Store
from backend.store.statements import of_project
from backend.store.tables import offers, regions
from backend.store.totals import changing

BATCH = 200  #: suggestions that are settled in one transaction


def settle(store: Store, before: datetime) -> int:
    """Settle some of the oldest suggestions that were made before this time; how many: less than BATCH, the last.

    Of each, the candidates that became regions stay; one without any is deleted. Raises StoreError.
    """
    old = select(offers).where(not_(offers.c.settled), offers.c.created_at < before)
    old = old.order_by(offers.c.created_at).limit(BATCH)
    with store.write() as connection, contextlib.ExitStack() as stack:
        found = connection.execute(old.with_for_update(skip_locked=True)).all()  # others have those that are locked
        on_them: dict[ProjectKey, set[int]] = {}
        for row in found:
            on_them.setdefault(ProjectKey(row.origin, row.project), set()).add(row.task)
        for key in sorted(on_them):
            # whoever counts a task is done with it: what has been counted as rejected stays so
            stack.enter_context(changing(connection, key, (), offers_only=True))
        taken: dict[str, set[str | int | None]] = {}
        for key, tasks in on_them.items():
            query = select(regions.c.prompt_id, regions.c.region, regions.c.rank)
            query = query.where(of_project(regions, key), regions.c.task.in_(sorted(tasks)))
            for prompt_id, region, rank in connection.execute(query.where(regions.c.prompt_id.is_not(None))):
                taken.setdefault(prompt_id, set()).update((region, rank))
        for key in sorted(on_them):  # rejected ones stay counted: nobody counts the project until this has ended
            with changing(connection, key, (), offers_only=True):
                pass
        # written anew at the table's end: a row that shrinks where it stands would leave its page as large as before
        connection.execute(delete(offers).where(offers.c.prompt_id.in_([row.prompt_id for row in found])))
        settled = [_settled(row, taken[row.prompt_id]) for row in found if row.prompt_id in taken]
        if settled:
            connection.execute(insert(offers), settled)
    return len(found)


def _settled(row: Row[Any], taken: set[str | int | None]) -> dict[str, Any]:
    """taken: ids and ranks of the candidates that became regions."""
    kept = [each for each in row.candidates if {each["region"], each["rank"]} & taken]
    return {**row._mapping, "candidates": kept, "settled": True}
