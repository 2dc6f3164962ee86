"""Who may call: HTTP Basic for every route but /health, a secret of its own for the webhook."""

from __future__ import annotations

import base64
import contextlib
import hmac
from typing import Literal

from flask import Request

from backend.settings import Settings, plain

#: "training": may ask for training only, which brings no data.
Rights = Literal["all", "training"]


def rights_of(request: Request, settings: Settings, *, webhook: bool) -> Rights | None:
    """What a request may do, by the credentials it carries and those that the settings require; None for nothing.

    webhook: whether it is a call of /webhook. Where only a webhook secret is set, a webhook without it may still ask
    for training, as anyone may who can reach the other routes.
    """
    basic_required = settings.basic_auth_user is not None
    secret_required = webhook and settings.webhook_secret is not None
    if not basic_required and not secret_required:
        return "all"
    user_and_password = f"{settings.basic_auth_user}:{plain(settings.basic_auth_pass)}"
    if basic_required and _equal(_basic_credentials(request), user_and_password):
        return "all"
    secret = request.headers.get("X-Semsam-Secret", "").encode("latin-1")  # the bytes that came
    if secret_required and _equal(secret, plain(settings.webhook_secret) or ""):
        return "all"
    return None if basic_required else "training"


def _basic_credentials(request: Request) -> bytes:
    """`user:password` as the bytes that came; empty when there are none."""
    scheme, _, encoded = request.headers.get("Authorization", "").partition(" ")
    try:
        return base64.b64decode(encoded.strip(), validate=True) if scheme.lower() == "basic" else b""
    except ValueError:
        return b""


def _equal(given: bytes, expected: str) -> bool:
    """Equal as UTF-8 or as Latin-1, which Label Studio's client sends; the time taken does not depend on `given`."""
    equal = hmac.compare_digest(given, expected.encode())
    with contextlib.suppress(UnicodeEncodeError):
        equal |= hmac.compare_digest(given, expected.encode("latin-1"))
    return equal
