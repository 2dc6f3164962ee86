"""An object store of the tests' own, which speaks S3."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
import requests
from moto.server import ThreadedMotoServer

SECRET = "a-secret-of-the-store"


class S3:
    """A server, which keeps its objects while it is away."""

    def __init__(self) -> None:
        self._port = 0
        self.start()
        self.client: Any = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self._port, verbose=False)
        self._server.start()
        _, self._port = self._server.get_host_and_port()

    def stop(self) -> None:
        self._server.stop()


@contextmanager
def serving_s3() -> Iterator[S3]:
    """A store with an empty bucket `photos`; obstore finds it by the environment."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = S3()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_REGION", "us-east-1")
        server.client = boto3.client("s3", region_name="us-east-1")
        server.client.create_bucket(Bucket="photos")
        yield server
        requests.post(f"{server.url}/moto-api/reset", timeout=30)  # the next server is in this process too
    server.stop()


@contextmanager
def bucket() -> Iterator[Any]:
    """A client of such a store."""
    with serving_s3() as server:
        yield server.client
