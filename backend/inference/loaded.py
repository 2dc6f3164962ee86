"""A model ready to answer, and how the settings' model becomes one.

Where the weights that are served have names, they describe; for the published ones, which have none, the embedded model
does. The mask engine is the one that the settings name, or else the weights that are served. A concept model finds what
labels and text prompts name, where the settings name one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from backend.errors import SettingsError
from backend.inference.label_embeddings import LabelEmbedder, LabelVectors
from backend.settings import Settings
from semsam_model.checkpoints.header import EMBEDDED, PUBLISHED, Version, find_weights, weights_path
from semsam_model.errors import SemsamError

# torch takes seconds to import: the thread that loads the model pays for it, not the first answers about health
if TYPE_CHECKING:
    import torch

    from semsam_model.engines.opened import OpenedConcepts, OpenedEngine
    from semsam_model.inference.engine import DescribedEngine, Model
    from semsam_model.network.model import SemanticSAM

log = logging.getLogger(__name__)

Opened = TypeVar("Opened")


@dataclass(frozen=True)
class Loaded:
    """A model ready to answer, its name, and the labels of projects as it compares them."""

    model: Model
    version: Version  #: of the weights that are served, as the registry knows them
    label_embedder: LabelEmbedder
    engine_version: Version | None = None  #: None: the weights that are served propose masks
    describer_version: Version | None = None  #: None: the weights that are served describe them
    concepts: OpenedConcepts | None = None  #: finds what labels and text prompts name; None: the describer does

    @property
    def parts(self) -> DescribedEngine:
        """The engine and the describer."""
        from semsam_model.inference.engine import described

        return described(self.model)

    @property
    def describer(self) -> SemanticSAM:
        """Names masks, finds what is in a photo, learns."""
        return self.parts.describer

    @property
    def engine(self) -> Version:
        """Which masks: equal digest, equal masks."""
        return self.engine_version or self.version

    @property
    def described_by(self) -> Version:
        """Which description; what projects have taught belongs to it."""
        return self.describer_version or self.version

    @property
    def digests(self) -> frozenset[str]:
        """Of all that look at photos."""
        others = () if self.concepts is None else (self.concepts.version.digest,)
        return frozenset((self.engine.digest, self.described_by.digest, *others))

    @property
    def name(self) -> str:
        """What predictions carry: the version, or ENGINE+DESCRIBER; @CONCEPTS where there is a concept model."""
        name = self.version.version
        if self.engine != self.described_by:
            name = f"{self.engine.version}+{self.described_by.version}"
        return _with_concepts(name, self.concepts)


def _with_concepts(name: str, concepts: OpenedConcepts | None) -> str:
    return name if concepts is None else f"{name}@{concepts.version.version}"


Engines = Callable[[], "OpenedEngine | None"]  #: gives the settings' engine, always the same
Concepts = Callable[[], "OpenedConcepts | None"]  #: gives the settings' concept model, always the same


def settings_engine(settings: Settings) -> Engines:
    """The engine that the settings name, loaded once, when it is first asked for; None where none is named.

    Raises SettingsError where a second network would never be asked.
    """
    if settings.engine is not None and settings.model in PUBLISHED:
        raise SettingsError(
            f"engine {settings.engine}: model {settings.model} would answer nothing beside it, as it has no names;"
            " leave one of both settings away"
        )
    return lru_cache(1)(lambda: _open(settings))


def settings_concepts(settings: Settings) -> Concepts:
    """The concept model that the settings name, loaded once, when it is first asked for; None where none is named."""
    return lru_cache(1)(lambda: _open_concepts(settings))


def several_models(settings: Settings) -> bool:
    """Whether others than the model that describes look at a photo."""
    return settings.engine is not None or settings.concepts is not None or settings.model in PUBLISHED


def answering_name(settings: Settings, version: str) -> str:
    """What predictions carry where this version of the settings' model is live; loads what answers beside it.

    Raises CheckpointError.
    """
    if settings.model in PUBLISHED:
        version = f"{version}+{find_weights(EMBEDDED)[1].version}"
    elif (opened := settings_engine(settings)()) is not None:
        version = f"{opened.version}+{version}"
    return _with_concepts(version, settings_concepts(settings)())


def _open(settings: Settings) -> OpenedEngine | None:
    if settings.engine is None:
        return None
    from semsam_model.engines.open_engine import open_engine

    return _opened_or_none(settings, partial(open_engine, settings.engine))


def _open_concepts(settings: Settings) -> OpenedConcepts | None:
    if settings.concepts is None:
        return None
    from semsam_model.engines.open_engine import open_concepts

    return _opened_or_none(settings, partial(open_concepts, settings.concepts))


def _opened_or_none(settings: Settings, load: Callable[..., Opened]) -> Opened | None:
    try:
        return load(settings.device, _dtype(settings))
    except SemsamError as error:
        if not settings.engine_fallback:
            raise
        log.error("%s; the model answers without it, as SEMSAM_ENGINE_FALLBACK says", error)
        return None


def read_model(
    settings: Settings,
    label_vectors: LabelVectors,
    path: Path,
    engines: Engines | None = None,
    concepts: Concepts | None = None,
) -> Loaded:
    """The model in a weights file, on the device and in the precision of the settings; with the engine in front.

    engines, concepts: None: of the settings, loaded for this call. Raises CheckpointError. For a model with names the
    text encoder begins to load too.
    """
    import torch

    from semsam_model.checkpoints.checkpoint import load
    from semsam_model.inference.engine import DescribedEngine
    from semsam_model.inference.semantic_sam import SemanticSamEngine

    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)
    model, version = load(path, device=settings.device, dtype=_dtype(settings))
    describer, described_by = model, version
    if not model.config.name_features and (settings.engine is not None or model.config.name in PUBLISHED):
        describer, described_by = load(weights_path(EMBEDDED), device=settings.device, dtype=_dtype(settings))
    opened = (engines or settings_engine(settings))()
    embedder = LabelEmbedder(label_vectors, describer.config)
    embedder.start()
    finder = (concepts or settings_concepts(settings))()
    if finder is not None:
        log.info("concepts %s, %.0f MB of weights, in %s", finder.version, finder.nbytes / 2**20, settings.dtype)
    if opened is None and describer is model:
        return Loaded(model, version, embedder, concepts=finder)
    engine = SemanticSamEngine(model) if opened is None else opened.engine
    loaded = Loaded(
        DescribedEngine(engine, describer, model.ranker if opened is None else None),
        version,
        embedder,
        engine_version=None if opened is None else opened.version,
        describer_version=described_by,
        concepts=finder,
    )
    megabytes = (_nbytes(model) if opened is None else opened.nbytes) / 2**20, _nbytes(describer) / 2**20
    log.info(
        "engine %s, %.0f MB of weights; described by %s, %.0f MB; both in %s on %s",
        *(loaded.engine, megabytes[0], loaded.described_by, megabytes[1], settings.dtype, describer.pixel_mean.device),
    )
    return loaded


def _dtype(settings: Settings) -> torch.dtype:
    import torch

    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[settings.dtype]


def _nbytes(model: SemanticSAM) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
