"""What commands open before they work: the store, a project in it, a model, a text encoder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backend.images import Photo
    from backend.records import ProjectKey
    from backend.settings import Settings
    from backend.store.database import Store
    from semsam_model.checkpoints.header import Version
    from semsam_model.network.model import SemanticSAM
    from semsam_model.text_encoder import TextEncoder


@contextlib.contextmanager
def opened_store(config: Path | None = None) -> Iterator[tuple[Settings, Store]]:
    """The settings, of the file `config` too, and their store, which is closed in the end.

    Raises ConfigError, StoreError.
    """
    from backend.settings import load_settings
    from backend.store.database import open_store

    settings = load_settings(config)
    with contextlib.closing(open_store(settings)) as store:
        yield settings, store


def project_key(store: Store, project: int, origin: str | None) -> ProjectKey:
    """A project that the store knows. Raises StoreError when none, or several servers, have one of this id."""
    from backend.corrections.queries import find_project

    return find_project(store, project, origin).key


def read_photo(path: Path) -> Photo:
    """A photo within the limits of the settings. Raises ImageError, OSError."""
    from backend.images import load_photo
    from backend.settings import load_settings

    settings = load_settings()
    return load_photo(path, max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels)


def load_network(model: str, weights: Path | None, device: str = "cpu") -> tuple[SemanticSAM, Version]:
    """The model `model` with `weights`, or with those of the data folder or the package. Raises SemsamError."""
    from backend.settings import load_settings
    from semsam_model.checkpoints.checkpoint import load_model

    return load_model(model, weights, folder=load_settings().data_dir / "weights", device=device)


def open_text_encoder() -> TextEncoder:
    """The text encoder of the settings; it is loaded when it is first needed."""
    from backend.settings import load_settings
    from semsam_model.text_encoder import TextEncoder

    return TextEncoder(load_settings().text_encoder)
