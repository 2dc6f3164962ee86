"""Where photos come from, and where they do not."""

import base64
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from backend.errors import (
    BadRequest,
    ImageTooLarge,
    NotFound,
    OriginRefused,
)
from backend.label_studio.client import LabelStudio
from backend.settings import Settings
from tests.backend.label_studio.web import LEGACY, PHOTO, Web, client, guarded, photo, redirect

# ---- where photos come from


def test_an_uploaded_photo_is_fetched_with_the_token(studio: Web) -> None:
    assert client(studio).fetch_image("/data/upload/1/a.png") == PHOTO


@pytest.mark.parametrize("value", ["data/upload/1/a.png", " /data/upload/1/a.png "])
def test_a_path_without_leading_slash_or_with_spaces_around_means_the_same(studio: Web, value: str) -> None:
    assert client(studio).fetch_image(value) == PHOTO


def test_an_absolute_address_on_label_studio_gets_the_token(studio: Web) -> None:
    assert client(studio).fetch_image(studio.url + "/data/upload/1/a.png") == PHOTO


def test_a_local_files_address_is_asked_of_label_studio_with_its_query(studio: Web) -> None:
    studio.routes["/data/local-files/"] = guarded(f"Token {LEGACY}")
    assert client(studio).fetch_image("/data/local-files/?d=sub/x%20y.png") == PHOTO
    assert studio.requests[-1].path == "/data/local-files/?d=sub/x%20y.png"
    assert client(studio).fetch_image("/data/local-files/?d=sub\\x.png") == PHOTO
    assert studio.requests[-1].path == "/data/local-files/?d=sub%5Cx.png"


def test_a_server_under_a_prefix_is_asked_under_it_once(web: Callable[..., Web]) -> None:
    studio = web()
    studio.routes["/ls/data/upload/a.png"] = photo
    api = LabelStudio(Settings(label_studio_url=studio.url + "/ls/"))
    assert api.fetch_image("/data/upload/a.png") == api.fetch_image("/ls/data/upload/a.png") == PHOTO


@pytest.mark.parametrize("uri", ["s3://bucket/a b.png", "gs://bucket/é.png", "azure-blob://box/a.png"])
def test_a_photo_in_a_cloud_store_comes_through_a_presigned_address(
    studio: Web, web: Callable[..., Web], uri: str
) -> None:
    store = web(signed=photo)
    studio.routes["/tasks/7/presign/"] = redirect(store.url + "/signed?X-Signature=canary", 303)
    assert client(studio, allowed_origins=(store.url,)).fetch_image(uri, task_id=7) == PHOTO
    sent = studio.requests[-1].path.split("fileuri=")[1]
    assert base64.urlsafe_b64decode(sent.replace("%3D", "=")).decode() == uri
    assert store.requests[-1].authorization is None


def test_a_photo_in_a_cloud_store_may_be_proxied_by_label_studio(studio: Web) -> None:
    studio.routes["/tasks/7/presign/"] = guarded(f"Token {LEGACY}")
    assert client(studio).fetch_image("s3://bucket/a.png", task_id=7) == PHOTO


def test_a_cloud_photo_without_its_task_is_a_bad_request(studio: Web) -> None:
    with pytest.raises(BadRequest, match="task"):
        client(studio).fetch_image("s3://bucket/a.png")


def test_a_store_that_is_not_allowed_is_refused_with_the_setting_to_change(
    studio: Web, web: Callable[..., Web]
) -> None:
    store = web(signed=photo)
    studio.routes["/tasks/7/presign/"] = redirect(store.url + "/signed?X-Signature=canary", 303)
    with pytest.raises(OriginRefused, match=f"127.0.0.1:{store.port}.*allowed_origins") as caught:
        client(studio).fetch_image("s3://bucket/a.png", task_id=7)
    assert "canary" not in str(caught.value)
    assert store.requests == []


def test_a_photo_elsewhere_needs_its_origin_allowed_and_gets_no_token(studio: Web, web: Callable[..., Web]) -> None:
    other = web(photo=photo)
    with pytest.raises(OriginRefused, match="allowed_origins"):
        client(studio).fetch_image(other.url + "/photo")
    assert other.requests == []
    assert client(studio, allowed_origins=(other.url,)).fetch_image(other.url + "/photo?q=1") == PHOTO
    assert other.requests[-1].authorization is None


def test_another_name_of_the_same_machine_is_another_origin(studio: Web) -> None:
    with pytest.raises(OriginRefused):
        client(studio).fetch_image(f"http://localhost:{studio.port}/data/upload/1/a.png")


@pytest.mark.parametrize(
    "value", ["file:///etc/passwd", "ftp://host/a", "C:\\photos\\a.png", "gopher://x", "javascript:1"]
)
def test_other_schemes_are_refused(studio: Web, value: str) -> None:
    with pytest.raises(OriginRefused, match="expected"):
        client(studio).fetch_image(value)


@pytest.mark.parametrize("value", ["", "  ", None, 3, {"a": 1}])
def test_no_address_at_all_is_a_bad_request(studio: Web, value: Any) -> None:
    with pytest.raises(BadRequest):
        client(studio).fetch_image(value)


def test_a_data_address_brings_its_own_bytes_within_the_limit(studio: Web) -> None:
    value = "data:image/png;base64," + base64.b64encode(PHOTO).decode()
    assert client(studio, max_image_bytes=len(PHOTO)).fetch_image(value) == PHOTO
    with pytest.raises(ImageTooLarge, match="max_image_bytes"):
        client(studio, max_image_bytes=len(PHOTO) - 5).fetch_image(value)
    for broken in ("data:image/png;base64,?!", "data:image/png;base64,AAAAA", "data:image/png", "data:"):
        with pytest.raises(BadRequest):
            client(studio).fetch_image(broken)


@pytest.mark.parametrize("kind", ["image/png", "", "application/octet-stream", "IMAGE/PNG;charset=x"])
def test_a_data_address_is_read_as_a_browser_reads_it(studio: Web, kind: str) -> None:
    text = base64.b64encode(PHOTO).decode()
    lines = base64.encodebytes(PHOTO).decode()
    for body in (text, text.rstrip("="), lines, lines.replace("\n", "\r\n"), quote(text, safe=""), text + "#end"):
        assert client(studio).fetch_image(f"data:{kind};base64,{body}") == PHOTO
    assert client(studio).fetch_image(f"data:{kind},{quote(PHOTO, safe='')}") == PHOTO


# ---- files on disk


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "secret.png").write_bytes(b"secret")
    folder = tmp_path / "root"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a b.png").write_bytes(PHOTO)
    (folder / "inside.png").symlink_to(folder / "sub" / "a b.png")
    (folder / "outside.png").symlink_to(tmp_path / "secret.png")
    (folder / "up").symlink_to(tmp_path)
    return folder


def test_paths_inside_the_folder_are_read_without_asking_anyone(studio: Web, root: Path) -> None:
    api = client(studio, local_files_root=root)
    for value in ("sub/a b.png", str(root / "sub" / "a b.png"), "/data/local-files/?d=sub\\a b.png", "inside.png"):
        assert api.fetch_image(value) == PHOTO
    assert studio.requests == []


@pytest.mark.parametrize(
    "value",
    [
        "../secret.png",
        "sub/../../secret.png",
        "outside.png",
        "up/secret.png",
        "{root}/../secret.png",
        "{root}x/../secret.png/../root/../secret.png",
        "/etc/passwd",
        "/data/local-files/?d=../secret.png",
        "/data/local-files/?d=..%2Fsecret.png",
        "/data/local-files/?d=outside.png",
        "/data/local-files/?d=/../secret.png",
        "/data/local-files/?d=..\\secret.png",
        "/data/local-files/?d=%5C..%5Csecret.png",
        "a\0b",
        "sub",
    ],
)
def test_nothing_outside_the_folder_is_read(studio: Web, root: Path, value: str) -> None:
    with pytest.raises((OriginRefused, NotFound)):
        client(studio, local_files_root=root).fetch_image(value.format(root=root))


def test_without_a_folder_nothing_is_read_from_disk(studio: Web, root: Path) -> None:
    with pytest.raises(NotFound):
        client(studio).fetch_image(str(root / "sub" / "a b.png"))


def test_a_file_on_disk_meets_the_byte_limit_and_a_pipe_is_refused(studio: Web, root: Path) -> None:
    os.mkfifo(root / "pipe")
    api = client(studio, local_files_root=root, max_image_bytes=len(PHOTO) - 1)
    with pytest.raises(ImageTooLarge, match="max_image_bytes"):
        api.fetch_image("sub/a b.png")
    with pytest.raises(OriginRefused, match="pipe"):
        api.fetch_image("pipe")


def test_what_is_not_in_the_folder_is_asked_of_label_studio(studio: Web, root: Path) -> None:
    assert client(studio, local_files_root=root).fetch_image("/data/upload/1/a.png") == PHOTO
    studio.routes["/data/local-files/"] = photo
    assert client(studio, local_files_root=root).fetch_image("/data/local-files/?d=other.png") == PHOTO


def test_a_missing_path_on_disk_says_how_to_allow_it(studio: Web) -> None:
    with pytest.raises(NotFound, match="local_files_root"):
        client(studio).fetch_image("/photos/a.png")
    with pytest.raises(NotFound) as caught:
        client(studio).fetch_image("/data/upload/1/absent.png")
    assert "local_files_root" not in str(caught.value)
