"""Photos from folders, lists, web servers and a real S3 server: each once, within limits, what is done left out."""

import contextlib
import itertools
import pickle
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as searching
from hypothesis import strategies as st

from backend.batch.run import read_config
from backend.batch.sources import PhotoFile, PhotoReader, in_folder, in_list, photo_items, under_prefix
from backend.batch.task_lines import TaskLines
from backend.errors import BackendError, ImageTooLarge, LabelStudioError, NotFound
from backend.settings import Settings
from tests.backend.photo_studio import CONFIG
from tests.backend.s3 import bucket

LIMIT = 100
KEYS = ("in/a.jpg", "in/deeper/b #1?ü.PNG", "in/50%25 of.tiff")
CONFIGURED = read_config(CONFIG)


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    with bucket() as client:
        for key in (*KEYS, "in/", "in/notes.txt", "inside.jpg", "out/c.jpg"):
            client.put_object(Bucket="photos", Key=key, Body=key.encode())
        yield client


@pytest.fixture
def reader() -> PhotoReader:
    return PhotoReader(Settings(max_image_bytes=LIMIT, label_studio_api_key="0123456789abcdef"))


def images(pictures: Iterator[PhotoFile]) -> set[str]:
    """Their addresses, each of which came once."""
    found = [picture.image for picture in pictures]
    assert len(found) == len(set(found))
    return set(found)


def test_a_prefix_gives_its_photos_and_those_below_whatever_their_names(s3: Any, reader: PhotoReader) -> None:
    for prefix in ("s3://photos/in/", "s3://photos/in"):
        found = list(under_prefix(prefix, reader))
        assert {picture.image: picture.read() for picture in found} == {f"s3://photos/{k}": k.encode() for k in KEYS}
    everything = images(under_prefix("s3://photos", reader))
    assert everything == {f"s3://photos/{key}" for key in (*KEYS, "inside.jpg", "out/c.jpg")}


def test_what_a_store_does_not_give_is_told_with_its_address(s3: Any, reader: PhotoReader) -> None:
    s3.put_object(Bucket="photos", Key="large/x.jpg", Body=b"x" * (LIMIT + 1))
    (large,) = under_prefix("s3://photos/large", reader)
    with pytest.raises(ImageTooLarge, match=r"s3://photos/large/x\.jpg: more than 100 bytes"):
        large.read()
    s3.delete_object(Bucket="photos", Key="large/x.jpg")
    with pytest.raises(NotFound, match=r"s3://photos/large/x\.jpg"):
        large.read()
    with pytest.raises(LabelStudioError, match=r"s3://nowhere/: cannot be listed: .*404"):
        list(under_prefix("s3://nowhere/", reader))


@pytest.mark.parametrize("prefix", ["https://photos.example/", "photos", "s3://", "s3://user:word@photos/in"])
def test_a_prefix_that_is_none_is_refused_without_its_secrets(prefix: str, reader: PhotoReader) -> None:
    with pytest.raises(BackendError, match="expected") as refused:
        list(under_prefix(prefix, reader))
    assert "word" not in str(refused.value).replace("password", "")


@contextlib.contextmanager
def web(folder: Path, seen: list[str | None]) -> Iterator[str]:
    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            super().do_GET()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_list_may_name_files_addresses_and_objects_and_gives_each_once(
    s3: Any, reader: PhotoReader, tmp_path: Path
) -> None:
    (tmp_path / "a b.jpg").write_bytes(b"file")
    (tmp_path / "large.jpg").write_bytes(b"x" * (LIMIT + 1))
    seen = list[str | None]()
    with web(tmp_path, seen) as url:
        names = [str(tmp_path / "a b.jpg"), f"{url}/a%20b.jpg", "s3://photos/in/a.jpg", (tmp_path / "a b.jpg").as_uri()]
        bad = [str(tmp_path / "no.jpg"), f"{url}/large.jpg", f"{tmp_path}/large.jpg", f"{url}/no.jpg", "ftp://h/a.jpg"]
        listed = "\ufeff" + "\r\n".join([*names, "", names[1], *bad, names[0]])
        found = {picture.image: picture.read for picture in in_list(BytesIO(listed.encode()), reader)}
        assert list(found) == names + bad
        # moto and the folder hold the same few bytes under every name
        assert [found[name]() for name in names[:3]] == [b"file", b"file", b"in/a.jpg"]
        for name, error in zip(
            bad, (FileNotFoundError, ImageTooLarge, ImageTooLarge, NotFound, BackendError), strict=True
        ):
            with pytest.raises(error):
                found[name]()
    assert set(seen) == {None}


def test_a_photo_may_be_read_elsewhere_with_the_same_limits_and_no_secret(s3: Any, reader: PhotoReader) -> None:
    for read in (picture.read for picture in under_prefix("s3://photos/out", reader)):
        sent = pickle.dumps(read)
        assert pickle.loads(sent)() == read() == b"out/c.jpg"
        assert b"0123456789abcdef" not in sent
    there = [pickle.loads(pickle.dumps(picture.read)) for picture in in_list(BytesIO(b"a.jpg\nb.jpg"), reader)]
    assert there[0].func.__self__ is there[1].func.__self__
    s3.put_object(Bucket="photos", Key="large/y.jpg", Body=b"x" * (LIMIT + 1))
    with pytest.raises(ImageTooLarge, match="more than 100 bytes"):
        there[0].func("s3://photos/large/y.jpg")


def test_a_list_is_read_no_further_than_it_is_asked_for(reader: PhotoReader) -> None:
    class Endless(BytesIO):
        def __next__(self) -> bytes:
            return b"%d.jpg\n" % next(counted)

    counted = itertools.count()
    assert [p.image for p in itertools.islice(in_list(Endless(), reader), 3)] == ["0.jpg", "1.jpg", "2.jpg"]
    assert next(counted) <= 4


def test_a_folder_gives_photos_below_it_by_the_address_that_label_studio_has_for_them(
    reader: PhotoReader, tmp_path: Path
) -> None:
    with pytest.raises(BackendError, match="expected photos in it or below"):
        images(in_folder(tmp_path, reader))
    (tmp_path / "deep er").mkdir()
    for name in ("a.jpg", "deep er/b#.PNG", "notes.txt"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert images(in_folder(tmp_path, reader)) == {"a.jpg", "deep er/b#.PNG"}
    served = {p.image: p.read() for p in in_folder(tmp_path, reader, "/data/local-files/?d=x/")}
    assert served == {
        "/data/local-files/?d=x/a.jpg": b"a.jpg",
        "/data/local-files/?d=x/deep%20er/b%23.PNG": b"deep er/b#.PNG",
    }


# ----------------------------------------------------------------------------------------------------------- the file

VERSION = "tiny@1"
PREDICTION = {"score": 0.5, "result": [], "model_version": VERSION}
NAMES = ["a.jpg", "b\udcff.jpg", 's3://photos/ü {#"}.jpg']  # the second is no UTF-8


@searching(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_cut_off_anywhere_the_file_is_completed_with_nothing_lost_and_nothing_twice(
    data: st.DataObject, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    out.unlink(missing_ok=True)
    pictures = [PhotoFile(name, lambda: b"") for name in NAMES]

    def go() -> int:
        with contextlib.closing(TaskLines(out, CONFIGURED, VERSION)) as lines:
            items = [item for item in photo_items(pictures, lines) if item is not None]
            for item in items:
                item.write(PREDICTION)
        return len(items)

    assert go() == len(NAMES)
    whole = out.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    out.write_bytes(whole[:cut])
    assert go() == whole[cut:].count(b"\n")
    assert out.read_bytes() == whole


def test_a_photo_that_another_version_has_done_is_done_again(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    for version in (VERSION, "tiny@2"):
        with contextlib.closing(TaskLines(out, CONFIGURED, version)) as lines:
            assert "a.jpg" not in lines.done
            lines.write("a.jpg", {**PREDICTION, "model_version": version})
    assert len(out.read_text().splitlines()) == 2


def test_a_file_that_is_anothers_is_left_as_it_is(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with contextlib.closing(TaskLines(out, CONFIGURED, VERSION)), pytest.raises(BackendError, match="another run"):
        TaskLines(out, CONFIGURED, VERSION)
    for precious in ("precious\n", "precious", '[{"data": {}}]', '{"image": "a.jpg"}\n'):
        out.write_text(precious)
        with pytest.raises(BackendError, match="JSON lines of an earlier run"):
            TaskLines(out, CONFIGURED, VERSION)
        assert out.read_text() == precious
    with pytest.raises(BackendError, match=r"no/out\.jsonl: cannot be written"):
        TaskLines(tmp_path / "no" / "out.jsonl", CONFIGURED, VERSION)
