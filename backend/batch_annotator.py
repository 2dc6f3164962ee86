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
from backend.label_config import LabelConfig
from backend.naming import Namer
from backend.preannotation import as_prediction, names_of, wanted_regions
from backend.predictor import Loaded, read_model
from backend.settings import Settings
from semsam_model.config import ModelConfig
from semsam_model.errors import ConfigError
from semsam_model.header import Header, read_header
from semsam_model.text import TextEncoder

if TYPE_CHECKING:  # torch
    from semsam_model.transforms import Frame


@dataclass(frozen=True, eq=False)
class Prepared:
    """A picture of the size that the network sees."""

    frame: Frame
    pixels: np.ndarray  #: uint8 RGB (h, w, 3) of size `frame.resized`
    sha256: str  #: hex digest of the file's bytes


def prepare(data: bytes, settings: Settings, config: ModelConfig) -> Prepared:
    """Decode and resize a picture file. Raises ImageError."""
    from semsam_model.transforms import Frame

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
    """A model of its own, and the text encoder."""

    def __init__(self, settings: Settings, weights: Path) -> None:
        """Raises CheckpointError; ConfigError for a model without object queries."""
        checked_header(weights)
        self._settings = settings
        self.loaded: Loaded = read_model(settings, weights)
        self._namer = Namer(TextEncoder(settings.text_encoder)) if self.loaded.model.config.name_features else None

    def __call__(self, data: bytes, config: LabelConfig) -> dict[str, Any]:
        """The prediction for a picture file. Raises ImageError."""
        return self.annotate(prepare(data, self._settings, self.loaded.model.config), config)

    def annotate(self, picture: Prepared, config: LabelConfig) -> dict[str, Any]:
        """The prediction for what `prepare` made of a picture file."""
        from semsam_model.preannotate import preannotate

        model, version = self.loaded.model, self.loaded.version.version
        # a slow machine takes longer, and finds no fewer names
        labels = names_of(self._namer, config, model.config.text_dim, wait_s=None)
        embedding = model.encode_resized(picture.frame, picture.pixels)
        return as_prediction(
            preannotate(model, embedding, labels, wanted_regions(self._settings, config)),
            config,
            picture.sha256,
            version,
        )
