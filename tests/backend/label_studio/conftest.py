from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler

import pytest

from tests.backend.label_studio.web import LEGACY, Web, guarded


@pytest.fixture
def web() -> Iterator[Callable[..., Web]]:
    """Makes servers; all are stopped at the end."""
    made: list[Web] = []

    def make(**routes: Callable[[BaseHTTPRequestHandler], None]) -> Web:
        made.append(Web({"/" + name: route for name, route in routes.items()}))
        return made[-1]

    yield make
    for server in made:
        server.stop()


@pytest.fixture
def studio(web: Callable[..., Web]) -> Web:
    server = web()
    server.routes["/data/upload/1/a.png"] = guarded(f"Token {LEGACY}")
    return server
