"""The backend's part of the exception tree; each class carries the HTTP status of the answer.

The rest of the tree is in `semsam_model.errors`.

SemsamError
├── ConfigError
│   └── SettingsError           500  the service's settings cannot be used; the start stops
├── ImageError
│   ├── ImageFormatError        415  not one of the accepted formats, or broken
│   └── ImageTooLarge           413  more bytes or pixels than the settings allow
└── BackendError                500  anything that the service itself raises
    ├── BadRequest              400  the request is not what Label Studio sends
    │   └── RequestTooLarge     413  the body is larger than `max_body_bytes`
    ├── Unauthorized            401  credentials are missing or wrong
    ├── NotReady                503  the model is not loaded yet
    ├── DemoError               500  `make run` cannot start or continue
    ├── VersionError            409  a model version is unknown or damaged, or the change is not allowed
    ├── ExportError             500  the requested export cannot be written
    ├── StoreError              503  the database cannot be used, or does not hold what was asked for
    │   ├── StoreUnavailable    503  it is down, locked or full: a retry may work
    │   │   └── PhotosUnavailable 503 the same of the object store with the photos of corrections
    │   └── NotStored           404  it works and has no such entry
    └── LabelStudioError        502  Label Studio, or the cloud store behind it, did not answer as expected
        ├── OriginRefused       403  an address outside the allowed origins, a path outside the allowed folder
        ├── TokenRefused        502  Label Studio does not accept our token
        ├── NotFound            404  no such photo, task or file
        ├── TaskRefused         502  one task cannot be read or annotated; others can
        └── FetchTimeout        504  the answer did not come within the timeout
"""

from __future__ import annotations

from semsam_model.errors import ConfigError, ImageError, PromptError, SemsamError


class SettingsError(ConfigError):
    """The service's settings cannot be used: unknown key, wrong type, value out of range."""

    http_status = 500


class ImageFormatError(ImageError):
    """The bytes are not a photo in an accepted format, or the file is broken."""

    http_status = 415


class ImageTooLarge(ImageError):
    """The photo has more bytes or pixels than the settings allow."""

    http_status = 413


class BackendError(SemsamError):
    """Anything that the service itself raises on purpose."""

    http_status = 500


class BadRequest(BackendError):
    """The request is not what Label Studio sends; the message names the field, the value and the form expected."""

    http_status = 400


class RequestTooLarge(BadRequest):
    """The request body is larger than `max_body_bytes`."""

    http_status = 413


class Unauthorized(BackendError):
    """Credentials are missing or wrong."""

    http_status = 401


class NotReady(BackendError):
    """The model is not loaded yet."""

    http_status = 503


class DemoError(BackendError):
    """`make run` cannot start or continue; the message says what to do."""

    http_status = 500


class VersionError(BackendError):
    """A model version is unknown, its files are not those registered, or the change is not allowed."""

    http_status = 409


class StoreError(BackendError):
    """The database cannot be opened, read or written, or has no such entry."""

    http_status = 503


class ExportError(BackendError):
    """The requested export cannot be written."""

    http_status = 500


class StoreUnavailable(StoreError):
    """The database is down, locked or full: a retry may work."""

    http_status = 503


class PhotosUnavailable(StoreUnavailable):
    """The object store with the photos of corrections is down, or refuses us: a retry may work."""

    http_status = 503


class NotStored(StoreError):
    """The database works and has no such entry."""

    http_status = 404


class LabelStudioError(BackendError):
    """Label Studio, or the cloud store behind it, did not answer as expected."""

    http_status = 502


class Unreachable(LabelStudioError):
    """Nobody answers there: every further request would fail, too."""

    http_status = 502


class OriginRefused(LabelStudioError):
    """An address outside the allowed origins, or a path outside the allowed folder."""

    http_status = 403


class TokenRefused(LabelStudioError):
    """Label Studio does not accept our token, or there is none."""

    http_status = 502


class NotFound(LabelStudioError):
    """No such photo, task or file."""

    http_status = 404


class TaskRefused(LabelStudioError):
    """One task cannot be read, or Label Studio refuses its prediction; other tasks work."""

    http_status = 502


class FetchTimeout(LabelStudioError):
    """The answer did not come within the timeout."""

    http_status = 504


def http_status(error: BaseException) -> int:
    """The HTTP status for `error`: its class's own; 422 for other prompts and photos that cannot be used; else 500."""
    if isinstance(error, PromptError | ImageError):
        return getattr(error, "http_status", 422)
    if isinstance(error, SemsamError):
        return getattr(error, "http_status", 500)
    return 500
