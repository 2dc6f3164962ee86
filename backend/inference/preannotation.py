"""Regions of a photo that nobody has clicked -> the prediction of its task. The same for service and `semsam batch`.

The ids of regions follow from the photo and the version, so that two answers about one photo are equal.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backend.inference.concepts import asked_by_labels, weighing_labels
from backend.inference.loaded import Loaded
from backend.inference.text_prompt import Search
from backend.label_studio.label_config import LabelConfig
from backend.label_studio.predictions import build_prediction, default_label
from backend.settings import Settings

if TYPE_CHECKING:  # torch
    from semsam_model.inference.engine import EngineEmbedding, Model
    from semsam_model.inference.preannotate import Region, RegionOptions

#: What the version of an answer says that was not made: Label Studio and `semsam batch` then ask again.
UNFINISHED = " (not annotated yet)"


def region_options(settings: Settings, config: LabelConfig) -> RegionOptions:
    """Which regions a project's photos get."""
    from semsam_model.inference.preannotate import RegionOptions

    return RegionOptions(settings.preannotate_threshold, settings.preannotate_regions, config.granularity)


@dataclass(frozen=True)
class Finder:
    """Finds regions in the photos of a project, by the concept model where there is one and labels to ask it for."""

    regions: Callable[[Model, EngineEmbedding], list[Region]]
    least: float  #: score below which nothing is a region


def finder(
    loaded: Loaded, settings: Settings, config: LabelConfig, search: Search | None, wait_s: float | None
) -> Finder:
    """search: asks the concept model, about one photo. Raises NotReady, TextEncoderError as `wait_for_labels`."""
    from semsam_model.inference.concepts import concept_regions
    from semsam_model.inference.preannotate import least_score, preannotate

    options, asked = region_options(settings, config), asked_by_labels(config)
    if search is not None and asked:
        labels, concepts = weighing_labels(loaded.label_embedder, config, wait_s), search(asked)
        return Finder(
            lambda model, embedding: concept_regions(model, embedding, concepts, labels, options),
            concepts.least(options),
        )
    labels = loaded.label_embedder.wait_for_labels(config, wait_s)
    least = least_score(loaded.describer.query_calibration, options)
    return Finder(lambda model, embedding: preannotate(model, embedding, labels, options), least)


def as_prediction(regions: Sequence[Region], config: LabelConfig, sha256: str, version: str) -> dict[str, Any]:
    """The prediction of the task whose photo has this digest.

    A region that no name is sure enough for has the best guess among the labels of its kind.
    """
    scope = uuid.uuid5(uuid.NAMESPACE_OID, f"{version} {sha256}")
    numbers = itertools.count()
    labels = [default_label(region.candidate, config, part=region.kind == "part") for region in regions]
    return build_prediction(
        [region.candidate for region in regions],
        config=config,
        prompt_id=str(scope),
        model_version=version,
        labels=labels,
        best_on_top=False,
        new_id=lambda: str(uuid.uuid5(scope, str(next(numbers)))),
        preannotated=True,
    )
