"""Photos of tasks in a real S3 server: read without Label Studio below the folders that the settings name."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.errors import ImageTooLarge, LabelStudioError, NotFound
from backend.label_studio.object_store import is_below
from tests.backend.label_studio.web import LEGACY, PHOTO, Web, client, guarded
from tests.backend.s3 import SECRET, bucket

KEYS = ("in/a.png", "in/deeper/b #1?ü 50%25.png")


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    with bucket() as made:
        for key in (*KEYS, "other/a.png", "inside.png"):
            made.put_object(Bucket="photos", Key=key, Body=PHOTO)
        yield made


def test_a_photo_below_a_named_folder_is_read_without_label_studio_and_without_its_task(s3: Any, studio: Web) -> None:
    api = client(studio, object_stores=("s3://photos/in/",))
    for key in KEYS:
        assert api.fetch_image(f"s3://photos/{key}") == PHOTO
    assert studio.requests == []


def test_a_photo_elsewhere_in_the_store_comes_through_label_studio(s3: Any, studio: Web) -> None:
    studio.routes["/tasks/7/presign/"] = guarded(f"Token {LEGACY}")
    api = client(studio, object_stores=("s3://photos/in",))
    for where in (
        "s3://photos/other/a.png",
        "s3://photos/inside.png",
        "s3://photos/in/../other/a.png",
        "gs://photos/in/a",
    ):
        assert api.fetch_image(where, task_id=7) == PHOTO
    assert len(studio.requests) == 4


def test_what_the_store_does_not_give_is_told_with_its_address_and_no_secret(
    s3: Any, studio: Web, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    own = {"object_stores": ("s3://photos/in/", "s3://nowhere"), "max_image_bytes": len(PHOTO) - 1}
    api = client(studio, **own)
    with pytest.raises(ImageTooLarge, match=r"s3://photos/in/a\.png: more than .* max_image_bytes"):
        api.fetch_image("s3://photos/in/a.png")
    with pytest.raises(NotFound, match=r"s3://photos/in/absent\.png"):
        api.fetch_image("s3://photos/in/absent.png?X-Signature=canary")
    with pytest.raises(LabelStudioError):
        api.fetch_image("s3://nowhere/a.png")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody answers
    with pytest.raises(LabelStudioError, match=r"s3://photos/in/a\.png: cannot be read"):
        client(studio, **own).fetch_image("s3://photos/in/a.png")
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(LabelStudioError, match=r"s3://photos/in/a\.png.* no credentials: set .*AWS_ACCESS_KEY_ID"):
        client(studio, **own).fetch_image("s3://photos/in/a.png")
    assert studio.requests == []
    assert SECRET not in caplog.text and "canary" not in caplog.text


@pytest.mark.parametrize(
    ("address", "folder", "below"),
    [
        ("s3://b/in/a.png", "s3://b/in/", True),
        ("S3://b/in/a.png", "s3://b/in", True),
        ("s3://b/a.png", "s3://b", True),
        ("s3://b/inside.png", "s3://b/in", False),
        ("s3://B/in/a.png", "s3://b/in", False),
        ("gs://b/in/a.png", "s3://b/in", False),
        ("s3://b@c/in/a.png", "s3://c/in", False),
        ("s3://b/in//a.png", "s3://b/in", False),
        ("s3://b/in/./a.png", "s3://b/in", False),
        ("s3://b/in/../a.png", "s3://b/in", False),
        ("s3://b", "s3://b", False),
        ("/in/a.png", "s3://b", False),
    ],
)
def test_what_is_below_a_folder(address: str, folder: str, below: bool) -> None:
    assert is_below(address, folder) is below


@given(st.text(), st.text())
def test_an_address_below_a_folder_starts_with_it_whatever_it_holds(key: str, folder: str) -> None:
    if is_below(f"s3://b/{key}", f"s3://b/{folder}"):
        assert key.startswith("/".join(part for part in folder.split("/") if part))
