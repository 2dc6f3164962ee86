"""The files of each format: where photos, masks and lists go. What stands in them: `export_formats`."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from PIL import Image

from backend.corrections.photo_archive import PhotoArchive
from backend.corrections.split import SPLITS
from backend.corrections.tasks import LabelledTask
from backend.export import formats as entries
from backend.export.formats import Categories
from backend.export.staging import Staging, to_json
from backend.images import FORMATS as PHOTO_FORMATS
from backend.label_studio.label_config import LabelConfig
from backend.records import StoredProject
from semsam_model.files import replacing

Format = Literal["coco", "sa1b", "labelstudio", "masks"]
Images = Literal["copy", "reference", "none"]

_SUFFIXES = {"JPEG": ".jpg", "TIFF": ".tif"}


@dataclass(frozen=True)
class Job:
    """What is exported, and how."""

    project: StoredProject
    categories: Categories
    photos: PhotoArchive
    target: Path  #: the folder in which everything will lie
    images: Images
    partial: bool  #: not everything visible was annotated


class Writer(Protocol):
    """One format."""

    def write(self, task: LabelledTask) -> None:
        """Everything about one task; after a kill it comes again."""

    def finish(self) -> None:
        """What can be written when all tasks are there."""


class _Photos:
    """Photos of an export: copied, pointed to, or only named."""

    def __init__(self, staging: Staging, job: Job) -> None:
        self._staging, self._job = staging, job

    def place(self, task: LabelledTask, stem: str) -> str:
        """The photo's name, from the export's folder on: `stem` and a suffix, or where it lies when referred to."""
        kept = self._job.photos.path(task.sha256)
        if not kept.is_file():
            self._staging.add("photos missing")
            return stem
        name = stem + _suffix(kept)
        if self._job.images == "reference":
            return Path(os.path.relpath(kept, self._job.target)).as_posix()
        if self._job.images == "copy":
            _copy(kept, self._staging.out / name, self._staging.previous / name)
        return name

    def beside(self, task: LabelledTask, stem: str) -> str:
        """As `place`, for a format whose photos lie beside their JSON: a photo referred to is a link there."""
        if self._job.images != "reference" or not self._job.photos.has(task.sha256):
            return self.place(task, stem)
        kept = self._job.photos.path(task.sha256)
        name = stem + _suffix(kept)
        link = self._staging.out / name
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(kept, (self._job.target / name).parent))
        return name


def _suffix(photo: Path) -> str:
    try:
        with Image.open(photo, formats=PHOTO_FORMATS) as image:
            return _SUFFIXES.get(image.format or "", f".{(image.format or '').lower()}")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return ""  # kept as it came, though no longer to be read


def _copy(source: Path, target: Path, earlier: Path) -> None:
    """The whole file or nothing; from the export before without a second copy on the disk, where that has it."""
    if target.exists():
        return
    with replacing(target) as fresh:
        try:
            # a link to the archive, out of an export that refers to photos, is no copy
            if earlier.is_symlink() or earlier.stat().st_size != source.stat().st_size:
                raise FileNotFoundError
            os.link(earlier, fresh)
        except OSError:
            shutil.copyfile(source, fresh)


class CocoWriter:
    """`train.json`, `val.json`, `images/`."""

    def __init__(self, staging: Staging, job: Job) -> None:
        self._staging, self._job, self._photos = staging, job, _Photos(staging, job)

    def write(self, task: LabelledTask) -> None:
        name = self._photos.place(task, f"images/{task.sha256}")
        rows = f"{task.split}-annotations"
        self._staging.append(f"{task.split}-images", entries.coco_image(task, name, partial=self._job.partial))
        for row in entries.coco_annotations(task, self._staging.count(rows) + 1, self._job.categories):
            self._staging.append(rows, row)

    def finish(self) -> None:
        categories = to_json(entries.category_rows(self._job.categories))
        for split in SPLITS:
            info = {"description": f"{self._job.project.title}, {split}", "source": str(self._job.project.key)}
            self._staging.assemble(
                f"{split}.json",
                [f'{{"info":{to_json(info)},\n"licenses":[],\n"categories":{categories},\n"images":[\n'],
                self._staging.lines(f"{split}-images", ","),
                ['],\n"annotations":[\n'],
                self._staging.lines(f"{split}-annotations", ","),
                ["]}\n"],
            )


class Sa1bWriter:
    """`train/` and `val/` with a JSON for each task, and its photo beside it."""

    def __init__(self, staging: Staging, job: Job) -> None:
        self._staging, self._photos = staging, _Photos(staging, job)

    def write(self, task: LabelledTask) -> None:
        stem = f"{task.split}/sa_{task.name}"
        path = self._staging.out / f"{stem}.json"
        path.parent.mkdir(exist_ok=True)
        content = entries.sa1b(task, Path(self._photos.beside(task, stem)).name)
        path.write_text(to_json(content) + "\n", encoding="utf-8")

    def finish(self) -> None:
        for split in SPLITS:
            (self._staging.out / split).mkdir(exist_ok=True)


class MaskWriter:
    """`train/TASK/0001.png`, ..., what they show in `train.jsonl`; the same for val; `images/`."""

    def __init__(self, staging: Staging, job: Job) -> None:
        self._staging, self._photos = staging, _Photos(staging, job)

    def write(self, task: LabelledTask) -> None:
        folder = f"{task.split}/{task.name}"
        (self._staging.out / folder).mkdir(parents=True, exist_ok=True)
        files = [f"{folder}/{number:04}.png" for number in range(1, len(task.latest) + 1)]
        for file, region in zip(files, task.latest, strict=True):
            (self._staging.out / file).write_bytes(entries.mask_png(region))
        photo = self._photos.place(task, f"images/{task.sha256}")
        for row in entries.mask_rows(task, files, photo):
            self._staging.append(task.split, row)

    def finish(self) -> None:
        for split in SPLITS:
            (self._staging.out / split).mkdir(exist_ok=True)
            self._staging.assemble(f"{split}.jsonl", self._staging.lines(split))


class LabelStudioWriter:
    """`train.json` and `val.json` to import, `labeling.xml` for the project that they go into, `images/`."""

    def __init__(self, staging: Staging, job: Job) -> None:
        self._staging, self._job, self._photos = staging, job, _Photos(staging, job)
        self._xml = entries.importing_config(job.project.label_config, job.categories)
        self._config = LabelConfig.parse(self._xml)

    def write(self, task: LabelledTask) -> None:
        address = task.latest[0].image_url or ""
        if self._job.images == "copy":
            # as Label Studio names a file below LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT
            address = f"/data/local-files/?d={self._photos.place(task, f'images/{task.sha256}')}"
        self._staging.append(task.split, entries.label_studio_task(task, address, self._config))

    def finish(self) -> None:
        for split in SPLITS:
            self._staging.assemble(f"{split}.json", ["[\n"], self._staging.lines(split, ","), ["]\n"])
        (self._staging.out / "labeling.xml").write_text(self._xml, encoding="utf-8")


def writer(form: Format, staging: Staging, job: Job) -> Writer:
    """What writes this format."""
    made: dict[Format, Any] = {
        "coco": CocoWriter,
        "sa1b": Sa1bWriter,
        "masks": MaskWriter,
        "labelstudio": LabelStudioWriter,
    }
    return made[form](staging, job)
