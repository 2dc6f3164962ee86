"""Label Studio as this backend needs it: which server a project lives on, the picture of a task, a few API calls.

What a task names as its picture is untrusted. Nothing is fetched but from the exact origins of the configured servers
and of `allowed_origins` (`connection` sees to that), and nothing is read from disk outside `local_files_root`.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import logging
import os
import pickle
import re
import socket
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from backend.errors import BadRequest, ImageTooLarge, LabelStudioError, NotFound, OriginRefused, SettingsError
from backend.label_studio.connection import Connection, Origin, Server, origin_of, shown
from backend.settings import Settings, load_settings, without_secrets
from semsam_model.errors import SemsamError

log = logging.getLogger(__name__)

PAGE = 100  #: tasks listed at a time

_MAX_REMEMBERED = 4096  # projects, and names a server gives itself; /setup may be called by anyone who may call us
_CLOUD = re.compile(r"(s3|gs|azure-blob)://", re.IGNORECASE)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):", re.IGNORECASE)


class LabelStudio:
    """All Label Studio servers of this backend. Safe to use from several threads."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        servers = [Server(base_url, token) for base_url, token in settings.label_studio_tokens().items()]
        self._servers: dict[Origin, Server] = {server.origin: server for server in servers}
        self._extra = {origin_of(url) for url in settings.allowed_origins}
        self._settings = settings
        self._connection = Connection(settings, self._servers.keys() | self._extra, clock)
        self._max_image_bytes = settings.max_image_bytes
        self._root = settings.local_files_root.resolve() if settings.local_files_root else None
        self._projects: OrderedDict[str, Server | str] = OrderedDict()
        self._aliases: dict[Origin, Server] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Goes to other machines without its tokens: where it arrives it has those of that machine's environment."""
        return _arrived, (pickle.dumps(without_secrets(self._settings)), bool(self._settings.label_studio_api_key))

    # ---- projects and servers

    def connect(self, project: str, hostname: str, access_token: str | None = None) -> None:
        """Remember which server `project` lives on. Called for each /setup: cheap, no network, never raises.

        `project` is "<id>.<created>" as Label Studio sends it: ids alone are the same on every server.
        `hostname` is the address Label Studio gives for itself. `access_token` is used only where no API key is
        configured and `hostname` is an allowed origin.
        """
        found: Server | str
        try:
            found = self._server_named(hostname, access_token)
        except SemsamError as error:
            found = str(error)
            log.warning("project %s: %s", project, error)
        with self._lock:
            self._projects[project] = found
            self._projects.move_to_end(project)
            while len(self._projects) > _MAX_REMEMBERED:
                self._projects.popitem(last=False)

    def origin(self, project: str | None) -> str:
        """scheme://host:port of the server that a project lives on. Raises OriginRefused, LabelStudioError."""
        return str(self._server_of(project).origin)

    def project_on(self, origin: str, project: int) -> str:
        """The name under which the methods below take project `project` of the server at `origin`.

        Raises OriginRefused when none of this backend's servers is there.
        """
        name = f"{project} on {origin}"
        with self._lock:
            servers = [*self._servers.values(), *(each for each in self._projects.values() if isinstance(each, Server))]
            # one that /setup brought a token for goes before the same server without one
            found = sorted(
                (each for each in servers if str(each.origin) == origin), key=lambda each: each.token is None
            )
            if found:
                self._projects[name] = found[0]
                return name
        raise OriginRefused(
            f"project {project}: its Label Studio {origin} is none of this backend's servers, {self._known()};"
            " see label_studio_url and label_studio_keys"
        )

    def _server_named(self, hostname: str, access_token: str | None) -> Server:
        only = next(iter(self._servers.values())) if len(self._servers) == 1 else None
        try:
            origin = origin_of(hostname)
        except OriginRefused:
            if only is None:
                raise
            return only
        known = self._servers.get(origin)
        if known is not None:
            return Server(known.base_url, access_token) if known.token is None and access_token else known
        if origin in self._extra:
            return Server(hostname, access_token)
        if only is not None:
            # In containers, Label Studio's name for itself is rarely the one it is reached by.
            with self._lock:
                if origin not in self._aliases and len(self._aliases) < _MAX_REMEMBERED:
                    self._aliases[origin] = only
                    log.info("Label Studio calls itself %s; it is reached at %s", shown(hostname), only.base_url)
            return only
        raise OriginRefused(
            f"Label Studio {shown(hostname)}: expected one of this backend's servers, {self._known()};"
            " add it and its token to the setting label_studio_keys (SEMSAM_LABEL_STUDIO_KEYS)"
        )

    def _server_of(self, project: str | None) -> Server:
        with self._lock:
            found = self._projects.get(project) if project is not None else None
        if isinstance(found, Server):
            return found
        if found is not None:
            raise OriginRefused(found)
        if len(self._servers) == 1:
            return next(iter(self._servers.values()))
        raise LabelStudioError(
            f"project {project}: this backend serves {self._known()} and learns from /setup where a project lives;"
            " open the project's Settings > Model once"
        )

    def _known(self) -> str:
        return ", ".join(sorted(server.base_url for server in self._servers.values()))

    # ---- pictures

    def fetch_image(self, value: str, *, project: str | None = None, task_id: int | None = None) -> bytes:
        """The bytes of a task's picture file, at most `max_image_bytes`.

        `value` is what the task's data holds: `/data/upload/...`, `/data/local-files/?d=...`, http(s)://, s3://, gs://
        or azure-blob:// (these need `task_id`), a data: URL, or a path inside `local_files_root`. Raises BadRequest,
        OriginRefused, TokenRefused, NotFound, FetchTimeout, ImageTooLarge, LabelStudioError; the reason is logged too.
        """
        try:
            return self._fetch(value, project, task_id)
        except SemsamError as error:
            log.warning("project %s task %s: picture not fetched: %s", project, task_id, error)
            raise

    def _fetch(self, value: str, project: str | None, task_id: int | None) -> bytes:
        if not isinstance(value, str) or not value.strip():
            raise BadRequest(f"task picture: expected an address or a path, got {str(value)[:40]!r}")
        value = value.strip()
        if value[:5].lower() == "data:":
            return self._from_data_url(value)
        if _CLOUD.match(value):
            if not isinstance(task_id, int):
                raise BadRequest(f"task picture {shown(value)}: a picture in a cloud store needs the id of its task")
            uri = base64.urlsafe_b64encode(value.encode()).decode()
            return self._download(self._server_of(project).address(f"/tasks/{task_id}/presign/?fileuri={uri}"), project)
        scheme = _SCHEME.match(value)
        if scheme and scheme[1].lower() in ("http", "https"):
            return self._download(value, project)
        if scheme:
            raise OriginRefused(
                f"task picture {shown(value)}: expected http, https, s3, gs, azure-blob or a path; pictures on this"
                " machine are given as paths inside the setting local_files_root (SEMSAM_LOCAL_FILES_ROOT)"
            )
        if (path := self._local_path(value)) is not None:
            return self._read_local(path)
        try:
            return self._download(self._server_of(project).address(value), project)
        except NotFound as error:
            if value.startswith("/data/"):
                raise
            hint = "for a path on this machine, set local_files_root (SEMSAM_LOCAL_FILES_ROOT)"
            raise NotFound(f"{error}; {hint}") from None

    def _download(self, url: str, project: str | None) -> bytes:
        origin = origin_of(url)
        with self._lock:
            own = self._projects.get(project) if project is not None else None
            alias = self._aliases.get(origin)
        if alias is not None:
            parts = urlsplit(url)
            url = alias.address(parts.path + (f"?{parts.query}" if parts.query else ""))
            origin = alias.origin
        # The project's own entry may hold a token from /setup, where none is configured.
        server = own if isinstance(own, Server) and own.origin == origin else self._servers.get(origin)
        return self._connection.download(url, server)

    def _from_data_url(self, value: str) -> bytes:
        # It brings its bytes along, so there is nowhere to be lured to; only the size matters.
        head, _, body = value.partition(",")
        if not head.lower().startswith("data:image/") or not head.lower().endswith(";base64"):
            raise BadRequest("task picture data:...: expected data:image/...;base64,...")
        if len(body) * 3 // 4 > self._max_image_bytes + 2:  # up to two bytes of padding
            raise self._too_large("data:...")
        try:
            return base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError):
            raise BadRequest("task picture data:...: its base64 cannot be read") from None

    def _local_path(self, value: str) -> Path | None:
        """The file inside `local_files_root` that `value` means; None when it means something in Label Studio."""
        if self._root is None:
            return None
        parts = urlsplit(value)
        if parts.path.rstrip("/").endswith("/data/local-files"):
            name = parse_qs(parts.query).get("d", [""])[0].lstrip("/")
        elif value.startswith("/data/"):
            return None
        else:
            name = value
        try:
            path = (self._root / name).resolve()
            exists = path.exists()
        except (OSError, ValueError, RuntimeError):  # too long, a NUL in it, a loop of links
            raise OriginRefused(f"task picture {shown(name)}: not a usable path") from None
        if exists and not path.is_relative_to(self._root):
            raise OriginRefused(
                f"task picture {shown(name)}: outside the setting local_files_root (SEMSAM_LOCAL_FILES_ROOT)"
            )
        return path if exists else None

    def _read_local(self, path: Path) -> bytes:
        try:
            # The path is free of links by now: one put there since is not followed, and a pipe does not block.
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise OriginRefused(f"task picture {path.name}: expected a file, not a pipe or device")
                data = file.read(self._max_image_bytes + 1)
        except OSError as error:
            raise NotFound(f"task picture {path.name}: cannot be read: {error.strerror}") from None
        if len(data) > self._max_image_bytes:
            raise self._too_large(path.name)
        return data

    def _too_large(self, what: str) -> ImageTooLarge:
        return ImageTooLarge(
            f"picture {what}: more than {self._max_image_bytes} bytes, the setting max_image_bytes"
            " (SEMSAM_MAX_IMAGE_BYTES)"
        )

    # ---- API

    def get_task(self, task_id: int, *, project: str | None = None) -> dict[str, Any]:
        """The task as Label Studio's API gives it. This and the next three raise as `fetch_image` does.

        Addresses in cloud storage stay as they are stored (s3://...), as webhooks and predict requests have them.
        """
        return self._call("GET", f"/api/tasks/{int(task_id)}/?resolve_uri=false", project)

    def get_project(self, number: int, *, project: str | None = None) -> dict[str, Any]:
        """The project as Label Studio's API gives it."""
        return self._call("GET", f"/api/projects/{int(number)}/", project)

    def list_tasks(self, number: int, page: int, page_size: int, *, project: str | None = None) -> dict[str, Any]:
        """`tasks`, each with `id` and `updated_at`, and `total`, their number. Pages count from 1."""
        query = f"project={int(number)}&page={page}&page_size={page_size}&include=id,updated_at"
        return self._call("GET", f"/api/tasks/?{query}", project)

    def create_prediction(self, prediction: dict[str, Any], *, project: str | None = None) -> dict[str, Any]:
        """Store a prediction `{task, model_version, score, result}`; Label Studio does not check the result."""
        return self._call("POST", "/api/predictions/", project, prediction)

    def get_prediction(self, number: int, *, project: str | None = None) -> dict[str, Any]:
        """A stored prediction; it has the fields of an annotation that matter here. Raises as `fetch_image` does."""
        return self._call("GET", f"/api/predictions/{int(number)}/", project)

    def whoami(self, *, project: str | None = None) -> dict[str, Any]:
        """The user that our token belongs to."""
        return self._call("GET", "/api/current-user/whoami", project)

    def version(self, *, project: str | None = None) -> dict[str, Any]:
        """Label Studio's versions; `release` is the one to show."""
        return self._call("GET", "/api/version/", project)

    def _call(self, method: str, path: str, project: str | None, body: Any = None) -> dict[str, Any]:
        server = self._server_of(project)
        return self._connection.call(method, server.address(path), server, body)


def all_tasks(label_studio: LabelStudio, number: int, project: str | None = None) -> Iterator[tuple[Any, int]]:
    """Every task of a project, as `list_tasks` gives it, and how many there are. Raises LabelStudioError."""
    page = 1
    while True:
        answer = label_studio.list_tasks(number, page, PAGE, project=project)
        tasks, total = answer.get("tasks"), answer.get("total")
        if not isinstance(tasks, list) or not isinstance(total, int):
            raise LabelStudioError(f"project {number}: its list of tasks has another form than expected")
        yield from ((task, total) for task in tasks)
        if len(tasks) < PAGE or page * PAGE >= total:
            return
        page += 1


@lru_cache(1)  # of a process: its connections are kept, and an access token serves for all its pictures
def _arrived(pickled: bytes, had_token: bool) -> LabelStudio:
    settings, here = pickle.loads(pickled), load_settings()
    if had_token and not here.label_studio_api_key:
        raise SettingsError(
            f"{socket.gethostname()}: no token for {settings.label_studio_url}; tokens do not travel: set"
            " LABEL_STUDIO_API_KEY in the environment in which the workers of the cluster start"
        )
    keys = {"label_studio_api_key": here.label_studio_api_key, "label_studio_keys": here.label_studio_keys}
    return LabelStudio(dataclasses.replace(settings, **keys))
