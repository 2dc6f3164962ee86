"""The header of a weights file, and which file a model is in. No torch: the service starts with this."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from semsam_model.config import ModelConfig, model_names, parse_config
from semsam_model.errors import CheckpointError, ConfigError

FORMAT = "semsam-weights-1"  #: version of the file layout; a reader refuses any other
SUFFIX = ".safetensors"
EMBEDDED = "mobile"  #: the model whose weights come with the package
RELEASED = ("swin_t", "swin_l")  #: models whose published weights can be fetched
PUBLISHED = (*RELEASED, "swin_l_many2one")  #: models that were published, without names


@dataclass(frozen=True)
class Version:
    """Which weights answered. Equal digest means equal config and equal tensors, bit for bit."""

    name: str  #: of the model config: mobile, swin_t, ...
    digest: str  #: sha256, 64 hex digits

    @property
    def version(self) -> str:
        """Short form for people and for Label Studio: mobile-1a2b3c4d5e6f."""
        return f"{self.name}-{self.digest[:12]}"

    def __str__(self) -> str:
        return self.version


@dataclass(frozen=True)
class Header:
    """The metadata of a weights file."""

    config: ModelConfig
    version: Version  #: as written by `save`; only `load` verifies the digest
    card: dict[str, Any]  #: whatever the writer noted: training data, source file, measures


def read_header(path: Path) -> Header:
    """The metadata of a weights file; its tensors are not read. Raises CheckpointError."""
    with opened(path, "np") as file:
        return header_of(path, file)


def weights_path(name: str, weights: Path | None = None, *, folder: Path | None = None) -> Path:
    """Which file `load_model` reads: `weights`, else the embedded one for "mobile", else `folder`/NAME.safetensors.

    Raises CheckpointError when the name is unknown or no file is there.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):  # the name becomes part of a path
        raise CheckpointError(f"model {name!r}: expected one of {', '.join(model_names())}")
    if weights is not None:
        return weights
    file = f"{name}{SUFFIX}"
    if name == EMBEDDED:
        return Path(str(resources.files("semsam_model"))) / "weights" / file
    path = Path(file) if folder is None else folder / file
    if folder is not None and path.is_file():
        return path
    if name not in model_names():
        raise CheckpointError(f"model {name!r}: expected one of {', '.join(model_names())}")
    way_out = (
        f"fetch the published ones with `semsam weights fetch {name}`"
        if name in RELEASED
        else f"name a file, or make one from a checkpoint with `semsam weights convert IN.pth --model {name}`"
    )
    raise CheckpointError(f"{path}: model {name} has no weights yet; {way_out}")


def find_weights(name: str, weights: Path | None = None, *, folder: Path | None = None) -> tuple[Path, Header]:
    """The file that `weights_path` chooses, and its header.

    Raises CheckpointError as `weights_path` and `read_header` do, and when the file holds another model than `name`.
    """
    path = weights_path(name, weights, folder=folder)
    header = read_header(path)
    found = header.config.name
    if found != name:
        raise CheckpointError(f"{path}: holds model {found}, expected {name}; ask for {found} or name another file")
    return path, header


@contextlib.contextmanager
def opened(path: Path, framework: str) -> Iterator[Any]:
    """The safetensors file, its tensors as values of `framework` (pt, np). Raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weights file")
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except (OSError, SafetensorError) as exc:
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({exc}); a .pth goes through `semsam weights convert` first"
        ) from exc


def header_of(path: Path, file: Any) -> Header:
    """The metadata of an open safetensors file. Raises CheckpointError."""
    metadata = file.metadata() or {}
    found = metadata.get("format")
    if found != FORMAT:
        raise CheckpointError(
            f"{path}: safetensors, but not written by semsam: expected format {FORMAT} in its metadata, got {found}"
        )
    try:
        config = parse_config(ModelConfig, json.loads(metadata["config"]), f"{path}: model config")
        card = json.loads(metadata.get("card", "{}"))
        digest = metadata["digest"]
    except ConfigError as exc:
        raise CheckpointError(f"{exc}; the file is damaged or was written by another release of semsam") from exc
    except (KeyError, ValueError) as exc:
        raise CheckpointError(f"{path}: its metadata is damaged: {exc}") from exc
    return Header(config, Version(config.name, digest), card)
