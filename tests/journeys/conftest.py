"""One real Label Studio, one real backend and one Chromium for all journeys."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, StorageState, sync_playwright

from backend.demo import DemoProject, ProjectMaker
from backend.demo_servers import HOST, Credentials, start_backend, start_label_studio
from tests.journeys.browser import Editor

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = ROOT / "out" / "journeys"
CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
CHROMIUM_FLAGS += ["--disable-background-networking", "--disable-component-update"]


@dataclass(frozen=True)
class Studio:
    """A running Label Studio and the backend beside it."""

    url: str
    backend_url: str
    credentials: Credentials
    api: ProjectMaker


def free_port() -> int:
    """A TCP port nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    program = ROOT / ".venv-ls" / "bin" / "label-studio"
    if not program.exists():
        pytest.skip("Label Studio is not installed: `make test` installs it")
    folder = tmp_path_factory.mktemp("label-studio")
    credentials = Credentials.load_or_create(folder / "credentials.json")
    port, backend_port = free_port(), free_port()
    url, backend_url = f"http://{HOST}:{port}", f"http://{HOST}:{backend_port}"
    logs = SCREENSHOTS / "logs"  # kept, to be read after a failure
    label_studio = start_label_studio(program, port, folder / "data", credentials, logs / "label-studio.log")
    try:
        backend = start_backend(backend_port, url, credentials.token, folder / "backend", logs / "backend.log")
        try:
            label_studio.wait_until_healthy(300)
            backend.wait_until_healthy(120)
            yield Studio(url, backend_url, credentials, ProjectMaker(url, credentials.token))
        finally:
            backend.stop()
    finally:
        label_studio.stop()


@pytest.fixture(scope="session")
def chromium(studio: Studio) -> Iterator[Browser]:
    # after the servers: a process with the browser's threads should not fork
    names = filter(None, (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome"))
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("Chromium is not installed: `make test` installs it where it can")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def logged_in(chromium: Browser, studio: Studio) -> StorageState:
    """Cookies of a session that was opened on the login page."""
    with chromium.new_context() as context:
        page = context.new_page()
        page.goto(f"{studio.url}/user/login/")
        page.fill("input[name=email]", studio.credentials.email)
        page.fill("input[name=password]", studio.credentials.password)
        page.press("input[name=password]", "Enter")
        page.wait_for_url(lambda address: "/user/login" not in address)
        return {"cookies": context.storage_state()["cookies"], "origins": []}


@pytest.fixture
def editor(chromium: Browser, studio: Studio, logged_in: StorageState) -> Iterator[Editor]:
    """A browser profile of its own: the editor keeps tools and settings in it."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with chromium.new_context(viewport={"width": 1440, "height": 1000}, storage_state=logged_in) as context:
        # its pages refer to fonts and scripts elsewhere: nothing leaves the machine
        context.route(
            lambda address: not address.startswith((studio.url, "data:", "blob:")), lambda route: route.abort()
        )
        page = context.new_page()
        page.set_default_timeout(30_000)
        yield Editor(page, studio.url, SCREENSHOTS)


@pytest.fixture
def project(studio: Studio, request: pytest.FixtureRequest) -> Callable[..., DemoProject]:
    """Makes this test's own project: `project(photographs, config)`, `config` a file in configs/."""

    def make(photographs: list[Path], config: str = "labeling.xml") -> DemoProject:
        labeling = (ROOT / "configs" / config).read_text()
        return studio.api.make(request.node.name[:50], labeling, photographs, studio.backend_url)

    return make
