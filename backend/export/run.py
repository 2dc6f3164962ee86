"""`semsam export`: what the store keeps of a project -> files that others read; split by photo, resumable.

Regions are read once, into a nameless temporary file: what arrives in the store meanwhile does not change an export
that is under way. Memory holds one task at a time.
"""

from __future__ import annotations

import hashlib
import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from itertools import chain
from pathlib import Path
from typing import IO

from backend.corrections.archive import PhotoArchive
from backend.corrections.tasks import LabelledTask, by_task, categories
from backend.errors import ExportError
from backend.export.formats import CocoWriter, MaskWriter, Sa1bWriter
from backend.export.label_studio_tasks import LabelStudioWriter
from backend.export.staging import Staging, check_target, staged
from backend.export.writer import Format, Images, Plan, Writer
from backend.export.yolo import YoloWriter
from backend.records import BarePhoto, RegionKey, StoredProject, StoredRegion
from semsam_model.data.samples import photo_size
from semsam_model.data.split import SPLITS
from semsam_model.errors import DataError
from semsam_model.files import named

WRITERS: dict[Format, Callable[[Staging, Plan], Writer]] = {
    "coco": CocoWriter,
    "sa1b": Sa1bWriter,
    "masks": MaskWriter,
    "labelstudio": LabelStudioWriter,
    "yolo": YoloWriter,
}
#: Regions between two checkpoints: what a kill costs at most.
CHECKPOINT = 500
_LAYOUT = 2  #: of the files below; another one does not go on where this one was killed


@dataclass(frozen=True)
class Exported:
    """What an export holds, as export.json tells it: tasks and regions by split, and what is missing."""

    tasks: dict[str, int]
    regions: dict[str, int]
    regions_without_photo: int  #: not exported: their photo is not known yet
    bare_photos: int  #: of the tasks, those with nothing on their photo
    bare_without_photo: int  #: further ones that are not exported, as regions without a photo
    unreadable: tuple[str, ...]  #: regions that could not be exported, each with its task and the reason
    photos_missing: int  #: tasks whose photo is known but not kept, so that it could not be copied or pointed to
    digest: str  #: of everything exported


@dataclass(frozen=True)
class _Survey:
    digest: str
    regions: int
    without_photo: int
    categories: dict[tuple[str, str], int]


def export(
    regions: Iterable[StoredRegion],
    project: StoredProject,
    photos: PhotoArchive,
    out: Path,
    *,
    form: Format,
    images: Images = "copy",
    complete: bool = False,
    bare: Sequence[BarePhoto] = (),
    unreadable: Mapping[RegionKey, str] | None = None,
    on_start: Callable[[int], None] = lambda total: None,
    on_task: Callable[[int], None] = lambda regions: None,
    checkpoint: int = CHECKPOINT,
) -> Exported:
    """Write the regions, which come in the order of their keys, to the folder `out`.

    The same regions give the same bytes. Killed, it goes on where it was when it is called again with the same ones; an
    export that was in `out` stays until the new one is whole. `complete`: everything visible was annotated, so that
    photos with nothing on them (`bare`) are exported, too. `unreadable`: regions that are named as left out. `on_start`
    is told the number of regions, `on_task` how many more are done. Raises ExportError for a folder that holds
    something else, and for photos that cannot be referred to, StoreError, OSError.
    """
    if images == "reference" and form != "labelstudio" and not photos.in_folder:
        raise ExportError("images: expected copy or none, as the photos are in an object store, got reference")
    out = out.resolve()
    check_target(out)
    with tempfile.TemporaryFile(dir=out) as kept:
        with named(out):
            found = _keep(regions, kept)
        on_start(found.regions)
        bare = bare if complete else ()
        identity = [_LAYOUT, found.digest, form, images, complete, project.key.origin, project.key.project]
        identity += [project.title, project.label_config, [astuple(each) for each in bare]]
        with staged(out, identity) as staging:
            plan = Plan(project, found.categories, photos, out, images, not complete)
            writer = WRITERS[form](staging, plan)
            _write(
                chain(by_task(_kept(kept)), _bare_tasks(bare, photos, staging)),
                writer,
                staging,
                every_annotation=form == "labelstudio",
                on_task=on_task,
                checkpoint=checkpoint,
            )
            writer.finish()
            result = Exported(
                {split: staging.count(f"{split} tasks") for split in SPLITS},
                {split: staging.count(f"{split} regions") for split in SPLITS},
                found.without_photo,
                staging.count("bare photos"),
                staging.count("bare without photo"),
                _named(unreadable or {}),
                staging.count("photos missing"),
                found.digest,
            )
            staging.publish(
                {
                    "format": form,
                    "project": {"origin": project.key.origin, "id": project.key.project, "title": project.title},
                    "images": images,
                    **asdict(result),
                }
            )
    return result


def _write(
    tasks: Iterable[LabelledTask],
    writer: Writer,
    staging: Staging,
    *,
    every_annotation: bool,
    on_task: Callable[[int], None],
    checkpoint: int,
) -> None:
    """Write the tasks, from the last checkpoint on. every_annotation: the format holds all of them, not the latest."""
    resumed, since = staging.after is None, 0
    for task in tasks:
        size = sum(map(len, task.annotations))
        on_task(size)
        if not resumed:
            resumed = task.id == staging.after
            continue
        writer.write(task)
        staging.add("bare photos", not task.annotations)
        staging.add(f"{task.split} tasks")
        staging.add(f"{task.split} regions", size if every_annotation else len(task.latest))
        since += size
        if since >= checkpoint:
            staging.checkpoint(task.id)
            since = 0


def _keep(regions: Iterable[StoredRegion], kept: IO[bytes]) -> _Survey:
    """Put the regions into a file, and look at all of them once: categories are needed before the first is written."""
    digest, known, without_photo = hashlib.sha256(), 0, 0
    kinds: set[tuple[str, str]] = set()
    names = [field.name for field in fields(StoredRegion)]

    def seen() -> Iterator[StoredRegion]:
        nonlocal known, without_photo
        for region in regions:
            pickle.dump(region, kept, protocol=pickle.HIGHEST_PROTOCOL)
            digest.update(repr([getattr(region, name) for name in names]).encode())
            known += region.image_sha256 is not None
            without_photo += region.image_sha256 is None
            yield region

    for task in by_task(seen()):
        kinds.update(categories(task.latest))
    ids = {kind: number for number, kind in enumerate(sorted(kinds), start=1)}
    return _Survey(digest.hexdigest(), known, without_photo, ids)


def _bare_tasks(bare: Sequence[BarePhoto], photos: PhotoArchive, staging: Staging) -> Iterator[LabelledTask]:
    for each in bare:
        if each.image_sha256 is None:
            staging.add("bare without photo")
            continue
        kept = photos.find(each.image_sha256)
        try:
            if kept is None:
                raise DataError("not kept")
            with kept:
                size = photo_size(kept, each.image_sha256)
        except DataError:
            staging.add("photos missing")
        else:
            yield LabelledTask(each.task, (), each.image_sha256, each.image_url, size)


def _named(unreadable: Mapping[RegionKey, str]) -> tuple[str, ...]:
    return tuple(
        f"task {key.task}, annotation {key.annotation}, region {key.region}: {reason}"
        for key, reason in sorted(unreadable.items())
    )


def _kept(kept: IO[bytes]) -> Iterator[StoredRegion]:
    kept.seek(0)
    while True:
        try:
            yield pickle.load(kept)
        except EOFError:
            return
