"""Which Label Studio server each project said that it lives on, so that every backend on this store knows it.

Label Studio posts /setup to one backend. Tokens that came with it are not kept: set them in each backend's environment.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, func, select

from backend.store.database import Store
from backend.store.statements import upsert
from backend.store.tables import introductions

MOST = 4096  #: that are read


class Introductions:
    """What this backend heard goes into the store, and what others heard comes out. For one thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: tuple[int, int] = 0, 0
        self._known: dict[str, str] = {}

    def save(self, heard: Mapping[str, str]) -> None:
        """Save what projects' servers call themselves, by name of the project. Raises StoreError."""
        with self._store.write() as connection:
            for name, hostname in heard.items():
                _save(connection, name, hostname)
        self._known |= heard

    def news(self) -> dict[str, str]:
        """The same of what others heard, as far as it is new. Raises StoreError."""
        changes = select(func.count(), func.coalesce(func.sum(introductions.c.changes), 0))
        with self._store.read() as connection:
            seen = tuple(connection.execute(changes).one())
            if seen == self._seen:
                return {}
            rows = connection.execute(select(introductions).limit(MOST)).all()
        self._seen = seen
        news = {row.project_name: row.hostname for row in rows if self._known.get(row.project_name) != row.hostname}
        self._known |= news
        return news


def _save(connection: Connection, project_name: str, hostname: str) -> None:
    """Only news is written: Label Studio says the same again and again."""
    statement = upsert(
        connection,
        introductions,
        lambda new: {"hostname": new.hostname, "changes": introductions.c.changes + 1},
        where=lambda new: introductions.c.hostname != new.hostname,
    )
    connection.execute(statement, {"project_name": project_name, "hostname": hostname, "changes": 1})
