"""Pre-annotation of many pictures: whatever lacks a prediction of a version gets one, a bad picture is told and passed.

Nothing is remembered here: Label Studio, or the file of JSON lines, says what is done. So a run that was killed is
resumed by running it again, and a second run writes nothing.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from backend import protocol
from backend.batch_sources import Item
from backend.errors import BackendError
from backend.images import decode_photo
from backend.label_config import LabelConfig
from backend.naming import Namer
from backend.preannotation import as_prediction, names_of, wanted_regions
from backend.predictor import Loaded, read_model
from backend.settings import Settings
from semsam_model.errors import ConfigError, SemsamError
from semsam_model.text import TextEncoder

GROUP = 8  #: pictures between two writings
Annotate = Callable[[bytes, LabelConfig], dict[str, Any]]


@dataclass
class Summary:
    """What a run came to."""

    done: int = 0  #: already had a prediction
    written: int = 0
    regions: int = 0
    failed: int = 0


class Annotator:
    """A model of its own, and the text encoder."""

    def __init__(self, settings: Settings, weights: Path) -> None:
        """Raises CheckpointError; ConfigError for a model without object queries."""
        self._settings = settings
        self.loaded: Loaded = read_model(settings, weights)
        config = self.loaded.model.config
        if not config.generic_queries:
            raise ConfigError(
                f"model {self.loaded.version} has no object queries (generic_queries): it annotates no picture without"
                " a click; make a version live that has them"
            )
        self._namer = Namer(TextEncoder(settings.text_encoder)) if config.name_features else None

    def __call__(self, data: bytes, config: LabelConfig) -> dict[str, Any]:
        """The prediction for a picture file, the one that the service gives. Raises ImageError."""
        from semsam_model.preannotate import preannotate

        limits = self._settings.max_image_bytes, self._settings.max_image_pixels
        photo = decode_photo(data, max_bytes=limits[0], max_pixels=limits[1])
        model, version = self.loaded.model, self.loaded.version.version
        labels = names_of(self._namer, config, model.config.text_dim)
        regions = preannotate(model, model.encode(photo.rgb), labels, wanted_regions(self._settings, config))
        return as_prediction(regions, config, photo.sha256, version)


_annotators: list[Annotator] = []  # of a worker process: one


def _begin(settings: Settings, weights: Path) -> None:
    _annotators.append(Annotator(settings, weights))


def _annotate(data: bytes, config: LabelConfig) -> dict[str, Any]:
    return _annotators[0](data, config)


def processes(settings: Settings, weights: Path, workers: int) -> ProcessPoolExecutor:
    """Workers, each with a model of its own."""
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, spawn, _begin, (settings, weights))


def run(
    items: Iterator[Item | None],
    config: LabelConfig,
    annotate: Annotate | Executor,
    *,
    seconds_between: float = 0.0,
    tell: Callable[[str], None] = print,
    on_picture: Callable[[Summary], None] = lambda summary: None,
) -> Summary:
    """Annotate every item, None standing for one that is done, and write group by group.

    seconds_between: least time from one writing to the next. tell: gets a line for each bad picture. Raises
    BackendError when a worker process died, and LabelStudioError when a prediction cannot be written.
    """
    summary, last = Summary(), 0.0
    while group := list(islice(items, GROUP)):
        pending: list[tuple[Item, Callable[[], dict[str, Any]]]] = []
        for item in group:
            if item is None:
                summary.done += 1
                on_picture(summary)
                continue
            try:
                data = item.read()
            except (SemsamError, OSError) as error:
                _failed(summary, item, error, tell, on_picture)
                continue
            if isinstance(annotate, Executor):
                future: Future[dict[str, Any]] = annotate.submit(_annotate, data, config)
                pending.append((item, future.result))
            else:
                pending.append((item, partial(annotate, data, config)))
        for item, answer in pending:
            try:
                prediction = answer()
            except BrokenProcessPool:
                raise BackendError("a worker process has died; run the command again, it goes on from here") from None
            except SemsamError as error:
                _failed(summary, item, error, tell, on_picture)
                continue
            time.sleep(max(0.0, last + seconds_between - time.monotonic()))
            item.write(prediction)
            last = time.monotonic()
            summary.written += 1
            summary.regions += len({row["id"] for row in prediction["result"]})
            on_picture(summary)
    return summary


def _failed(
    summary: Summary, item: Item, error: Exception, tell: Callable[[str], None], on_picture: Callable[[Summary], None]
) -> None:
    summary.failed += 1
    tell(f"{item.name}: {error}")
    on_picture(summary)


def read_config(xml: str) -> LabelConfig:
    """A labeling config that answers can be written for. Raises BackendError, BadRequest."""
    config = protocol.LabelConfig.parse(xml)
    if config.answer is None:
        raise BackendError("; ".join(config.problems()) or "the labeling config has no control for answers")
    return config
