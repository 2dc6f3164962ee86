"""Photos of an export: copied, pointed to, or only named."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from PIL import Image

from backend.corrections.tasks import LabelledTask
from backend.export.plan import Plan
from backend.export.staging import Staging
from backend.images import FORMATS as PHOTO_FORMATS
from semsam_model.files import atomic_write

_SUFFIXES = {"JPEG": ".jpg", "TIFF": ".tif"}


class ExportedPhotos:
    """Photos of an export: copied, pointed to, or only named."""

    def __init__(self, staging: Staging, plan: Plan) -> None:
        self._staging, self._plan = staging, plan

    def place(self, task: LabelledTask, stem: str) -> str:
        """The photo's name, from the export's folder on: `stem` and a suffix, or where it lies when referred to."""
        kept = self._plan.photos.path(task.sha256)
        if not kept.is_file():
            self._staging.add("photos missing")
            return stem
        name = stem + _suffix(kept)
        if self._plan.images == "reference":
            return Path(os.path.relpath(kept, self._plan.target)).as_posix()
        if self._plan.images == "copy":
            _copy(kept, self._staging.out / name, self._staging.previous / name)
        return name

    def beside(self, task: LabelledTask, stem: str) -> str:
        """As `place`, for a format whose photos lie beside their JSON: a photo referred to is a link there."""
        if self._plan.images != "reference" or not self._plan.photos.has(task.sha256):
            return self.place(task, stem)
        kept = self._plan.photos.path(task.sha256)
        name = stem + _suffix(kept)
        link = self._staging.out / name
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(kept, (self._plan.target / name).parent))
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
    with atomic_write(target) as fresh:
        try:
            # a link to the archive, out of an export that refers to photos, is no copy
            if earlier.is_symlink() or earlier.stat().st_size != source.stat().st_size:
                raise FileNotFoundError
            os.link(earlier, fresh)
        except OSError:
            shutil.copyfile(source, fresh)
