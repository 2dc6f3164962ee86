"""The database: SQLite in one file, or PostgreSQL by URL; transactions; migrations. What is in it: `tables`.

SQLite runs in WAL mode with every commit synced to disk; a transaction that will write takes the write lock at its
start, so it waits its turn and never fails half-way.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from backend.errors import StoreError, StoreUnavailable
from backend.settings import Settings
from backend.store.totals import recount, uncounted
from backend.store.turns import Turns

log = logging.getLogger(__name__)

BUSY_S = 10.0  #: seconds that a writer waits for another one
CONNECT_S = 3
_MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK = 0x73656D73616D  # "semsam": one process migrates a PostgreSQL database at a time


class Store:
    """One database. Safe to use from several threads and, opened by each of them, from several processes."""

    def __init__(self, engine: Engine) -> None:
        """See `open`."""
        self._engine = engine
        self._turns = Turns()
        # what stands behind the ? may be a password too
        self.name = engine.url.set(query={}).render_as_string(hide_password=True)

    @classmethod
    def open(cls, url: str) -> Store:
        """Open the database at `url`; make its tables, or migrate them to the newest schema, where needed.

        `url`: sqlite:///PATH or postgresql://user:password@host:port/name. Raises StoreError when it cannot be
        reached, read or migrated.
        """
        try:
            engine = _create_engine(make_url(url))
        except (ArgumentError, ImportError):
            # its text may hold a password
            raise StoreError(
                "database_url (SEMSAM_DATABASE_URL): expected sqlite:///PATH or"
                " postgresql://user:password@host:port/name"
            ) from None
        store = cls(engine)
        try:
            with store.write() as connection:
                if connection.dialect.name == "postgresql":
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
                config = Config()
                config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
            store._count()
        except Exception as error:
            engine.dispose()
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"database {store.name}: cannot be opened or migrated: {_reason(error)}") from error
        return store

    @property
    def dialect(self) -> str:
        """sqlite or postgresql."""
        return self._engine.dialect.name

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction: all of it, or, after an exception, nothing. Raises StoreError where the database fails."""
        with self._translated(), self._turn(), self._engine.connect() as plain:
            connection = plain.execution_options(semsam_writes=True)
            with connection.begin():
                yield connection

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent view. Keep it short. Raises StoreError where the database fails."""
        with self._translated(), self._engine.connect() as connection, connection.begin():
            yield connection

    def _count(self) -> None:
        """Count the projects that never were, as those of a store that was just migrated."""
        with self.read() as connection:
            keys = uncounted(connection)
        for number, key in enumerate(keys, start=1):
            log.info("database: counting project %s, %d of %d", key, number, len(keys))
            with self.write() as connection:
                recount(connection, key)

    @contextlib.contextmanager
    def claim(self, work: str) -> Iterator[bool]:
        """Whether this process has some work, by name, to itself until the end of the block; else another has it.

        A process that dies lets go of it. On SQLite nobody is asked: its processes are on one machine, and few. Raises
        StoreError.
        """
        if self._engine.dialect.name != "postgresql":
            yield True
            return
        with self.read() as connection:  # which the lock ends with
            query = text("SELECT pg_try_advisory_xact_lock(hashtextextended(:work, :key))")
            yield bool(connection.scalar(query, {"work": work, "key": _LOCK}))

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """On SQLite one thread writes at a time, in the order in which they came."""
        if self._engine.dialect.name != "sqlite":
            yield
            return
        try:
            with self._turns.turn(BUSY_S):
                yield
        except TimeoutError as error:
            raise StoreUnavailable(f"database {self.name}: others have been writing for long: {error}") from None

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (OperationalError, InterfaceError, PoolTimeout) as error:
            raise StoreUnavailable(f"database {self.name}: {_reason(error)}") from error
        except SQLAlchemyError as error:
            raise StoreError(f"database {self.name}: {_reason(error)}") from error

    def compact(self) -> None:
        """Give what deleted rows took back to the disk; nobody can write meanwhile. Raises StoreError."""
        with self._translated(), contextlib.closing(self._engine.raw_connection()) as connection:
            if self._engine.dialect.name == "postgresql":
                connection.driver_connection.autocommit = True  # type: ignore[union-attr]
                connection.driver_connection.execute("VACUUM FULL")  # type: ignore[union-attr]
                connection.invalidate()
            else:
                connection.driver_connection.execute("VACUUM")  # type: ignore[union-attr]

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()


def open_store(settings: Settings) -> Store:
    """The store that the settings name: `database_url`, else `semsam.db` in the data folder."""
    if settings.database_url is not None:
        return Store.open(settings.database_url.get_secret_value())
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    return Store.open(URL.create("sqlite", database=str(settings.data_dir / "semsam.db")).render_as_string())


def _create_engine(url: URL) -> Engine:
    """Raises ArgumentError for another kind of database, ImportError where the driver is missing."""
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() == "postgresql":
        return create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": CONNECT_S})
    if url.get_backend_name() != "sqlite":
        raise ArgumentError("another kind of database")
    engine = create_engine(url, connect_args={"timeout": BUSY_S})

    # the driver would begin a transaction at its first change, too late to wait for the write lock
    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: object) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("semsam_writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _reason(error: BaseException) -> str:
    """The driver's own words, in a line: SQLAlchemy's add the statement and its values."""
    cause = getattr(error, "orig", None) or error
    return " ".join(f"{type(cause).__name__}: {cause}".split())[:500]
