"""Label Studio as this backend needs it: the photo of a task, and a few API calls, on whichever server a project lives.

The address that a task names as its photo is untrusted. Photos are fetched only from the exact origins of the
configured servers and of `allowed_origins` (`connection` checks that), read from object stores only below
`object_stores`, and from disk only inside `local_files_root`.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import logging
import pickle
import re
import socket
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from backend.errors import (
    BadRequest,
    LabelStudioError,
    NotFound,
    OriginRefused,
    SettingsError,
    TokenRefused,
    Unreachable,
)
from backend.label_studio.connection import Connection
from backend.label_studio.local_photos import decode_data_url, find_local_file, read_local_file
from backend.label_studio.object_store import ObjectStores, is_below
from backend.label_studio.servers import Servers, shown, token_kind
from backend.settings import Settings, load_settings, without_secrets
from semsam_model.errors import SemsamError

log = logging.getLogger(__name__)

_CLOUD = re.compile(r"(s3|gs|azure-blob)://", re.IGNORECASE)
#: A list of tasks makes predictions too, in a project that is set to; not one that is asked for to be looked through.
_ONLY_LOOK = "review=true"
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):", re.IGNORECASE)


class LabelStudio:
    """All Label Studio servers of this backend. Safe to use from several threads."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._servers = Servers(settings.label_studio_tokens(), settings.allowed_origins)
        self._connection = Connection(settings, self._servers.origins, clock)
        self._settings = settings
        self._stores = ObjectStores(settings)
        self._root = settings.local_files_root.resolve() if settings.local_files_root else None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled without its tokens: the machine that unpickles it takes those of its own environment."""
        return _unpickled, (pickle.dumps(without_secrets(self._settings)), bool(self._settings.label_studio_api_key))

    # ---- projects and servers

    def connect(self, project: str, hostname: str, access_token: str | None = None) -> None:
        """Remember which server `project` lives on. Called for each /setup: cheap, no network, never raises.

        `project` is "<id>.<created>" as Label Studio sends it: ids alone are the same on every server.
        `hostname` is the address Label Studio gives for itself. `access_token` is used only where no API key is
        configured and `hostname` is an allowed origin.
        """
        self._servers.connect(project, hostname, access_token)

    def origin(self, project: str | None) -> str:
        """scheme://host:port of the server that a project lives on. Raises OriginRefused, LabelStudioError."""
        return str(self._servers.of(project).origin)

    def token_kind(self, project: str | None) -> str | None:
        """What the token for a project's server is, in words; None for none. Raises OriginRefused, LabelStudioError."""
        return token_kind(self._servers.of(project).token)

    def project_on(self, origin: str, project: int) -> str:
        """The name under which the methods below take project `project` of the server at `origin`.

        Raises OriginRefused when none of this backend's servers is there.
        """
        return self._servers.add_project(origin, project)

    # ---- photos

    def fetch_image(self, value: str, *, project: str | None = None, task_id: int | None = None) -> bytes:
        """The bytes of a task's photo file, at most `max_image_bytes`.

        `value` is what the task's data holds: `/data/upload/...`, `/data/local-files/?d=...`, http(s)://, s3://, gs://
        or azure-blob:// (these need `task_id`, but below `object_stores`), a data: URL, or a path inside
        `local_files_root`. Raises BadRequest, OriginRefused, TokenRefused, NotFound, FetchTimeout, ImageTooLarge,
        Unreachable, LabelStudioError; what is wrong with this photo alone is logged too.
        """
        try:
            return self._fetch(value, project, task_id)
        except (Unreachable, TokenRefused):
            raise
        except SemsamError as error:
            log.warning("project %s task %s: photo not fetched: %s", project, task_id, error)
            raise

    def _fetch(self, value: str, project: str | None, task_id: int | None) -> bytes:
        if not isinstance(value, str) or not value.strip():
            raise BadRequest(f"task photo: expected an address or a path, got {str(value)[:40]!r}")
        value = value.strip()
        if value[:5].lower() == "data:":
            # it brings its bytes along, so no address has to be allowed
            return decode_data_url(value, self._settings.max_image_bytes)
        if _CLOUD.match(value):
            return self._fetch_from_cloud(value, project, task_id)
        scheme = _SCHEME.match(value)
        if scheme and scheme[1].lower() in ("http", "https"):
            return self._download(value, project)
        if scheme:
            raise OriginRefused(
                f"task photo {shown(value)}: expected http, https, s3, gs, azure-blob or a path; photos on this"
                " machine are given as paths inside the setting local_files_root (SEMSAM_LOCAL_FILES_ROOT)"
            )
        return self._fetch_path(value, project)

    def _fetch_from_cloud(self, value: str, project: str | None, task_id: int | None) -> bytes:
        """With this machine's credentials below `object_stores`, else by way of Label Studio.

        Label Studio has the bucket's credentials and redirects to a presigned address.
        """
        if any(is_below(value, prefix) for prefix in self._settings.object_stores):
            return self._stores.read(value)
        if not isinstance(task_id, int):
            raise BadRequest(
                f"task photo {shown(value)}: a photo in a cloud store needs the id of its task, or its bucket in the"
                " setting object_stores (SEMSAM_OBJECT_STORES)"
            )
        uri = base64.urlsafe_b64encode(value.encode()).decode()
        return self._download(self._servers.of(project).address(f"/tasks/{task_id}/presign/?fileuri={uri}"), project)

    def _fetch_path(self, value: str, project: str | None) -> bytes:
        """From the folder of local files if it is there, else from Label Studio."""
        if value.startswith("/data/") and "\\" in value:
            # a Label Studio on Windows; a browser sends a backslash after the question mark, and turns others round
            address, mark, query = value.partition("?")
            value = address.replace("\\", "/") + mark + query.replace("\\", "%5C")
        path = find_local_file(self._root, value) if self._root is not None else None
        if path is not None:
            return read_local_file(path, self._settings.max_image_bytes)
        try:
            return self._download(self._servers.of(project).address(value), project)
        except NotFound as error:
            if value.startswith("/data/"):
                raise
            hint = "for a path on this machine, set local_files_root (SEMSAM_LOCAL_FILES_ROOT)"
            raise NotFound(f"{error}; {hint}") from None

    def _download(self, url: str, project: str | None) -> bytes:
        return self._connection.download(*self._servers.reach(url, project))

    # ---- API

    def get_task(self, number: int, task: int, *, project: str | None = None) -> dict[str, Any]:
        """Task `task` of project `number`, with its data, annotations and predictions, drawn up as `list_tasks` is.

        Its own address is never asked: with default settings Label Studio then makes a prediction where there is none.
        Addresses in cloud storage stay as they are stored (s3://...), as webhooks and predict requests have them. This
        and the next methods raise as `fetch_image` does.
        """
        chosen = quote(json.dumps({"selectedItems": {"all": False, "included": [int(task)]}}))
        found = self._tasks(number, 1, f"fields=all&query={chosen}", project)
        here = next((each for each in found if each.get("id") == task), None)
        if here is None:
            raise NotFound(f"task {task}: not in project {number}")
        return here

    def get_project(self, number: int, *, project: str | None = None) -> dict[str, Any]:
        """The project as Label Studio's API gives it."""
        return self._call("GET", f"/api/projects/{int(number)}/", project)

    def list_tasks(self, number: int, page: int, page_size: int, *, project: str | None = None) -> dict[str, Any]:
        """`tasks`, each with `id` and `updated_at`, and `total`, their number. Pages count from 1."""
        query = f"project={int(number)}&page={page}&page_size={page_size}&{_ONLY_LOOK}&include=id,updated_at"
        return self._call("GET", f"/api/tasks/?{query}", project)

    def next_tasks(self, number: int, task: int, count: int, *, project: str | None = None) -> list[dict[str, Any]]:
        """At most `count` tasks of project `number` after `task` by id that nobody has annotated: `id` and `data`."""
        later = {"filter": "filter:tasks:id", "operator": "greater", "type": "Number", "value": int(task)}
        free = {"filter": "filter:tasks:total_annotations", "operator": "equal", "type": "Number", "value": 0}
        wanted = {"filters": {"conjunction": "and", "items": [later, free]}, "ordering": ["tasks:id"]}
        return self._tasks(number, count, f"include=id,data&query={quote(json.dumps(wanted))}", project)

    def first_task(self, number: int, *, project: str | None = None) -> dict[str, Any] | None:
        """The first task of project `number`: `id` and `data`; None where it has none."""
        return next(iter(self._tasks(number, 1, "include=id,data", project)), None)

    def _tasks(self, number: int, count: int, query: str, project: str | None) -> list[dict[str, Any]]:
        """At most `count` tasks of a project, as the rest of a query asks for them."""
        path = f"/api/tasks/?project={int(number)}&page=1&page_size={count}&{_ONLY_LOOK}&resolve_uri=false&{query}"
        found = self._call("GET", path, project).get("tasks")
        if not isinstance(found, list):
            raise LabelStudioError(f"project {number}: its list of tasks has another form than expected")
        return [each for each in found if isinstance(each, dict)]

    def create_prediction(self, prediction: dict[str, Any], *, project: str | None = None) -> dict[str, Any]:
        """Store a prediction `{task, model_version, score, result}`; Label Studio does not check the result."""
        return self._call("POST", "/api/predictions/", project, prediction)

    def get_prediction(self, number: int, *, project: str | None = None) -> dict[str, Any]:
        """A stored prediction; it has the fields of an annotation that matter here."""
        return self._call("GET", f"/api/predictions/{int(number)}/", project)

    def call(self, method: str, path: str, *, project: str | None = None, body: Any = None) -> Any:
        """Whatever JSON the API answers. The path of a single task is not for this: see `get_task`."""
        server = self._servers.of(project)
        return self._connection.call_any(method, server.address(path), server, body)

    def _call(self, method: str, path: str, project: str | None, body: Any = None) -> dict[str, Any]:
        server = self._servers.of(project)
        return self._connection.call(method, server.address(path), server, body)


def task_pages(
    label_studio: LabelStudio, number: int, project: str | None = None, *, page_size: int = 100
) -> Iterator[tuple[list[Any], int]]:
    """Every task of a project, as `list_tasks` gives it, in pages, and how many there are. Raises LabelStudioError."""
    page = 1
    while True:
        answer = label_studio.list_tasks(number, page, page_size, project=project)
        tasks, total = answer.get("tasks"), answer.get("total")
        if not isinstance(tasks, list) or not isinstance(total, int):
            raise LabelStudioError(f"project {number}: its list of tasks has another form than expected")
        yield tasks, total
        if len(tasks) < page_size or page * page_size >= total:
            return
        page += 1


@lru_cache(1)  # one for a process: its connections are kept, and an access token serves for all its photos
def _unpickled(pickled: bytes, had_token: bool) -> LabelStudio:
    settings, here = pickle.loads(pickled), load_settings()
    if had_token and not here.label_studio_api_key:
        raise SettingsError(
            f"{socket.gethostname()}: no token for {settings.label_studio_url}; tokens do not travel: set"
            " LABEL_STUDIO_API_KEY in the environment in which the workers of the cluster start"
        )
    keys = {"label_studio_api_key": here.label_studio_api_key, "label_studio_keys": here.label_studio_keys}
    return LabelStudio(dataclasses.replace(settings, **keys))
