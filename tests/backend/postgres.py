"""A PostgreSQL server of the tests' own: one a session, in a temporary folder, reached through a socket file."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy

_PLACES = [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/opt").glob("*/bin")]


def program(name: str) -> str | None:
    """A PostgreSQL program, on the path or where Debian keeps it."""
    return shutil.which(name) or next((found for place in _PLACES if (found := shutil.which(name, path=place))), None)


@contextlib.contextmanager
def running() -> Iterator[str]:
    """URL of a running server, which ends with `?host=...`: a database's name goes before that."""
    user = "postgres" if os.geteuid() == 0 else None  # the server refuses to be root
    folder = Path(tempfile.mkdtemp(prefix="semsam-postgres-"))
    if user:
        shutil.chown(folder, user)

    def call(*arguments: object) -> None:
        command = [str(argument) for argument in arguments]
        subprocess.run(command, check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    control = (program("pg_ctl"), "--pgdata", folder / "data")
    options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
    try:
        call(program("initdb"), "--pgdata", folder / "data", "--username", "tests", "--auth", "trust", "--no-sync")
        call(*control, "--wait", "--log", folder / "log", "--options", options, "start")
        try:
            yield f"postgresql://tests@/?host={folder}"
        finally:
            call(*control, "--wait", "--mode", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def new_database(server: str) -> str:
    """URL of an empty database on the server."""
    name = f"t{uuid.uuid4().hex}"
    url = sqlalchemy.make_url(server).set(drivername="postgresql+psycopg", database="postgres")
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return server.replace("@/", f"@/{name}")
