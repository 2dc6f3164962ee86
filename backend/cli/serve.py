"""`semsam serve` and `semsam demo`: the backend, and what `make run` starts."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from backend.cli.shared import SettingsFile, log_to_stderr


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    config: SettingsFile = None,
) -> None:
    """Start the Label Studio ML backend."""
    from backend.settings import load_settings
    from backend.web.server import serve as run

    environ = dict(os.environ)
    if host is not None:
        environ["SEMSAM_HOST"] = host
    if port is not None:
        environ["SEMSAM_PORT"] = str(port)
    log_to_stderr()
    run(load_settings(config, environ))


def demo(
    port: Annotated[int, typer.Option(help="Port of Label Studio.")] = 8080,
    backend_port: Annotated[int, typer.Option(help="Port of the backend.")] = 9090,
    prepare: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Start nothing: make the project in LABEL_STUDIO_URL for the backend at URL."),
    ] = None,
) -> None:
    """Start Label Studio and the backend with a sample project, ready to click (`make run`)."""
    from backend.demo import project
    from backend.demo.run import run
    from backend.settings import load_settings, plain

    if prepare is None:
        run(port=port, backend_port=backend_port)
        return
    settings = load_settings()
    made = project.prepare(
        settings.label_studio_url,
        plain(settings.label_studio_api_key) or "",
        prepare,
        webhook_secret=plain(settings.webhook_secret),
    )
    print(f"project {made.id} with {len(made.tasks)} tasks is connected to {prepare}")
