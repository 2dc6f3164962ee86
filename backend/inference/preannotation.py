"""Regions of a photo that nobody has clicked -> the prediction of its task. The same for service and `semsam batch`:
the ids of regions follow from the photo and the version, so that two answers about one photo are equal.
"""

from __future__ import annotations

import itertools
import logging
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, TypeVar

from backend.errors import NotReady
from backend.inference.label_embeddings import Namer
from backend.label_studio.label_config import LabelConfig
from backend.label_studio.predictions import build_prediction
from backend.settings import Settings
from semsam_model.errors import TextEncoderError
from semsam_model.types import LabelSet

if TYPE_CHECKING:  # torch
    from semsam_model.inference.preannotate import Region, RegionOptions

log = logging.getLogger(__name__)

#: What the version of an answer says that was not made: Label Studio and `semsam batch` then ask again.
UNFINISHED = " (not annotated yet)"
ENCODER_WAIT_S = 20.0  #: of a picture, within the time of its request; `semsam batch` waits until it is there
#: Pictures of one request at a time: one is fetched while another is looked at.
TOGETHER = 2
#: What a picture that was begun may take beyond `preannotate_seconds`, as a share of these; of 80 s it is 12.
GRACE = 0.15
T = TypeVar("T")


def in_time(jobs: Sequence[Callable[[], T]], seconds: float, late: Callable[[], T]) -> list[T]:
    """What the jobs give, in their order; `late()` for each that has not ended by then. None is begun any more then."""
    pool = ThreadPoolExecutor(TOGETHER, "preannotate")
    try:
        asked = [pool.submit(job) for job in jobs]
        ended = wait(asked, seconds).done
        return [future.result() if future in ended else late() for future in asked]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def names_of(namer: Namer | None, config: LabelConfig, dimension: int, wait_s: float | None) -> LabelSet | None:
    """The project's labels; waits for the text encoder. None: regions are labelled by kind alone, for want of names.

    wait_s None: however long it takes. Raises NotReady when the encoder is still not done then, TextEncoderError when
    it cannot be used: nobody would look again at what was labelled without it.
    """
    if namer is None:
        return None
    try:
        return namer.needed(config, dimension, wait_s)
    except TimeoutError:
        raise NotReady(f"the text encoder has not read the labels after {wait_s:.3g} s; ask again") from None
    except TextEncoderError as error:
        raise TextEncoderError(
            f"labels cannot be told apart without the text encoder, and none is given by chance: {error}"
        ) from error


def wanted_regions(settings: Settings, config: LabelConfig) -> RegionOptions:
    """Which regions a project's pictures get."""
    from semsam_model.inference.preannotate import RegionOptions

    return RegionOptions(settings.preannotate_threshold, settings.preannotate_regions, config.granularity)


def as_prediction(regions: Sequence[Region], config: LabelConfig, sha256: str, version: str) -> dict[str, Any]:
    """The prediction of the task whose picture has this digest; a region without a name has the label of its kind."""
    scope = uuid.uuid5(uuid.NAMESPACE_OID, f"{version} {sha256}")
    numbers = itertools.count()
    known = {label.value for label in config.labels}
    labels = [
        r.candidate.label if r.candidate.label in known else config.label_for(part=r.kind == "part") for r in regions
    ]
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
