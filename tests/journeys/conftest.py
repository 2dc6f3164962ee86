"""One real Label Studio, one real backend and one Chromium for all journeys."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, StorageState

from backend.demo.project import DemoProject, ProjectMaker
from backend.demo.servers import Credentials
from backend.store.database import Store
from tests.chromium import launched
from tests.journeys.browser import Editor
from tests.journeys.demo_process import DemoProcess
from tests.paths import CONFIGS, ROOT

SCREENSHOTS = ROOT / "out" / "journeys"


@dataclass(frozen=True)
class Studio:
    """A running demo: Label Studio and the backend beside it. `printed`: what it said until it was ready."""

    demo: DemoProcess
    printed: str
    url: str
    backend_url: str
    credentials: Credentials
    api: ProjectMaker


@pytest.fixture(scope="package")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    if not (ROOT / ".venv-ls" / "bin" / "label-studio").exists():
        pytest.skip("Label Studio is not installed: `make test` installs it")
    demo = DemoProcess(tmp_path_factory.mktemp("journeys") / "data")
    try:
        printed = demo.wait_until_ready()
        yield Studio(demo, printed, demo.url, demo.backend_url, demo.credentials, demo.api)
    finally:
        demo.stop()
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        for log in (demo.data / "logs").glob("*.log"):  # to be read after a failure
            shutil.copy(log, SCREENSHOTS)


@pytest.fixture(scope="package")
def chromium(studio: Studio) -> Iterator[Browser]:
    # after the servers: a process with the browser's threads should not fork
    with launched() as browser:
        yield browser


@pytest.fixture(scope="package")
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
        labeling = (CONFIGS / config).read_text()
        return studio.api.make(
            request.node.name[:50], labeling, photographs, studio.backend_url, studio.credentials.webhook_secret
        )

    return make


@pytest.fixture
def backends_store(studio: Studio) -> Iterator[Store]:
    """The running backend's own."""
    store = Store.open(f"sqlite:///{studio.demo.data}/semsam.db")
    yield store
    store.close()
