"""What a job learns from: the file of a snapshot, and photos of other projects."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import delete, insert, update

from backend.corrections.archive import PhotoArchive
from backend.corrections.labelled_photos import newest_annotations
from backend.finetuning import job_runner, snapshot
from backend.finetuning.job_runner import JobRunner
from backend.finetuning.snapshot import Snapshot
from backend.records import ProjectKey, StoredRegion
from backend.settings import Settings
from backend.store.database import Store
from backend.store.tables import regions as rows
from backend.versions.registry import open_registry
from semsam_model.data.samples import CocoMask, Sample
from semsam_model.data.split import SPLITS, split_of
from tests.backend.stored import BEGAN, ORIGIN, SIZE, car_park, fill, project, query_plans, region_row

KEY = ProjectKey(ORIGIN, 1)


@pytest.fixture
def photos(tmp_path: Path) -> PhotoArchive:
    return PhotoArchive(tmp_path / "photos")


def samples(taken: Snapshot, photos: PhotoArchive) -> list[Sample]:
    return [sample for split in SPLITS for sample in taken.samples(photos, split, "project_1")]


def of_project(number: int, regions: list[StoredRegion]) -> list[StoredRegion]:
    return [replace(each, key=replace(each.key, project=number)) for each in regions]


def test_a_snapshot_is_read_back_as_it_was_taken_photo_by_photo(
    store: Store, photos: PhotoArchive, tmp_path: Path
) -> None:
    found = car_park(photos, 70)
    fill(store, project(), found)
    assert snapshot.read(tmp_path) is None
    taken = snapshot.take(store, KEY, tmp_path)
    again = snapshot.read(tmp_path)
    assert again == taken
    assert taken.regions == 4 * 70
    assert [line.sha256 for line in taken.photos] == sorted({each.image_sha256 or "" for each in found})
    newest = {each.image_sha256: each.key.annotation for each in found}  # annotations of a task are in order of time
    for sample in samples(taken, photos):
        sha256 = sample.path.name
        mine = [each for each in found if each.image_sha256 == sha256 and each.key.annotation == newest[sha256]]
        assert [region.name for region in sample.regions] == ["car", "wheel", "wheel", None]
        assert [region.parent for region in sample.regions] == [None, 0, 0, None]
        for index, each in enumerate(mine):
            assert np.array_equal(sample.mask(index), CocoMask(each.mask).decode(SIZE))


def test_the_digest_depends_on_what_was_corrected_alone_not_on_the_order_in_which_it_came(
    store: Store, photos: PhotoArchive, tmp_path: Path
) -> None:
    found = car_park(photos, 6)
    fill(store, project(), found)
    first = snapshot.take(store, KEY, tmp_path / "a")
    with store.write() as connection:
        connection.execute(delete(rows))
        connection.execute(insert(rows), [region_row(each) for each in reversed(found)])
    assert snapshot.take(store, KEY, tmp_path / "b").digest == first.digest
    with store.write() as connection:
        connection.execute(update(rows).where(rows.c.task == 1, rows.c.region == "a").values(labels=["van"]))
    assert snapshot.take(store, KEY, tmp_path / "c").digest != first.digest
    assert snapshot.read(tmp_path / "a") == first


def test_of_two_tasks_with_one_photo_the_annotation_made_last_counts(
    store: Store, photos: PhotoArchive, tmp_path: Path
) -> None:
    old = car_park(photos, 1)
    new = [
        replace(each, key=replace(each.key, task=2, annotation=99), updated_at=BEGAN + timedelta(days=1))
        for each in old[:1]
    ]
    older = [
        replace(each, key=replace(each.key, task=3, annotation=100), updated_at=BEGAN - timedelta(days=1))
        for each in old[:2]
    ]
    fill(store, project(), [*old, *new, *older])
    taken = snapshot.take(store, KEY, tmp_path)
    assert (len(taken.photos), taken.regions) == (1, 1)


def test_the_regions_of_some_photos_are_found_by_an_index_not_by_reading_the_project(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/semsam.db")
    with query_plans(store) as plans:
        assert list(newest_annotations(store, KEY, ["0" * 64, "1" * 64])) == []
    store.close()
    (plan,) = (each for each in plans if "image_sha256=?" in each)
    assert "TEMP" not in plan


def test_photos_of_other_projects_are_drawn_first_and_the_regions_of_those_alone_are_read(
    store: Store, photos: PhotoArchive, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = car_park(photos, 40)
    for number, tasks in ((1, range(1, 6)), (2, range(6, 24)), (3, range(24, 41))):
        fill(store, project(number=number), of_project(number, [each for each in kept if each.key.task in tasks]))
    gone = next(each.image_sha256 or "" for each in kept if each.key.task == 10)
    photos.path(gone).unlink()
    settings = Settings(model="tiny", weights=weights, data_dir=tmp_path)
    runner = JobRunner(settings, store, open_registry(settings, store), photos, job_runner.Steps())
    monkeypatch.setattr(job_runner, "REPLAYED", 10)
    asked: list[int] = []
    read = job_runner.snapshot.newest_samples
    monkeypatch.setattr(
        job_runner.snapshot, "newest_samples", lambda *args: (asked.append(len(args[2])), read(*args))[1]
    )
    drawn = runner._of_other_projects(KEY, photos)
    assert len(drawn) == 10 == sum(asked)
    assert {sample.source for sample in drawn} == {f"project_2_{ORIGIN}", f"project_3_{ORIGIN}"}
    assert all(split_of(sample.path.name) == "train" and photos.has(sample.path.name) for sample in drawn)
    assert all(sample.image().shape == (*SIZE, 3) and len(sample.masks()) == 4 for sample in drawn)
    assert [sample.path for sample in drawn] == [sample.path for sample in runner._of_other_projects(KEY, photos)]
