"""The process: a port, gunicorn, and the application in it. One process, since the model and its cache are large."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.errors import AppImportError

from backend.metrics import Metrics
from backend.service.service import build_service, served_weights
from backend.settings import Settings, load_settings
from backend.web.app import create_app
from backend.web.arrival import LARGE, ArrivalWorker, allow_connections
from semsam_model.allocator import return_freed_memory
from semsam_model.errors import SemsamError

log = logging.getLogger(__name__)

EXIT_CANNOT_LISTEN = 98  # the errno of an address in use
#: Beyond the predictions that run or wait, so that /health and /setup are answered whatever the others do.
SPARE_THREADS = 4
CLOSE = "semsam.close"  #: name of the application's extension that is called when its process ends


def create_from_env() -> Flask:
    """The application as the settings file and environment say: `gunicorn 'backend.web.server:create_from_env()'`."""
    return _build(load_settings())


def _build(settings: Settings) -> Flask:
    metrics = Metrics()
    service = build_service(settings, metrics)
    app = create_app(settings, service, metrics)
    app.extensions[CLOSE] = service.close
    threading.Thread(target=pass_over_loaded, args=(service.wait_until_loaded,), name="pass-over", daemon=True).start()
    return app


def pass_over_loaded(wait_until_loaded: Callable[[], None]) -> None:
    """Let the garbage collector look no more at what stays: the libraries, the model.

    They are 450,000 objects. To look at them all takes a quarter of a second, in which nobody is answered, and while a
    body of many lists is read it would be done again and again.
    """
    wait_until_loaded()
    gc.freeze()  # without a last look, which would be as long: little of it is garbage


def serve(
    settings: Settings,
    build: Callable[[Settings], Flask] = _build,
    check: Callable[[Settings], object] = served_weights,
) -> None:
    """Serve until told to stop: one process, and `threads` predictions at the same time.

    check: called before the port opens; what it raises is raised. build: called after that, in the worker process; it
    is to be quick, since clients that connect wait for it. Exits with EXIT_CANNOT_LISTEN and one line on stderr when
    the address cannot be had.
    """
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(listener.close)
            listener.bind((settings.host, settings.port))  # nobody can connect before it listens
            check(settings)
            listener.listen(1024)
            on_failure.pop_all()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        print(
            f"semsam: cannot listen on {settings.host} port {settings.port}: {reason};"
            " choose another with --port or SEMSAM_PORT",
            file=sys.stderr,
        )
        raise SystemExit(EXIT_CANNOT_LISTEN) from None
    _Gunicorn(settings, listener, build).run()


class _Gunicorn(BaseApplication):
    """gunicorn with our settings instead of a command line."""

    def __init__(self, settings: Settings, listener: socket.socket, build: Callable[[Settings], Flask]) -> None:
        self._settings = settings
        self._port = listener.getsockname()[1]
        self._descriptor = listener.detach()  # gunicorn closes it
        self._build = build
        self._app: Flask | None = None
        super().__init__()

    def load_config(self) -> None:
        values: dict[str, Any] = {
            "bind": f"fd://{self._descriptor}",
            "workers": 1,
            "worker_class": ArrivalWorker,
            "threads": self._settings.threads + self._settings.queued + LARGE + SPARE_THREADS,
            "worker_connections": allow_connections(),
            "preload_app": False,  # torch does not survive a fork
            "timeout": 120,  # a worker that is stuck, not a slow request: threads answer for themselves
            "graceful_timeout": 10,
            "loglevel": "warning",
            "post_worker_init": self._log_address,
            "worker_exit": self._end,
            "control_socket_disable": True,
        }
        for name, value in values.items():
            if name in self.cfg.settings:  # the last one is unknown to gunicorn before 25
                self.cfg.set(name, value)

    def _log_address(self, _: object) -> None:
        log.info("listening on http://%s:%d", self._settings.host, self._port)

    def _end(self, _: object, __: object) -> None:
        """The worker ends: write what waits, then end the process at once.

        The interpreter would end threads where they are, and one that is inside torch then aborts the process: C++ does
        not let a function be left that way.
        """
        if self._app is None:  # it did not come up
            return
        ends = sys.exc_info()[1]
        try:
            self._app.extensions.get(CLOSE, lambda: None)()
        except Exception:
            log.exception("not everything could be written before the end")
        logging.shutdown()
        os._exit(ends.code if isinstance(ends, SystemExit) and isinstance(ends.code, int) else 0)

    def load(self) -> Flask:
        return_freed_memory()  # before torch makes its threads
        try:
            self._app = self._build(self._settings)
            return self._app
        except SemsamError as error:
            # The one error that gunicorn prints as a line and does not answer with another try
            raise AppImportError(f"semsam: {error}") from None
