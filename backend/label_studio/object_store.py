"""Files in object stores, through obstore: read or write one, list a prefix page by page however many there are.

Addresses are s3://bucket/key, gs://bucket/key, az://container/key (azure-blob:// is the same) and file:///path;
nothing in the key is an escape. Credentials and the address of the store come from the usual variables:
AWS_ACCESS_KEY_ID, AWS_REGION, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME, ...
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING

from backend.errors import BackendError, ImageTooLarge, LabelStudioError, NotFound
from backend.label_studio.servers import shown
from backend.settings import Settings

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

SCHEMES = ("s3", "s3a", "gs", "az", "azure", "azure-blob", "abfs", "abfss", "file")
PAGE = 1000  #: objects of a listing that are in memory at a time
_ADDRESS = re.compile(r"([a-z0-9-]+)://([^/]*)/?(.*)", re.IGNORECASE | re.DOTALL)
#: Where a machine of a cloud is asked for its role, which is done when the environment has no credentials.
_ROLE = re.compile(r"/latest/(api/token|meta-data)|metadata\.google|/metadata/identity")


class ObjectStores:
    """All stores that addresses name. Safe to use from several threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store = lru_cache(64)(self._open)

    def read(self, address: str) -> bytes:
        """The object, at most `max_image_bytes`. Raises BackendError, NotFound, ImageTooLarge, LabelStudioError."""
        import obstore
        from obstore.exceptions import BaseError

        root, key = _split(address)
        limit = self._settings.max_image_bytes
        try:
            found = obstore.get(self._store(root), key)
            if found.meta["size"] > limit:
                raise ImageTooLarge(
                    f"{shown(address)}: more than {limit} bytes, the setting max_image_bytes (SEMSAM_MAX_IMAGE_BYTES)"
                )
            return bytes(found.bytes())
        except FileNotFoundError:
            raise NotFound(f"{shown(address)}: not found") from None
        except (BaseError, OSError) as error:
            raise LabelStudioError(f"{shown(address)}: cannot be read: {_reason(error)}") from None

    def has(self, address: str) -> bool:
        """Whether there is such an object. Raises BackendError, LabelStudioError."""
        import obstore
        from obstore.exceptions import BaseError

        root, key = _split(address)
        try:
            obstore.head(self._store(root), key)
        except FileNotFoundError:
            return False
        except (BaseError, OSError) as error:
            raise LabelStudioError(f"{shown(address)}: cannot be read: {_reason(error)}") from None
        return True

    def write(self, address: str, content: bytes) -> None:
        """Make the object, or put it in the place of an earlier one, in one request: whole or not at all.

        Raises BackendError, LabelStudioError.
        """
        import obstore
        from obstore.exceptions import BaseError

        root, key = _split(address)
        try:
            obstore.put(self._store(root), key, content, use_multipart=False)
        except (BaseError, OSError) as error:
            raise LabelStudioError(f"{shown(address)}: cannot be written: {_reason(error)}") from None

    def addresses(self, prefix: str) -> Iterator[str]:
        """Addresses of all objects in the folder `prefix` and below. Raises BackendError, LabelStudioError."""
        import obstore
        from obstore.exceptions import BaseError

        root, key = _split(prefix)
        try:
            for page in obstore.list(self._store(root), key or None, chunk_size=PAGE):
                yield from (f"{root}/{found['path']}" for found in page)
        except (BaseError, OSError) as error:
            raise LabelStudioError(f"{shown(prefix)}: cannot be listed: {_reason(error)}") from None

    def _open(self, root: str) -> ObjectStore:
        from obstore.store import from_url

        seconds = self._settings.image_total_timeout
        options: ClientConfig = {
            "allow_http": True,  # AWS_ENDPOINT_URL may be a store on the own network
            "connect_timeout": timedelta(seconds=self._settings.image_connect_timeout),
            "timeout": timedelta(seconds=seconds),
        }
        retry: RetryConfig = {"max_retries": 3, "retry_timeout": timedelta(seconds=seconds)}
        url = root.replace("azure-blob://", "az://") + "/"
        return from_url(url) if root == "file://" else from_url(url, client_options=options, retry_config=retry)


def is_stored(address: str) -> bool:
    """Whether an address is one of an object store."""
    found = _ADDRESS.match(address)
    return found is not None and found[1].lower() in SCHEMES


def is_below(address: str, prefix: str) -> bool:
    """Whether an object lies in the folder `prefix` or below it, whoever reads its key."""
    found, folder = _ADDRESS.match(address), _ADDRESS.match(prefix)
    if found is None or folder is None or (found[1].lower(), found[2]) != (folder[1].lower(), folder[2]):
        return False
    parts, own = found[3].split("/"), [part for part in folder[3].split("/") if part]
    # servers, proxies and clients read "a//b" and "a/../b" in more than one way
    return parts[: len(own)] == own and not {"", ".", ".."} & set(parts)


def _split(address: str) -> tuple[str, str]:
    """s3://bucket/a/b -> s3://bucket, a/b."""
    found = _ADDRESS.match(address)
    if found is None or found[1].lower() not in SCHEMES or (found[2] == "") != (found[1].lower() == "file"):
        raise BackendError(
            f"{shown(address)}: expected s3://bucket/path, gs://bucket/path, az://container/path or file:///path"
        )
    if "@" in found[2] and not found[1].lower().startswith("abfs"):
        raise BackendError("address of an object store: expected no user name or password in it")
    return f"{found[1].lower()}://{found[2]}", found[3]


def _reason(error: Exception) -> str:
    """The first line of an error, without what may hold a key: queries of addresses, and the body of an answer."""
    line = str(error).split("\n", 1)[0].split("<", 1)[0]
    if _ROLE.search(line):
        return (
            "no credentials: set those of the store in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY,"
            " GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY), or give the"
            " machine a role"
        )
    line = re.sub(r" in [\d.]+[mµn]?s(, after .*?s )?", "", line)  # the same failure, the same line
    return re.sub(r"\?\S+", "", line).strip()[:300]
