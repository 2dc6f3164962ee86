"""One accepted region -> what it teaches the model that answers, in the store from then on."""

from __future__ import annotations

from functools import partial

import numpy as np

from backend.adaptation.lessons import KeptLesson, TrainingRegion, keep_lesson
from backend.corrections.archive import PhotoArchive
from backend.corrections.queries import find_region
from backend.errors import BackendError
from backend.images import decode_photo
from backend.inference.loaded import Loaded
from backend.inference.predictor import PhotoSource, Predictor
from backend.settings import Settings
from backend.store.database import Store
from semsam_model.errors import DataError
from semsam_model.masks.codecs import decode_coco_rle
from semsam_model.types import Click, PromptContext


class MissingPhoto(BackendError):
    """A photo that is not in the archive yet."""


class LessonMaker:
    """Runs the network, behind every click."""

    def __init__(self, store: Store, photos: PhotoArchive, predictor: Predictor, settings: Settings) -> None:
        self._store = store
        self._photos = photos
        self._predictor = predictor
        self._settings = settings

    def make(self, each: TrainingRegion, context: PromptContext, loaded: Loaded) -> bytes | None:
        """The lesson of a region as `Lesson.from_bytes` reads it; None for one that has changed since.

        context: as the project's prompts are asked. Raises MissingPhoto; DataError for a mask that does not fit the
        photo; ImageError, MaskError, StoreError, PhotosUnavailable, ...
        """
        from semsam_model.adaptation.lessons import make_lesson

        region = find_region(self._store, each.key)
        if region is None or region.updated_at != each.updated_at:
            return None
        make = partial(
            make_lesson,
            mask=decode_coco_rle(dict(region.mask)),
            label=each.label,
            click=Click(*region.click) if region.click else None,
            context=context,
        )
        lesson = self._predictor.run(
            PhotoSource(each.image_sha256, lambda: self._pixels(each.image_sha256)),
            lambda model, embedding, encode_crop: make(model, embedding, encode_crop=encode_crop),
            "background",
            using=loaded,
        ).value
        data = lesson.to_bytes()
        keep_lesson(self._store, each.key, loaded.described_by.digest, KeptLesson(each.updated_at, data))
        return data

    def _pixels(self, sha256: str) -> np.ndarray:
        try:
            file = self._photos.find(sha256)
            if file is None:
                raise MissingPhoto(sha256)
            with file:
                content = file.read()
        except OSError as error:
            raise DataError(f"its photo cannot be read: {error}") from error
        settings = self._settings
        return decode_photo(content, max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels).rgb
