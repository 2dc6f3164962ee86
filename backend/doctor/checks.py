"""The whole path of a click, looked at step by step: a line for each, with the way out where something is wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from backend.doctor.studio import WITHOUT_PROMPTS, StudioProject, of_backend
from backend.errors import BadRequest, TokenRefused
from backend.images import probe_size
from backend.label_studio.backend_calls import BackendCalls
from backend.label_studio.object_store import ObjectStores
from backend.label_studio.servers import token_kind
from backend.settings import Settings, plain
from semsam_model.errors import SemsamError

LEAST_BYTES = 2**30  #: free on the disk of the data folder
_TOKEN = "SEMSAM_LABEL_STUDIO_API_KEY"
_LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Finding:
    """What one check found; `wrong` findings say what to do."""

    check: str
    text: str
    wrong: bool = False

    def __str__(self) -> str:
        return f"{'WRONG' if self.wrong else 'ok   '} {self.check}: {self.text}"


def check_backend(settings: Settings, backend: BackendCalls) -> Iterator[Finding]:
    """Of the backend alone: whether it runs, its model, its disk."""
    yield from _step("backend", lambda: _backend(backend))
    yield from _step("disk", lambda: _disk(settings))
    if (address := settings.photo_store or "file:") and not address.startswith("file:"):
        yield from _step("photo store", lambda: _photo_store(settings, address))
    yield from _step("token", lambda: _token(settings))


def check_project(
    project: StudioProject, settings: Settings, backend: BackendCalls | None = None, *, address: str | None = None
) -> Iterator[Finding]:
    """Of one project: from our token to a click with an answer.

    address: of the backend as Label Studio reaches it; None: whichever connection there is. backend: is asked for
    masks, which takes as long as a click; None: no click.
    """
    token = list(_step("token", lambda: _project_token(project)))
    yield from token
    if any(finding.wrong for finding in token):
        return
    yield from _step("Label Studio", lambda: _version(project))
    readable = list(_step("project", lambda: _project(project)))
    yield from readable
    if any(finding.wrong for finding in readable):
        return
    yield from _step("labeling config", lambda: _config(project))
    yield from _step("connection", lambda: _connection(project, address))
    yield from _step("webhook", lambda: _webhook(project, address, plain(settings.webhook_secret)))
    yield from _step("prelabelling", lambda: _prelabelling(project))
    yield from _step("photo", lambda: _photo(project, settings))
    if backend is not None:
        yield from _step("click", lambda: _click(project, settings, backend))


def _step(check: str, look: Callable[[], Iterator[tuple[str, bool]]]) -> Iterator[Finding]:
    """What a step finds; what it raises is what is wrong."""
    try:
        for text, wrong in look():
            yield Finding(check, " ".join(text.split()), wrong)
    except SemsamError as error:
        yield Finding(check, " ".join(str(error).split()), True)


def _backend(backend: BackendCalls) -> Iterator[tuple[str, bool]]:
    health = backend.get("/health")
    state, version = health.get("model_state"), health.get("model_version")
    if health.get("problem"):
        yield f"{backend.address}: the model cannot answer: {health['problem']}", True
    else:
        yield f"{backend.address}: model {version} {state}", False


def _disk(settings: Settings) -> Iterator[tuple[str, bool]]:
    folder = next(each for each in (settings.data_dir.resolve(), *settings.data_dir.resolve().parents) if each.exists())
    free = shutil.disk_usage(folder).free
    said = f"{free / 2**30:.1f} GiB free at {folder}"
    yield (said, False) if free >= LEAST_BYTES else (f"{said}: photos and masks need room, free at least 1 GiB", True)


def _photo_store(settings: Settings, address: str) -> Iterator[tuple[str, bool]]:
    """Whether the photos of corrections can be listed there."""
    next(ObjectStores(settings).addresses(address), None)
    yield f"{address} answers", False


def _token(settings: Settings) -> Iterator[tuple[str, bool]]:
    for address, token in settings.label_studio_tokens().items():
        kind = token_kind(token)
        yield (_no_token(address), True) if kind is None else (f"{kind} for {address}", False)


def _no_token(address: str) -> str:
    return f"none for {address}: make a personal access token under Account & Settings and set it as {_TOKEN}"


def _project_token(project: StudioProject) -> Iterator[tuple[str, bool]]:
    """Whether its server takes our token; why else the project cannot be read, its own check says."""
    kind = project.token_kind
    if kind is None:
        yield _no_token(project.key.origin), True
        return
    try:
        project.settings  # noqa: B018 - asks Label Studio
        yield f"{kind}: accepted", False
    except TokenRefused:
        raise
    except SemsamError:
        yield f"{kind}: not tried", False


def _version(project: StudioProject) -> Iterator[tuple[str, bool]]:
    version = project.version
    if version in WITHOUT_PROMPTS:
        yield f"{version} sends smart tools' requests without the click (context null): use 1.23.2", True
    else:
        yield f"{version} at {project.key.origin}", False


def _project(project: StudioProject) -> Iterator[tuple[str, bool]]:
    title = str(project.settings.get("title") or "without title")
    yield f"{project.key.project}, {title!r}, can be read", False


def _config(project: StudioProject) -> Iterator[tuple[str, bool]]:
    problems = project.config.problems()
    yield from ((problem, True) for problem in problems)
    if not problems:
        yield f"answers go to {project.config.answer}", False


def _connection(project: StudioProject, address: str | None) -> Iterator[tuple[str, bool]]:
    listed = project.connections()
    ours = listed if address is None else of_backend(listed, address)
    connect = f"run `semsam connect --project {project.key.project}`"
    if not ours:
        others = ", ".join(str(each.get("url")) for each in listed) or "nothing"
        yield f"the project is connected to {others}, not to {address or 'a backend'}: {connect}", True
    for each in ours:
        yield from _one_connection(project, each, connect)


def _one_connection(project: StudioProject, found: dict[str, Any], connect: str) -> Iterator[tuple[str, bool]]:
    url, said = str(found.get("url")), str(found.get("error_message") or "").strip()
    host, studio = urlsplit(url).hostname, urlsplit(project.key.origin).hostname
    if found.get("state") == "CO":
        yield f"{url}: connected", False
    elif "reserved" in said:
        yield f"{url} lies in a network that Label Studio does not call: {connect}, which prints its settings", True
    elif host in _LOCAL and studio not in _LOCAL:
        yield f"{url} is Label Studio's own machine, not ours: give an address that {studio} reaches, --url", True
    else:
        way_out = "from a container, 127.0.0.1 is the container: give the host's address, --url"
        yield f"{url}: Label Studio does not reach it ({said or 'disconnected'}); {way_out}", True
    if not found.get("is_interactive"):
        yield f'{url}: switch "Use for interactive preannotations" on, or {connect}', True


def _webhook(project: StudioProject, address: str | None, secret: str | None) -> Iterator[tuple[str, bool]]:
    connect = f"run `semsam connect --project {project.key.project}`"
    listed = project.webhooks()
    urls = [address] if address else [str(each.get("url")).rstrip("/") for each in project.connections()]
    ours = [hook for url in urls for hook in of_backend(listed, f"{url}/webhook")]
    if not ours:
        yield f"there is none: annotations are known at the next comparison only; {connect}", True
    for hook in ours:
        faults = []
        if not hook.get("is_active"):
            faults.append("it is switched off")
        if not hook.get("send_payload"):
            faults.append('"Send payload" is off')
        if not hook.get("send_for_all_actions") and "ANNOTATION_CREATED" not in (hook.get("actions") or []):
            faults.append("it is not sent for annotations")
        if secret and (hook.get("headers") or {}).get("X-Semsam-Secret") != secret:
            faults.append("it lacks our secret (X-Semsam-Secret)")
        said = " and ".join(faults) + f": {connect}" if faults else "sent with payload" + (", secret" if secret else "")
        yield f"{hook.get('url')}: {said}", bool(faults)


def _prelabelling(project: StudioProject) -> Iterator[tuple[str, bool]]:
    names = ("show_collab_predictions", "evaluate_predictions_automatically")
    on = [name for name in names if project.settings.get(name)]
    said = "on: opening a task without a prediction asks for one" if on else "off: masks come with clicks alone"
    yield said, False


def _photo(project: StudioProject, settings: Settings) -> Iterator[tuple[str, bool]]:
    task = project.first_task
    if task is None:
        yield "the project has no tasks yet", False
        return
    address = project.config.image_url(task.get("data") or {})
    data = project.label_studio.fetch_image(address, project=project.name, task_id=task.get("id"))
    height, width = probe_size(data, max_pixels=settings.max_image_pixels)
    yield f"of task {task.get('id')}: {len(data)} bytes, {width}x{height}", False


def _click(project: StudioProject, settings: Settings, backend: BackendCalls) -> Iterator[tuple[str, bool]]:
    task, config = project.first_task, project.config
    if task is None or config.answer is None or not config.prompts:
        yield "not tried: no task, or no control for it", False
        return
    tool = config.prompts[0]
    row = {"type": "keypoint", "from_name": tool.name, "to_name": config.image_name, "value": {"x": 50, "y": 50}}
    body = {
        "project": f"{project.key.project}",
        "label_config": project.settings.get("label_config"),
        "tasks": [{"id": None, "data": task.get("data") or {}}],
        "params": {"context": {"result": [row]}},
    }
    results = backend.post("/predict", body).get("results")
    if not isinstance(results, list) or not results:
        raise BadRequest("the backend answered in another form than expected")
    rows = results[0].get("result") or []
    if rows:
        yield f"in the middle of task {task.get('id')}: {len(rows)} rows", False
    else:
        yield f"in the middle of task {task.get('id')}: an empty answer; the backend's log has the reason", True
