"""A PostgreSQL server of the tests' own: one a session, in a temporary folder, reached through a socket file."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path

import sqlalchemy

_PLACES = [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/opt").glob("*/bin")]


def program(name: str) -> str | None:
    """A PostgreSQL program, on the path or where Debian keeps it."""
    return shutil.which(name) or next((found for place in _PLACES if (found := shutil.which(name, path=place))), None)


class Server:
    """Made and started at once; may be stopped and started again."""

    def __init__(self) -> None:
        # not pytest's folder: a socket's path has to be short, and the server's user has to get there
        self._folder = Path(tempfile.mkdtemp(prefix="semsam-postgres-"))
        self._user = "postgres" if os.geteuid() == 0 else None  # the server refuses to be root
        if self._user:
            shutil.chown(self._folder, self._user)
        #: ends with `?host=...`: a database's name goes before that
        self.url = f"postgresql://tests@/?host={self._folder}"
        arguments = ("--pgdata", self._folder / "data", "--username", "tests", "--auth", "trust", "--no-sync")
        self._call(program("initdb"), *arguments)
        self.start()

    def start(self) -> None:
        options = f"-c listen_addresses='' -c unix_socket_directories={self._folder} -c fsync=off"
        self._control("--log", self._folder / "log", "--options", options, "start")

    @property
    def pid(self) -> int:
        """Of its first process, the parent of the others."""
        return int((self._folder / "data" / "postmaster.pid").read_text().split()[0])

    def stop(self) -> None:
        """As a crash does it: connections are cut, nothing is finished."""
        self._control("--mode", "immediate", "stop")

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _control(self, *arguments: object) -> None:
        self._call(program("pg_ctl"), "--pgdata", self._folder / "data", "--wait", *arguments)

    def _call(self, *arguments: object) -> None:
        command = [str(argument) for argument in arguments]
        quiet = subprocess.DEVNULL
        subprocess.run(command, check=True, user=self._user, cwd=self._folder, stdout=quiet, stderr=quiet)


def new_database(server: str) -> str:
    """URL of an empty database on the server."""
    name = f"t{uuid.uuid4().hex}"
    url = sqlalchemy.make_url(server).set(drivername="postgresql+psycopg", database="postgres")
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return server.replace("@/", f"@/{name}")
