"""A picture file -> the prediction that the service gives, in two steps that may run on two machines: `prepare` needs
no model, `Annotator` has one.

The network sees one picture at a time, as in the service: in a batch of several its floats would depend on which
pictures share it, and with them a pixel at the border of a mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from backend.images import decode_photo
from backend.inference.label_embeddings import Namer
from backend.inference.preannotation import as_prediction, names_of, wanted_regions
from backend.inference.predictor import Loaded, read_model
from backend.label_studio.label_config import LabelConfig
from backend.settings import Settings
from semsam_model.checkpoints.header import Header, read_header
from semsam_model.config import ModelConfig
from semsam_model.errors import ConfigError, SemsamError
from semsam_model.text_encoder import TextEncoder

if TYPE_CHECKING:  # torch
    from semsam_model.network.frame import Frame


@dataclass(frozen=True, eq=False)
class Prepared:
    """A picture of the size that the network sees."""

    frame: Frame
    pixels: np.ndarray  #: uint8 RGB (h, w, 3) of size `frame.resized`
    sha256: str  #: hex digest of the file's bytes


def prepare(data: bytes, settings: Settings, config: ModelConfig) -> Prepared:
    """Decode and resize a picture file. Raises ImageError."""
    from semsam_model.network.frame import Frame

    photo = decode_photo(data, max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels)
    frame = Frame.of(photo.size, config)
    return Prepared(frame, frame.resize(photo.rgb), photo.sha256)


def checked_header(weights: Path) -> Header:
    """What a weights file says about itself. Raises CheckpointError; ConfigError for a model without object queries."""
    header = read_header(weights)
    if not header.config.generic_queries:
        raise ConfigError(
            f"model {header.version} has no object queries (generic_queries): it annotates no picture without a click;"
            " make a version live that has them"
        )
    return header


class Annotator:
    """A model of its own, and the labels of the project as it compares them."""

    def __init__(self, settings: Settings, weights: Path, config: LabelConfig) -> None:
        """Raises CheckpointError; ConfigError for a model without object queries; TextEncoderError when labels are to
        be told apart and the text encoder cannot be used."""
        checked_header(weights)
        self._settings, self._config = settings, config
        self.loaded: Loaded = read_model(settings, weights)
        own = self.loaded.model.config
        namer = Namer(TextEncoder(settings.text_encoder)) if own.name_features else None
        # a slow machine takes longer, and finds no fewer names
        self._labels = names_of(namer, config, own.text_dim, wait_s=None)

    def __call__(self, data: bytes) -> dict[str, Any]:
        """The prediction for a picture file. Raises ImageError."""
        return self.annotate(prepare(data, self._settings, self.loaded.model.config))

    def annotate(self, picture: Prepared) -> dict[str, Any]:
        """The prediction for what `prepare` made of a picture file."""
        from semsam_model.inference.object_queries import predict_object_queries_of_resized
        from semsam_model.inference.preannotate import queries_to_regions

        queries = predict_object_queries_of_resized(self.loaded.model, picture.frame, picture.pixels)
        regions = queries_to_regions(queries, picture.frame, self._labels, wanted_regions(self._settings, self._config))
        return as_prediction(regions, self._config, picture.sha256, self.loaded.version.version)


def told(error: BaseException) -> str:
    """Why a picture has no prediction, for people: with its type where the message was not made for them."""
    text = str(error)
    if not text or not isinstance(error, SemsamError | OSError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return printable(text)


def printable(text: str) -> str:
    """A file's name need not be UTF-8; what is shown, or sent by Ray, must."""
    return text.encode("utf-8", "backslashreplace").decode()
