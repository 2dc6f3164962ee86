"""What `make run` starts: Label Studio, the backend and its worker on this machine, and a project ready to be clicked.

All it keeps is in one data folder: `credentials.json` (mode 0600), `label-studio/`, `logs/`, the backend's own files.
A second start finds user, project, tasks and connection, and leaves them as they are.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from filelock import FileLock, Timeout
from rich.console import Console
from rich.panel import Panel
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from backend.demo.servers import HOST, Credentials, check_port, start_backend, start_label_studio, start_worker
from backend.errors import DemoError

PROJECT_TITLE = "semsam demo"
CONNECTION_TITLE = "semsam"

_NEEDED_BYTES = 500 * 2**20
_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class DemoProject:
    """A project in Label Studio that is connected to the backend. `tasks`: ids in the order of the photographs."""

    id: int
    tasks: list[int]


class ProjectMaker:
    """Makes demo projects in a running Label Studio; every step finds what an earlier run has made."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url.rstrip("/")
        self._session = requests.Session()
        self._session.headers["Authorization"] = f"Token {token}"

    def call(self, method: str, path: str, **arguments: Any) -> Any:
        """The JSON that Label Studio's API answers (None for an empty answer); DemoError for anything but success."""
        try:
            response = self._session.request(method, self._url + path, timeout=60, **arguments)
        except requests.RequestException as error:
            raise DemoError(f"Label Studio at {self._url} does not answer: {error}") from None
        if response.status_code == 401:
            raise DemoError(
                f"Label Studio at {self._url} does not know the token: its data and credentials.json do not belong "
                "together. Restore the one that was lost, or move the data folder away to start afresh"
            )
        if not response.ok:
            raise DemoError(f"Label Studio refused {method} {path} with {response.status_code}: {_reason(response)}")
        return response.json() if response.content else None

    def make(
        self,
        title: str,
        labeling_config: str,
        photographs: Sequence[Path],
        backend_url: str,
        webhook_secret: str | None = None,
    ) -> DemoProject:
        """The project `title` with one task for each photograph and an interactive connection to `backend_url`.

        `webhook_secret` is what its webhook shows to the backend; None leaves that as it is.
        """
        projects = self.call("GET", "/api/projects", params={"title": title, "page_size": 100})["results"]
        project = next((found["id"] for found in projects if found["title"] == title), None)
        if project is None:
            # with shared predictions on, opening a task would ask the backend for masks that nobody has clicked for
            settings = {"title": title, "label_config": labeling_config, "show_collab_predictions": False}
            project = self.call("POST", "/api/projects", json=settings)["id"]
        tasks = self._tasks(project)
        if not tasks and photographs:
            with contextlib.ExitStack() as stack:
                files = {photo.name: (photo.name, stack.enter_context(photo.open("rb"))) for photo in photographs}
                self.call("POST", f"/api/projects/{project}/import", files=files)
            tasks = self._tasks(project)
        self._connect(project, backend_url)
        if webhook_secret is not None:
            self._show_secret(project, f"{backend_url}/webhook", webhook_secret)
        return DemoProject(project, tasks)

    def _tasks(self, project: int) -> list[int]:
        answer = self.call("GET", "/api/tasks", params={"project": project, "page_size": 100, "fields": "all"})
        return sorted(task["id"] for task in answer["tasks"])

    def _connect(self, project: int, backend_url: str) -> None:
        wanted = {"project": project, "url": backend_url, "title": CONNECTION_TITLE, "is_interactive": True}
        connections = self.call("GET", "/api/ml", params={"project": project})
        ours = next((found for found in connections if found["title"] == CONNECTION_TITLE), None)
        if ours is None:
            self.call("POST", "/api/ml", json=wanted)
        elif ours["url"] != backend_url:
            self.call("PATCH", f"/api/ml/{ours['id']}", json=wanted)
            # Label Studio made a webhook with the connection and would leave it at the old address
            for webhook in self.call("GET", "/api/webhooks/", params={"project": project}):
                if webhook["url"] == f"{ours['url']}/webhook":
                    self.call("PATCH", f"/api/webhooks/{webhook['id']}/", json={"url": f"{backend_url}/webhook"})

    def _show_secret(self, project: int, url: str, secret: str) -> None:
        """Label Studio makes a webhook with each connection, where it can, and gives it no header."""
        wanted = {"url": url, "headers": {"X-Semsam-Secret": secret}}
        ours = [one for one in self.call("GET", "/api/webhooks/", params={"project": project}) if one["url"] == url]
        for webhook in ours:
            if webhook.get("headers") != wanted["headers"]:
                self.call("PATCH", f"/api/webhooks/{webhook['id']}/", json=wanted)
        if not ours:
            every = {"project": project, "send_payload": True, "send_for_all_actions": True}
            self.call("POST", "/api/webhooks/", json=wanted | every)


def _reason(response: requests.Response) -> str:
    """What Label Studio says about a refusal, in a line without markup."""
    try:
        body = response.json()
        text = json.dumps(body.get("validation_errors") or body["detail"])
    except (ValueError, KeyError, AttributeError):
        text = response.text
    return re.sub(r"<[^>]*>", "", " ".join(text.split()))[:500]


def prepare(
    label_studio_url: str, token: str, backend_url: str, root: Path | None = None, webhook_secret: str | None = None
) -> DemoProject:
    """The demo project in a Label Studio that already runs, with `configs/labeling.xml` and `samples/*.jpg` of `root`.

    `backend_url` is the backend as Label Studio reaches it; `root` the repository (default: the one this file is in).
    `webhook_secret` as in `ProjectMaker.make`. Raises DemoError.
    """
    root = root or Path(__file__).resolve().parents[2]
    config = (root / "configs" / "labeling.xml").read_text()
    photographs = sorted((root / "samples").glob("*.jpg"))
    maker = ProjectMaker(label_studio_url, token)
    return maker.make(PROJECT_TITLE, config, photographs, backend_url, webhook_secret)


def run(port: int = 8080, backend_port: int = 9090, root: Path | None = None, data: Path | None = None) -> None:
    """Starts servers and worker, makes the project, says how to use it and serves until Ctrl-C, SIGTERM or SIGHUP.

    All are stopped before it returns or raises DemoError. `root` is the repository (default: the one this file
    is in), `data` the data folder (default: `.semsam` in it).
    """
    root = root or Path(__file__).resolve().parents[2]
    data = data or root / ".semsam"
    console = Console(highlight=False)
    with _only_once(data), _endings_interrupt(), contextlib.ExitStack() as servers:
        try:
            _serve(console, servers, root, data, port, backend_port)
        except KeyboardInterrupt:
            for number in _ENDINGS:  # an impatient second Ctrl-C must not leave a server behind
                signal.signal(number, signal.SIG_IGN)
            console.print("\nStopping both servers. Annotations are kept.")


def _serve(
    console: Console, servers: contextlib.ExitStack, root: Path, data: Path, port: int, backend_port: int
) -> None:
    program = root / ".venv-ls" / "bin" / "label-studio"
    if not program.exists():
        raise DemoError(f"{program} is missing: start the demo with `make run`, which installs it")
    check_port(port, "PORT")
    check_port(backend_port, "BACKEND_PORT")
    if shutil.disk_usage(data).free < _NEEDED_BYTES:
        raise DemoError(f"less than {_NEEDED_BYTES // 2**20} MB are free on the disk of {data}: free some space first")
    credentials = Credentials.load_or_create(data / "credentials.json")
    url, backend_url = f"http://{HOST}:{port}", f"http://{HOST}:{backend_port}"
    # A first start that was cut short may have made a user without its token. Only such a database is made anew.
    database, unfinished = data / "label-studio", data / "label-studio.unfinished"
    if unfinished.exists() and database.exists():
        shutil.rmtree(database)
    first = not database.exists()
    if first:
        unfinished.touch()
    studio = start_label_studio(program, port, database, credentials, data / "logs" / "label-studio.log")
    servers.callback(studio.stop)
    backend = start_backend(backend_port, url, credentials, data, data / "logs" / "backend.log")
    servers.callback(backend.stop)
    with _step(console, "Label Studio makes its database and starts" if first else "Label Studio starts"):
        studio.wait_until_healthy(300)
    with _step(console, "The backend starts"):
        backend.wait_until_healthy(120)
    with _step(console, "Project, sample photographs and connection"):
        project = prepare(url, credentials.token, backend_url, root, credentials.webhook_secret)
    worker = start_worker(url, credentials, data, data / "logs" / "worker.log")
    servers.callback(worker.stop)
    unfinished.unlink(missing_ok=True)
    task = f"?task={project.tasks[0]}" if project.tasks else ""
    console.print(_instructions(f"{url}/projects/{project.id}/data{task}", credentials))
    fine_tunes = True
    while True:
        time.sleep(0.5)
        studio.check_running()
        backend.check_running()
        try:
            worker.check_running()
        except DemoError as error:
            if fine_tunes:
                console.print(f"[yellow]{error}. Clicks are answered; nothing is fine-tuned until the next start.[/]")
            fine_tunes = False


def _instructions(address: str, credentials: Credentials) -> Panel:
    return Panel.fit(
        f"[bold]{address}[/]\n"
        f"e-mail    [bold]{credentials.email}[/]\n"
        f"password  [bold]{credentials.password}[/]\n\n"
        "1  Switch on [bold]Auto-Annotation[/] (bottom bar); leave Auto-Accept off.\n"
        "2  Once per browser: gear (bottom bar) > [bold]Show region labels[/].\n"
        "3  [bold]Auto-Detect[/] (toolbar), then click an object: masks, whole to part.\n"
        "   [bold]Alt[/]+click excludes. Auto-Detect again: one mask a click; again: a box.\n"
        "4  Accept one: the [bold]right disc[/] under it; then [bold]reject all[/] (bottom bar).\n"
        "5  [bold]Submit[/].\n\n"
        "[dim]Ctrl-C here stops everything; annotations are kept.[/]",
        title="semsam is ready",
        border_style="green",
    )


@contextlib.contextmanager
def _step(console: Console, text: str) -> Iterator[None]:
    """Shows `text` with the seconds that pass, and keeps it with a tick when the body is done."""
    began = time.monotonic()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task(text, total=None)
        yield
    console.print(f"[green]✓[/] {text}  [dim]{time.monotonic() - began:.1f} s[/]")


@contextlib.contextmanager
def _endings_interrupt() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise KeyboardInterrupt as Ctrl-C does."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in _ENDINGS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _only_once(data: Path) -> Iterator[None]:
    """Keeps a second demo off the same database, which two servers would damage."""
    try:
        data.mkdir(parents=True, exist_ok=True)
        lock = FileLock(data / "lock").acquire(blocking=False)
    except Timeout:
        raise DemoError(f"the demo in {data} is running already: stop it first (Ctrl-C where it runs)") from None
    except OSError as error:
        raise DemoError(f"cannot write to the data folder {data}: {error.strerror}") from None
    with lock:
        yield
