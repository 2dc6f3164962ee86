"""The exception tree of `semsam_model.errors`, continued; each class carries the HTTP status a client is answered with.

SemsamError
├── ConfigError
│   └── SettingsError           500  the service's settings cannot be used; the start stops
├── ImageError
│   ├── ImageFormatError        415  not one of the accepted formats, or broken
│   └── ImageTooLarge           413  more bytes or pixels than the settings allow
└── BackendError                500  anything the service itself raises
    ├── BadRequest              400  the request is not what Label Studio sends
    │   └── RequestTooLarge     413  the body is over the limit
    ├── Unauthorized            401  credentials are missing or wrong
    ├── NotReady                503  the model is not loaded (yet)
    ├── DemoError               500  `make run` cannot start or go on
    ├── VersionError            409  a model version is unknown, damaged or not to be changed like that
    ├── ExportError             500  an export cannot be made where and how it was asked for
    ├── StoreError              503  the database cannot be used, or does not hold what was asked for
    │   ├── StoreUnavailable    503  it is away, locked or full: the same may work later
    │   └── NotStored           404  it works, and has no such job
    └── LabelStudioError        502  Label Studio, or the store behind it, did not give what was asked
        ├── OriginRefused       403  an address outside the allowed origins and folders
        ├── TokenRefused        502  Label Studio does not accept our token
        ├── NotFound            404  no such image, task or file
        ├── TaskRefused         502  one task cannot be had or annotated; it works for others
        └── FetchTimeout        504  the answer did not come in time
"""

from __future__ import annotations

from semsam_model.errors import ConfigError, ImageError, PromptError, SemsamError


class SettingsError(ConfigError):
    """The service's settings cannot be used: unknown key, wrong type, value out of range."""

    http_status = 500


class ImageFormatError(ImageError):
    """The bytes are not a picture in an accepted format, or the file is broken."""

    http_status = 415


class ImageTooLarge(ImageError):
    """The picture has more bytes or pixels than the settings allow."""

    http_status = 413


class BackendError(SemsamError):
    """Anything the service itself raises on purpose."""

    http_status = 500


class BadRequest(BackendError):
    """The request is not what Label Studio sends; the message names the field, what came and what was expected."""

    http_status = 400


class RequestTooLarge(BadRequest):
    """The request body is over `max_body_bytes`."""

    http_status = 413


class Unauthorized(BackendError):
    """Credentials are missing or wrong."""

    http_status = 401


class NotReady(BackendError):
    """The model is not loaded (yet)."""

    http_status = 503


class DemoError(BackendError):
    """`make run` cannot start or go on; the message says what to do."""

    http_status = 500


class VersionError(BackendError):
    """A model version is unknown, its files are not what was registered, or it is not to be changed like that."""

    http_status = 409


class StoreError(BackendError):
    """The database of corrections cannot be opened, read or written, or does not hold what was asked for."""

    http_status = 503


class ExportError(BackendError):
    """An export cannot be made where and how it was asked for."""

    http_status = 500


class StoreUnavailable(StoreError):
    """The database is away, locked or full: the same may work later."""

    http_status = 503


class NotStored(StoreError):
    """The database works, and does not hold what was asked for."""

    http_status = 404


class LabelStudioError(BackendError):
    """Label Studio, or the store behind it, did not give what was asked for."""

    http_status = 502


class OriginRefused(LabelStudioError):
    """An address outside the allowed origins, or a path outside the allowed folder."""

    http_status = 403


class TokenRefused(LabelStudioError):
    """Label Studio does not accept our token, or there is none."""

    http_status = 502


class NotFound(LabelStudioError):
    """No such image, task or file."""

    http_status = 404


class TaskRefused(LabelStudioError):
    """One task cannot be had, or its prediction is not taken; Label Studio works for others."""

    http_status = 502


class FetchTimeout(LabelStudioError):
    """The answer did not come in time."""

    http_status = 504


def http_status(error: BaseException) -> int:
    """The HTTP status for `error`: its class's own; 422 for other prompts and images that cannot be used; else 500."""
    if isinstance(error, PromptError | ImageError):
        return getattr(error, "http_status", 422)
    if isinstance(error, SemsamError):
        return getattr(error, "http_status", 500)
    return 500
