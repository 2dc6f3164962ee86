"""gunicorn's worker, but a request reaches a thread when it has arrived: whoever sends slowly, or nothing, holds none.

One thread collects what arrives on all connections. A request of up to WHOLE bytes is handed to a thread when all of it
is there; of a larger one, or one of unknown length, the beginning, and few of those are read at once, so that some
threads are free for short requests whatever comes. A connection that was answered for the last time is read on by the
same thread until its client has closed it, for a limited time. Written against the worker of gunicorn 27.
"""

from __future__ import annotations

import errno
import re
import resource
import select
import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from gunicorn.workers.gthread import TConn, ThreadWorker

HEAD = 64 * 2**10  #: bytes in which a request's head must end
WHOLE = 2**20
LARGE = 16  #: larger requests, and those of unknown length, whose bodies are read at once
CONNECTIONS = 4096  #: open at once; beyond, the one that has been silent for longest goes
PATIENCE_S = 15.0  #: for a request to arrive, and
BYTES_PER_S = 20_000  #: so much more time for what has arrived
LEAVE_S = 5.0  #: for a client to close a connection that was answered for the last time, and
LEAVE_BYTES = 64 * 2**20  #: so much that it may send meanwhile
_PIECE = 256 * 2**10
_SEND_S = 30  #: for a client to take something of its answer
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,15})[ \t]*\r\n", re.IGNORECASE)
_UNKNOWN = re.compile(rb"\r\n(transfer-encoding|expect):", re.IGNORECASE)


@dataclass(frozen=True)
class Arrival:
    """How far a request has arrived."""

    missing: int = 0  #: bytes that are to arrive before it goes to a thread
    is_large: bool = False  #: its body is, or of unknown length
    rest: int | None = None  #: bytes of a large body that are not there; None: nobody knows


def look_at(arrived: bytes | bytearray) -> Arrival:
    """Nothing is missing also where the head cannot be made out: the thread says so."""
    end = arrived.find(b"\r\n\r\n", 0, HEAD)
    if end < 0:
        return Arrival(int(len(arrived) < HEAD))
    head = bytes(arrived[: end + 2])
    if _UNKNOWN.search(head):
        return Arrival(is_large=True)
    found = _LENGTH.search(head)
    length = int(found[1]) if found else 0
    rest = end + 4 + length - len(arrived)
    return Arrival(max(0, rest - max(0, length - WHOLE)), length > WHOLE, max(0, rest))


def allow_connections(most: int = CONNECTIONS) -> int:
    """How many connections the system lets this process have open, up to `most`; its own limit is raised to that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most + 200  # files, and connections of our own
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return most if soft == resource.RLIM_INFINITY else max(16, min(most, soft - 200))


def _received(client: socket.socket) -> bytes | None:
    """What has come; None where nothing has yet, nothing at all where nothing more will."""
    try:
        return client.recv(_PIECE)
    except BlockingIOError:
        return None
    except OSError:
        return b""


class _Connection(TConn):
    """With what has arrived of the next request."""

    def __init__(self, worker: ArrivalWorker, client: socket.socket, address: Any, server: Any) -> None:
        super().__init__(worker.cfg, client, address, server)
        self._worker = worker

    def close(self, graceful: bool = False) -> None:
        """graceful: it was answered, see `ArrivalWorker.leave`."""
        if graceful:
            self._worker.leave(self)
        else:
            super().close()

    def begin(self) -> None:
        self.arrived = bytearray()
        self.began = time.monotonic()
        self.arrival = Arrival()
        self.reads_large = False

    @property
    def deadline(self) -> float:
        return self.began + PATIENCE_S + len(self.arrived) / BYTES_PER_S


class _RestOfRequest:
    """Stands in for the socket while a thread reads what is left of a request, for a limited time."""

    def __init__(self, connection: _Connection, on_end: Callable[[], None]) -> None:
        """on_end: called when the rest of the body has been read, if it is known how much that is."""
        self._socket = connection.sock
        self._until = connection.deadline
        self._rest = connection.arrival.rest
        self._on_end = on_end

    def recv(self, size: int) -> bytes:
        """Raises ConnectionResetError when the time is over."""
        left = self._until - time.monotonic()
        ready = select.poll()
        ready.register(self._socket, select.POLLIN)
        if left <= 0 or not ready.poll(1000 * left):
            raise ConnectionResetError(errno.ECONNRESET, "the request did not arrive in time")
        data: bytes = self._socket.recv(size)
        self._until += len(data) / BYTES_PER_S
        if self._rest:
            self._rest -= len(data)
            if self._rest <= 0:
                self._on_end()
        return data


class ArrivalWorker(ThreadWorker):
    """See above."""

    def init_process(self) -> None:
        self._arriving: dict[socket.socket, _Connection] = {}  #: in the order in which their requests began
        self._held: deque[_Connection] = deque()  #: large ones that wait for others
        self._leaving: dict[socket.socket, _Connection] = {}  #: in the order in which they were answered
        self._large = 0
        super().init_process()

    # ---- the thread that collects

    def accept(self, listener: socket.socket) -> None:
        try:
            client, address = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._drop_longest_silent()
            elif error.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK):
                raise
            return
        self.nr_conns += 1
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_S, 0))
        self._collect(_Connection(self, client, address, listener.getsockname()))
        if self.nr_conns >= self.worker_connections:
            self._drop_longest_silent()

    def on_client_socket_readable(self, conn: _Connection, client: socket.socket) -> None:
        """The next request on a connection that was kept."""
        self.poller.unregister(client)
        self.keepalived_conns.remove(conn)
        self._collect(conn)
        self._more(conn, client)

    def murder_pending(self) -> None:
        now = time.monotonic()
        for conn in [each for each in self._arriving.values() if each.deadline < now]:
            self._drop(conn)
        while self._held and self._held[0].deadline < now:
            self._close(self._held.popleft())
        for conn in [each for each in self._leaving.values() if each.timeout < now]:
            self._left(conn)

    def _collect(self, conn: _Connection) -> None:
        conn.begin()
        conn.sock.setblocking(False)
        self._arriving[conn.sock] = conn
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._more, conn))

    def _more(self, conn: _Connection, client: socket.socket) -> None:
        data = _received(client)
        if data is None:
            return
        if not data:
            self._drop(conn)
            return
        conn.arrived += data
        conn.arrival = look_at(conn.arrived)
        if conn.arrival.missing:
            return
        self._forget(conn)
        if conn.arrival.is_large and self._large >= LARGE:
            self._held.append(conn)
        else:
            self._hand_over(conn)

    def _hand_over(self, conn: _Connection) -> None:
        conn.reads_large = conn.arrival.is_large
        self._large += conn.reads_large
        conn.data_ready = True
        self.enqueue_req(conn)

    def _large_read(self, conn: _Connection) -> None:
        """Its body has been read, or never will be."""
        if conn.reads_large:
            conn.reads_large = False
            self._large -= 1
            if self._held:
                self._hand_over(self._held.popleft())

    def finish_request(self, conn: _Connection, fs: Any) -> None:
        self._large_read(conn)
        super().finish_request(conn, fs)

    def leave(self, conn: _Connection) -> None:
        """Tell the client that nothing more comes, and close when it has closed.

        Closed with bytes that nobody has read, a connection is reset, and its client may lose the answer. gunicorn
        reads 64 KiB on the thread that collects, and waits there 2 s for each client that does not close.
        """
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:  # the client is gone
            conn.close()
            return
        conn.sock.setblocking(False)
        conn.timeout = time.monotonic() + LEAVE_S
        conn.may_send = LEAVE_BYTES
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._read_on, conn))
        self._leaving[conn.sock] = conn
        self.nr_conns += 1  # gunicorn has counted it off

    def _read_on(self, conn: _Connection, client: socket.socket) -> None:
        data = _received(client)
        if data is None:
            return
        conn.may_send -= len(data)
        if not data or conn.may_send <= 0:
            self._left(conn)

    def _left(self, conn: _Connection) -> None:
        del self._leaving[conn.sock]
        self.poller.unregister(conn.sock)
        self._close(conn)

    def _forget(self, conn: _Connection) -> None:
        del self._arriving[conn.sock]
        self.poller.unregister(conn.sock)

    def _drop(self, conn: _Connection) -> None:
        self._forget(conn)
        self._close(conn)

    def _close(self, conn: _Connection) -> None:
        self.nr_conns -= 1
        conn.close()

    def _drop_longest_silent(self) -> None:
        if self._leaving:
            self._left(next(iter(self._leaving.values())))
            return
        silent = (each for each in self._arriving.values() if not each.arrived)
        conn = next(silent, next(iter(self._arriving.values()), None))
        if conn is not None:
            self._drop(conn)

    # ---- the threads that answer

    def handle(self, conn: _Connection) -> Any:
        conn.init()
        reader = conn.parser.unreader
        reader.unread(bytes(conn.arrived))
        reader.sock = _RestOfRequest(conn, partial(self.method_queue.defer, self._large_read, conn))
        conn.arrived = bytearray()
        return super().handle(conn)
