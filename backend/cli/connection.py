"""`semsam connect` and `semsam doctor`: a project's connection to this backend, made and checked."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from backend.cli.shared import Origin, Project

if TYPE_CHECKING:
    from backend.doctor.checks import Finding
    from backend.doctor.studio import StudioProject
    from backend.settings import Settings

Url = Annotated[
    str | None,
    typer.Option("--url", help="The backend's address as Label Studio reaches it; http://HOST:PORT of the settings."),
]


def connect(
    project: Project,
    url: Url = None,
    origin: Origin = None,
    prelabel: Annotated[
        bool, typer.Option("--prelabel", help="Leave Label Studio asking for masks when a task is opened.")
    ] = False,
) -> None:
    """Connect a project: backend, webhook with its secret, prelabelling off; checks its labeling config."""
    from backend.doctor import connect as doctor
    from backend.errors import BadRequest, LabelStudioError
    from backend.settings import load_settings

    settings = load_settings()
    address = _address(settings, url)
    found = _project(settings, project, origin)
    try:
        for line in doctor.connect(found, address, settings, prelabel=prelabel):
            print(line)
    except LabelStudioError as error:
        if "reserved network" in str(error):
            _print_environment(address)
        raise
    try:
        problems = found.config.problems()
    except BadRequest as error:
        problems = [str(error)]
    for problem in problems:
        print(f"labeling config: {problem}")
    _print_environment(address)


def doctor(
    project: Annotated[int | None, typer.Option(help="Its id in Label Studio; the backend alone if not given.")] = None,
    url: Url = None,
    origin: Origin = None,
) -> None:
    """Play the whole path of a click and say, a line for each step, what is wrong and the way out."""
    from importlib.metadata import version

    from backend.doctor.checks import check_backend, check_project
    from backend.label_studio.backend_calls import BackendCalls
    from backend.settings import load_settings

    settings = load_settings()
    print(f"semsam {version('semsam')}")
    backend = BackendCalls(url or _own_address(settings), settings)
    wrong = sum(map(_told, check_backend(settings, backend)))
    if project is not None:
        found = _project(settings, project, origin)
        wrong += sum(map(_told, check_project(found, settings, backend, address=url)))
    if wrong:
        print(f"{wrong} to be set right", file=sys.stderr)
        raise typer.Exit(1)


def _told(finding: Finding) -> bool:
    print(finding)
    return finding.wrong


def _project(settings: Settings, project: int, origin: str | None) -> StudioProject:
    from backend.doctor.studio import StudioProject
    from backend.label_studio.client import LabelStudio
    from backend.label_studio.servers import origin_of
    from backend.records import ProjectKey

    key = ProjectKey(origin or str(origin_of(settings.label_studio_url)), project)
    return StudioProject(LabelStudio(settings), key)


def _own_address(settings: Settings) -> str:
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


def _address(settings: Settings, url: str | None) -> str:
    return (url or _own_address(settings)).rstrip("/")


def _print_environment(address: str) -> None:
    """What Label Studio has to be started with to be let to call a backend in a reserved network."""
    from backend.demo.servers import banned_subnets
    from backend.doctor.connect import network_of

    network = network_of(address)
    if network is None:
        return
    print(f"\nLabel Studio calls no reserved network by default. To let it call {network}, start it with:")
    print("LABEL_STUDIO_USE_DEFAULT_BANNED_SUBNETS=false")
    print(f"LABEL_STUDIO_USER_ADDITIONAL_BANNED_SUBNETS={','.join(banned_subnets(str(network)))}")
