"""The doctor's checks of every known project for the status page, made in the background now and then."""

from __future__ import annotations

import logging
import threading
import time

from backend.corrections.queries import list_projects
from backend.doctor.checks import Finding, check_project
from backend.doctor.studio import StudioProject
from backend.label_studio.client import LabelStudio
from backend.records import ProjectKey
from backend.settings import Settings
from backend.store.database import Store
from semsam_model.errors import SemsamError

log = logging.getLogger(__name__)

AGAIN_S = 120.0  #: seconds after which whoever looks at the page has the projects checked anew
MOST = 20  #: projects, the newest


class ProjectChecks:
    """Thread-safe. Nobody waits for a check: what is told is what the last one found. No click is made."""

    def __init__(self, store: Store, label_studio: LabelStudio, settings: Settings, again_s: float = AGAIN_S) -> None:
        self._store = store
        self._label_studio = label_studio
        self._settings = settings
        self._again_s = again_s
        self._found: dict[ProjectKey, tuple[Finding, ...]] = {}
        self._begun = float("-inf")
        self._lock = threading.Lock()

    def found(self) -> dict[ProjectKey, tuple[Finding, ...]]:
        """Of each project that was checked, what was found in the order of a click's path."""
        with self._lock:
            if time.monotonic() - self._begun >= self._again_s:
                self._begun = time.monotonic()
                threading.Thread(target=self._check, name="project-checks", daemon=True).start()
            return dict(self._found)

    def _check(self) -> None:
        try:
            there = [each.key for each in list_projects(self._store) if each.deleted_at is None][-MOST:]
            for key in there:
                project = StudioProject(self._label_studio, key)
                found = tuple(check_project(project, self._settings))
                with self._lock:
                    self._found[key] = found
            with self._lock:
                self._found = {key: found for key, found in self._found.items() if key in there}
        except SemsamError as error:
            log.warning("projects are not checked: %s", error)
        except Exception:
            log.exception("projects are not checked: unexpected failure")
