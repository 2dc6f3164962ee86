"""Regions of a photo that nobody has clicked -> the prediction of its task. The same for service and `semsam batch`.

The ids of regions follow from the photo and the version, so that two answers about one photo are equal.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from backend.label_studio.label_config import LabelConfig
from backend.label_studio.predictions import build_prediction, default_label
from backend.settings import Settings

if TYPE_CHECKING:  # torch
    from semsam_model.inference.preannotate import Region, RegionOptions

#: What the version of an answer says that was not made: Label Studio and `semsam batch` then ask again.
UNFINISHED = " (not annotated yet)"


def region_options(settings: Settings, config: LabelConfig) -> RegionOptions:
    """Which regions a project's photos get."""
    from semsam_model.inference.preannotate import RegionOptions

    return RegionOptions(settings.preannotate_threshold, settings.preannotate_regions, config.granularity)


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
