"""A project connected to this backend as `make run` connects its own: connection, webhook with secret, no prelabelling.

Repeatable: what is there is found and set right.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Any
from urllib.parse import urlsplit

from backend.doctor.studio import StudioProject, of_backend
from backend.settings import Settings, plain

TITLE = "semsam"


def connect(project: StudioProject, address: str, settings: Settings, *, prelabel: bool) -> list[str]:
    """Connect it to the backend at `address`, as Label Studio reaches it; what was done, a line each.

    prelabel: leave Label Studio asking for predictions when a task without one is opened. Raises LabelStudioError.
    """
    return [
        _connection(project, address, settings),
        _webhook(project, f"{address}/webhook", plain(settings.webhook_secret)),
        _prelabelling(project, prelabel),
    ]


def _connection(project: StudioProject, address: str, settings: Settings) -> str:
    wanted: dict[str, Any] = {"project": project.key.project, "url": address, "is_interactive": True}
    if settings.basic_auth_user is not None:
        wanted |= {"auth_method": "BASIC_AUTH", "basic_auth_user": settings.basic_auth_user}
        wanted |= {"basic_auth_pass": plain(settings.basic_auth_pass)}
    listed = project.connections()
    ours = of_backend(listed, address) or [each for each in listed if each.get("title") == TITLE]
    if not ours:
        project.call("POST", "/api/ml", wanted | {"title": TITLE})
        return f"connected to {address}"
    project.call("PATCH", f"/api/ml/{int(ours[0]['id'])}", wanted)
    return f"connection {ours[0]['id']} to {address}: there, interactive"


def _webhook(project: StudioProject, address: str, secret: str | None) -> str:
    """Label Studio makes one with the connection where it can, without a secret."""
    wanted: dict[str, Any] = {"url": address, "is_active": True, "send_payload": True, "send_for_all_actions": True}
    if secret:
        wanted["headers"] = {"X-Semsam-Secret": secret}
    said = "with its secret" if secret else "without a secret: set SEMSAM_WEBHOOK_SECRET, and connect again"
    ours = of_backend(project.webhooks(), address)
    if not ours:
        project.call("POST", "/api/webhooks/", wanted | {"project": project.key.project})
        return f"webhook to {address} made, {said}"
    for each in ours:
        project.call("PATCH", f"/api/webhooks/{int(each['id'])}/", wanted)
    return f"webhook to {address}: there, {said}"


def _prelabelling(project: StudioProject, prelabel: bool) -> str:
    if prelabel:
        return "prelabelling: left as it is"
    off = {"show_collab_predictions": False, "evaluate_predictions_automatically": False}
    project.call("PATCH", f"/api/projects/{project.key.project}/", off)
    return "prelabelling when a task is opened: off (--prelabel leaves it on)"


def network_of(address: str) -> ipaddress.IPv4Network | None:
    """The reserved network of one address that Label Studio must be allowed to call; None for a public one.

    None too where the name is not known here, or is one of IPv6 alone.
    """
    try:
        found = ipaddress.IPv4Address(socket.gethostbyname(urlsplit(address).hostname or ""))
    except (OSError, ValueError):
        return None
    return None if found.is_global else ipaddress.IPv4Network(f"{found}/32")
