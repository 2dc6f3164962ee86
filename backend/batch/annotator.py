"""A photo file -> the prediction that the service gives, in two steps that may run on two machines: `prepare` needs
no model, `Annotator` has one.

The network sees one photo at a time, as in the service: in a batch of several its floats would depend on which photos
share the batch, and with them a pixel at the border of a mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from backend.images import decode_photo
from backend.inference.label_embeddings import LabelVectors
from backend.inference.loaded import Loaded, read_model, several_models
from backend.inference.preannotation import as_prediction, finder, region_options
from backend.inference.text_prompt import Search
from backend.label_studio.label_config import LabelConfig
from backend.settings import Settings
from semsam_model.checkpoints.header import EMBEDDED, PUBLISHED, Header, find_weights, read_header
from semsam_model.config import ModelConfig
from semsam_model.errors import ConfigError, SemsamError
from semsam_model.text_encoder import TextEncoder

if TYPE_CHECKING:  # torch
    from semsam_model.inference.preannotate import Region
    from semsam_model.network.frame import Frame
    from semsam_model.network.query_calibration import Curve

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class PreparedPhoto:
    """A photo at the size that the network sees."""

    frame: Frame
    pixels: np.ndarray  #: uint8 RGB (h, w, 3) of size `frame.resized`
    sha256: str  #: hex digest of the file's bytes
    rgb: np.ndarray | None = None  #: uint8 (H, W, 3), the whole photo: only for an engine that looks at it too


def prepare(data: bytes, settings: Settings, config: ModelConfig) -> PreparedPhoto:
    """Decode and resize a photo file. config: of the model that describes. Raises ImageError."""
    from semsam_model.network.frame import Frame

    photo = decode_photo(data, max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels)
    frame = Frame.of(photo.size, config)
    return PreparedPhoto(frame, frame.resize(photo.rgb), photo.sha256, photo.rgb if several_models(settings) else None)


def checked_header(weights: Path) -> Header:
    """What a weights file says about itself. Raises CheckpointError; ConfigError for a model without object queries."""
    header = read_header(weights)
    if header.config.name in PUBLISHED:  # the embedded model finds what is in a photo
        return header
    if not header.config.generic_queries:
        raise ConfigError(
            f"model {header.version} has no object queries (generic_queries): it annotates no photo without a click;"
            " make a version live that has them"
        )
    return header


def describing_config(header: Header) -> ModelConfig:
    """Of the model that describes what is in a photo, for weights with this header."""
    return find_weights(EMBEDDED)[1].config if header.config.name in PUBLISHED else header.config


class Annotator:
    """A model of its own and the embedded labels of the project."""

    def __init__(self, settings: Settings, weights: Path, config: LabelConfig, worth: Curve | None = None) -> None:
        """worth: what scores of the concept model are worth in the project, where that is known.

        Raises CheckpointError; ConfigError for a model without object queries; TextEncoderError when labels are to
        be told apart and the text encoder cannot be used.
        """
        checked_header(weights)
        self._settings, self._config, self._worth = settings, config, worth
        self.loaded: Loaded = read_model(settings, LabelVectors(TextEncoder(settings.text_encoder)), weights)
        # a slow machine takes longer, and finds no fewer names
        self._labels = None if self.loaded.concepts else self.loaded.label_embedder.wait_for_labels(config, wait_s=None)

    def _regions(self, rgb: np.ndarray) -> list[Region]:
        """As the service finds them in a photo at which several models look."""
        search: Search | None = None
        if (opened := self.loaded.concepts) is not None:
            from semsam_model.inference.concepts import ConceptSearch

            concepts, look = opened.model, lru_cache(1)(partial(opened.model.encode, rgb))
            search = lambda asked: ConceptSearch(concepts, look, asked, curve=self._worth)  # noqa: E731
        model = self.loaded.model
        return finder(self.loaded, self._settings, self._config, search, None).regions(model, model.encode(rgb))

    def __call__(self, data: bytes) -> dict[str, Any]:
        """The prediction for a photo file. Raises ImageError."""
        return self.annotate(prepare(data, self._settings, self.loaded.describer.config))

    def annotate(self, photo: PreparedPhoto) -> dict[str, Any]:
        """The prediction for what `prepare` made of a photo file."""
        from semsam_model.inference.object_queries import predict_object_queries_of_resized
        from semsam_model.inference.preannotate import queries_to_regions

        model, options = self.loaded.describer, region_options(self._settings, self._config)
        if photo.rgb is not None:
            regions = self._regions(photo.rgb)
        else:
            queries = predict_object_queries_of_resized(model, photo.frame, photo.pixels)
            regions = queries_to_regions(queries, photo.frame, self._labels, options, model.query_calibration)
        return as_prediction(regions, self._config, photo.sha256, self.loaded.name)


@dataclass(frozen=True)
class Failure:
    """Why a worker has no result."""

    reason: str


def attempt(step: Callable[[], T]) -> T | Failure:
    """What a step in a worker gives, or why it failed: not every exception survives the way to another process."""
    try:
        return step()
    except Exception as error:
        return Failure(reason_of(error))


def reason_of(error: BaseException) -> str:
    """Why a photo has no prediction, for people: with the error's type where its message was not made for them."""
    text = str(error)
    if not text or not isinstance(error, SemsamError | OSError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return printable(text)


def printable(text: str) -> str:
    """Valid UTF-8, which a file's name need not be: other characters are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()
