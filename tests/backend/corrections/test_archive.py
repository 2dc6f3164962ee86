"""Photos of corrections in a real S3 server: the same bytes as in a folder, for all who read them, outages included."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backend.corrections import archive
from backend.corrections.archive import PhotoArchive, open_photos
from backend.corrections.photos import fetch_photos
from backend.corrections.queries import stream_regions
from backend.corrections.sync import sync_project
from backend.corrections.sync_thread import SyncThread
from backend.errors import ExportError, PhotosUnavailable
from backend.export.run import WRITERS, export
from backend.export.writer import Format
from backend.finetuning import snapshot
from backend.label_studio.client import LabelStudio
from backend.records import ProjectKey
from backend.settings import Settings
from backend.store.database import Store
from semsam_model.data.split import SPLITS
from semsam_model.errors import Stopped
from tests.backend.annotations import brush_row, square
from tests.backend.s3 import S3, SECRET, serving_s3
from tests.backend.stored import SIZE, car_park, fill, photo, project, region
from tests.backend.studio import FakeStudio, labelled, serving
from tests.backend.studio_http import TOKEN
from tests.waiting import eventually

ADDRESS = "s3://photos/of corrections"


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with serving_s3() as server:
        yield server


@pytest.fixture
def stored(s3: S3, tmp_path: Path) -> PhotoArchive:
    """One in the store, as the settings open it; nothing of it lies in the data folder."""
    found = open_photos(Settings(photo_store=ADDRESS, data_dir=tmp_path / "nothing"))
    assert not found.in_folder
    return found


def content(photos: PhotoArchive, sha256: str) -> bytes | None:
    file = photos.find(sha256)
    if file is None:
        return None
    with file:
        return file.read()


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=2000), max_size=4), st.binary())
def test_what_is_kept_comes_back_byte_for_byte_from_folder_store_and_copies_of_the_store(
    stored: PhotoArchive, s3: S3, tmp_path: Path, kept: list[bytes], other: bytes
) -> None:
    folder = PhotoArchive(tmp_path / "photos")
    copies = stored.at_hand(tmp_path / "copies", lambda: False)
    absent = hashlib.sha256(b"never kept" + other).hexdigest()
    for data in [*kept, *kept[:1]]:  # again: nothing changes
        sha256 = hashlib.sha256(data).hexdigest()
        assert folder.keep(data) == stored.keep(data) == sha256
        key = f"{ADDRESS.removeprefix('s3://photos/')}/{sha256[:2]}/{sha256}"
        assert s3.client.get_object(Bucket="photos", Key=key)["Body"].read() == data
        for each in (folder, stored, copies):
            assert each.has(sha256) and not each.has(absent)
            assert content(each, sha256) == data and content(each, absent) is None
        assert copies.path(sha256).read_bytes() == data
    assert folder.at_hand(tmp_path / "copies", lambda: False) is folder


def test_many_may_keep_the_same_photo_at_once(stored: PhotoArchive, tmp_path: Path) -> None:
    others = [open_photos(Settings(photo_store=ADDRESS, data_dir=tmp_path)) for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        (sha256,) = set(pool.map(lambda number: others[number % 4].keep(photo(1000)), range(16)))
    assert content(stored, sha256) == photo(1000)


def test_a_folder_elsewhere_is_one_too(tmp_path: Path) -> None:
    photos = open_photos(Settings(photo_store=f"file://{tmp_path}/a b", data_dir=tmp_path / "nothing"))
    sha256 = photos.keep(b"bytes")
    assert (tmp_path / "a b" / sha256[:2] / sha256).read_bytes() == b"bytes"
    assert photos.in_folder and not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "g" * 64, "A" * 64, "0" * 63])
def test_what_is_no_digest_is_refused(stored: PhotoArchive, name: str) -> None:
    for ask in (stored.has, stored.find):
        with pytest.raises(ValueError, match="64 hexadecimal digits"):
            ask(name)


@pytest.mark.parametrize("form", WRITERS)
def test_an_export_has_the_same_bytes_from_either(stored: PhotoArchive, tmp_path: Path, form: Format) -> None:
    folder = PhotoArchive(tmp_path / "photos")
    regions = car_park(folder, 7)
    for each in ("PNG", "GIF"):  # YOLO's users cannot train on GIF
        sha256 = folder.keep(photo(50, form=each))
        regions.append(replace(regions[-1], key=replace(regions[-1].key, task=len(regions)), image_sha256=sha256))
    regions.append(region(np.ones(SIZE, bool), task=900, annotation=900, image_sha256="0" * 64))  # is missing
    for path in (tmp_path / "photos").rglob("*"):
        if path.is_file():
            stored.keep(path.read_bytes())
    exports = []
    for number, photos in enumerate((folder, stored)):
        for images in ("copy", "none", "copy"):  # into one folder: the last takes photos of the first, or not
            out = tmp_path / f"out{number}"
            result = export(regions, project(), photos, out, form=form, images=images)  # type: ignore[arg-type]
            exports.append((images, result.photos_missing, files(out)))
    assert exports[:3] == exports[3:]


def test_an_export_does_not_point_to_photos_in_a_store(stored: PhotoArchive, tmp_path: Path) -> None:
    regions = car_park(stored, 1)
    with pytest.raises(ExportError, match="expected copy or none"):
        export(regions, project(), stored, tmp_path / "out", form="coco", images="reference")
    export(regions, project(), stored, tmp_path / "out", form="labelstudio", images="reference")


def test_a_job_learns_from_the_same_samples_and_no_longer_needs_the_store(
    s3: S3, stored: PhotoArchive, store: Store, tmp_path: Path
) -> None:
    folder = PhotoArchive(tmp_path / "photos")
    regions = car_park(folder, 12)
    assert car_park(stored, 11) == regions[: -len([each for each in regions if each.key.task == 12])]
    fill(store, project(), regions)
    taken = snapshot.take(store, project().key, tmp_path)
    copies = stored.at_hand(tmp_path / "job" / "photos", lambda: False)
    mine, whole = ([s for split in SPLITS for s in taken.samples(each, split, "p")] for each in (copies, folder))
    assert len(whole) == 12 and len(mine) == 11, "the one that is not in the store is left out"
    s3.stop()
    try:
        of = {sample.path.name: sample for sample in whole}
        assert all((sample.image() == of[sample.path.name].image()).all() for sample in mine)
    finally:
        s3.start()


def test_copies_wait_for_a_store_that_is_away_and_end_when_they_are_asked_to(
    s3: S3, stored: PhotoArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(archive, "AGAIN_S", 0.05)
    sha256, stop = stored.keep(photo(2000)), list[bool]()
    copies = stored.at_hand(tmp_path, lambda: bool(stop))
    s3.stop()
    try:
        with ThreadPoolExecutor(2) as pool:
            waiting = pool.submit(copies.has, sha256)
            eventually(lambda: "waiting for it" in caplog.text)
            stop.append(True)
            with pytest.raises(Stopped):
                waiting.result(60)
            stop.clear()
            waiting = pool.submit(copies.has, sha256)
            s3.start()
            assert waiting.result(60)
    finally:
        s3.stop()
        s3.start()
    assert caplog.text.count("waiting for it") == 1


def test_a_store_that_is_away_costs_nothing_and_is_asked_again(
    s3: S3,
    stored: PhotoArchive,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Annotations go on coming in; their photos are fetched once it is back, by the thread that was running."""
    caplog.set_level(logging.INFO)
    with serving(FakeStudio()) as studio:
        key = ProjectKey(studio.url, 7)
        for task in (1, 2):
            studio.task(task, labelled(task, brush_row(f"r{task}", square(1, 1, 5)), task=task))
        label_studio = LabelStudio(Settings(label_studio_url=studio.url, label_studio_api_key=TOKEN))
        sync_project(store, label_studio, key)
        s3.stop()
        try:
            with pytest.raises(PhotosUnavailable, match=rf"photo_store: {ADDRESS}/.*: cannot be read"):
                fetch_photos(store, label_studio, stored, key)
            thread = SyncThread(store, label_studio, stored, 0, retry_s=0.05)
            thread.start()
            thread.request_sync(key)
            eventually(lambda: studio.asked.count("/data/upload/7/1.png") >= 4)
            assert {each.image_sha256 for each in stream_regions(store, key)} == {None}
            assert caplog.text.count("photos not fetched") == 1
        finally:
            s3.start()
        eventually(lambda: all(each.image_sha256 for each in stream_regions(store, key)))
        eventually(lambda: "no longer photos not fetched" in caplog.text)
        thread.stop()
    assert all(stored.has(each.image_sha256 or "") for each in stream_regions(store, key))
    assert SECRET not in caplog.text
