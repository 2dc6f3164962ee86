"""What `make run` starts: Label Studio, the backend and its worker on this machine, and a project ready to be clicked.

Everything is in one data folder: `credentials.json` (mode 0600), `label-studio/`, `logs/`, the files of the backend.
A second start finds user, project, tasks and connection, and leaves them as they are.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from filelock import FileLock, Timeout
from rich.console import Console
from rich.panel import Panel
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from backend.demo.project import REPOSITORY, prepare
from backend.demo.servers import (
    HOST,
    Credentials,
    Server,
    check_port,
    fetch_weights,
    label_studio_program,
    start_backend,
    start_label_studio,
    start_worker,
)
from backend.errors import DemoError

_NEEDED_BYTES = 500 * 2**20
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(port: int = 8080, backend_port: int = 9090, root: Path | None = None, data: Path | None = None) -> None:
    """Start servers and worker, make the project, print how to use it, and serve until Ctrl-C, SIGTERM or SIGHUP.

    All are stopped before it returns or raises DemoError. `root` is the repository (default: the one of this file),
    `data` the data folder (default: `.semsam` in it).
    """
    root = root or REPOSITORY
    data = data or root / ".semsam"
    console = Console(highlight=False)
    with _only_once(data), _signals_interrupt(), contextlib.ExitStack() as servers:
        try:
            studio, backend, worker = _start(console, servers, root, data, port, backend_port)
            _watch(console, studio, backend, worker)
        except KeyboardInterrupt:
            for number in _SIGNALS:  # a second Ctrl-C must not leave a server behind
                signal.signal(number, signal.SIG_IGN)
            console.print("\nStopping both servers. Annotations are kept.")


def _start(
    console: Console, servers: contextlib.ExitStack, root: Path, data: Path, port: int, backend_port: int
) -> tuple[Server, Server, Server]:
    """Label Studio, backend and worker, once the project is ready. `servers` stops them. Raises DemoError."""
    program = label_studio_program(root)
    check_port(port, "PORT")
    check_port(backend_port, "BACKEND_PORT")
    if shutil.disk_usage(data).free < _NEEDED_BYTES:
        raise DemoError(f"less than {_NEEDED_BYTES // 2**20} MB are free on the disk of {data}: free some space first")
    fetch_weights(os.environ.get("SEMSAM_MODEL", ""), data)
    credentials, logs = Credentials.load_or_create(data / "credentials.json"), data / "logs"
    url, backend_url = f"http://{HOST}:{port}", f"http://{HOST}:{backend_port}"
    with _first_start(data / "label-studio", data / "label-studio.unfinished") as first:
        studio = start_label_studio(program, port, data / "label-studio", credentials, logs / "label-studio.log")
        servers.callback(studio.stop)
        backend = start_backend(backend_port, url, credentials, data, logs / "backend.log")
        servers.callback(backend.stop)
        with _step(console, "Label Studio makes its database and starts" if first else "Label Studio starts"):
            studio.wait_until_healthy(300)
        with _step(console, "The backend starts"):
            backend.wait_until_healthy(120)
        with _step(console, "Project, sample photographs and connection"):
            project = prepare(url, credentials.token, backend_url, root, credentials.webhook_secret)
        worker = start_worker(url, credentials, data, logs / "worker.log")
        servers.callback(worker.stop)
    task = f"?task={project.tasks[0]}" if project.tasks else ""
    console.print(_instructions(f"{url}/projects/{project.id}/data{task}", credentials))
    return studio, backend, worker


@contextlib.contextmanager
def _first_start(database: Path, unfinished: Path) -> Iterator[bool]:
    """Whether Label Studio has no database yet. The file `unfinished` is there until the body has run to its end.

    A first start that was cut short may have made a user without its token; only such a database is made anew.
    """
    if unfinished.exists() and database.exists():
        shutil.rmtree(database)
    first = not database.exists()
    if first:
        unfinished.touch()
    yield first
    unfinished.unlink(missing_ok=True)


def _watch(console: Console, studio: Server, backend: Server, worker: Server) -> NoReturn:
    """Raises DemoError when Label Studio or the backend has ended; without the worker the demo goes on."""
    worker_ended = False
    while True:
        time.sleep(0.5)
        studio.check_running()
        backend.check_running()
        try:
            worker.check_running()
        except DemoError as error:
            if not worker_ended:
                console.print(f"[yellow]{error}. Clicks are answered; nothing is fine-tuned until the next start.[/]")
            worker_ended = True


def _instructions(address: str, credentials: Credentials) -> Panel:
    return Panel.fit(
        f"[bold]{address}[/]\n"
        f"e-mail    [bold]{credentials.email}[/]\n"
        f"password  [bold]{credentials.password}[/]\n\n"
        "1  Switch on [bold]Auto-Annotation[/] (bottom bar); leave Auto-Accept off.\n"
        "2  Once per browser: gear (bottom bar) > [bold]Show region labels[/].\n"
        "3  [bold]M[/], then click a thing: its best outline. Click beside the dot: the next level.\n"
        "   [bold]Alt[/]+click excludes. [bold]R[/]: a box around a thing.\n"
        "4  [bold]Check mark[/] (bottom bar): the outline is yours. A wrong name: select it, press\n"
        "   the key on the right label.\n"
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
def _signals_interrupt() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise KeyboardInterrupt as Ctrl-C does."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in _SIGNALS}
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
