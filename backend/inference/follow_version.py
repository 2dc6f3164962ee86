"""Keeps the model that answers on the version that is live in the registry, whichever process made it live."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from backend.errors import StoreError, VersionError
from backend.inference.loaded import Loaded
from backend.inference.predictor import Predictor
from backend.versions.registry import Registry
from backend.versions.version import ModelVersion
from semsam_model.errors import SemsamError

log = logging.getLogger(__name__)

RETRY_S = 60.0  #: after a version could not be loaded, and nobody activated another one


def load_version(registry: Registry, version: ModelVersion, read: Callable[[Path], Loaded]) -> Loaded:
    """The model of a version, every byte of its weights checked. Raises VersionError, CheckpointError."""
    if problems := registry.problems(version, thorough=False):
        raise VersionError(f"version {version.version}: {'; '.join(problems)}")
    loaded = read(version.weights)
    if loaded.version.digest != version.digest:
        raise VersionError(f"version {version.version}: {version.weights} holds {loaded.version} now")
    return loaded


def load_live(registry: Registry, read: Callable[[Path], Loaded]) -> Loaded:
    """The live version or, when it cannot be loaded, the first that can of those that were live before it.

    Raises what loading version 0 raises when none can.
    """
    try:
        *stack, last = (activation.version for activation in registry.stack())
    except StoreError as error:
        log.error("which version is live cannot be read, serving %s: %s", registry.base.version, error)
        stack, last = [], registry.base
    for version in stack:
        try:
            return load_version(registry, version, read)
        except SemsamError as error:
            log.error("%s; falling back to the version before it", error)
    return load_version(registry, last, read)


class VersionFollower:
    """Polls the registry, and switches the predictor when another version is live."""

    def __init__(
        self, registry: Registry, predictor: Predictor, read: Callable[[Path], Loaded], every_s: float
    ) -> None:
        """read: gives the model in a weights file. every_s: seconds between two polls."""
        self._registry = registry
        self._predictor = predictor
        self._read = read
        self._every_s = every_s
        self._failed: tuple[int, float] | None = None  # number of an activation, and when to try it again
        self._unreadable = False
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin to poll, in the background."""
        threading.Thread(target=self._run, name="follow-live-version", daemon=True).start()

    def stop(self) -> None:
        """Poll no more; returns at once."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            try:
                self.poll()
            except Exception:
                log.exception("following the live version failed; trying again")

    def poll(self) -> None:
        """Poll once, and switch if there is something to switch to; returns when that is done."""
        if self._predictor.state == "loading":
            return
        try:
            live = self._registry.live()
        except StoreError as error:
            if not self._unreadable:
                log.error("which version is live cannot be read, staying with what answers: %s", error)
            self._unreadable = True
            return
        self._unreadable = False
        answering = self._predictor.version
        if answering is not None and answering.digest == live.version.digest:
            self._predictor.settle()
            self._failed = None
            return
        if self._failed is not None and self._failed[0] == live.number and time.monotonic() < self._failed[1]:
            return
        log.info("version %s is live (%s), loading it", live.version.version, live.reason or "no reason given")
        if self._predictor.switch(lambda: load_version(self._registry, live.version, self._read)):
            self._failed = None
        else:
            self._failed = live.number, time.monotonic() + RETRY_S
