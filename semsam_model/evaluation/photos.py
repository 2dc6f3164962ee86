"""How well whole photos are segmented without a click, by the usual measures; one task at a time.

    instance         mask AP of named objects (COCO)
    parts            mask AP of named parts, a label for each pair of whole and part where the source says the whole
    semantic         mean IoU of the label map of objects and named regions
    panoptic         PQ, SQ, RQ; labels that only regions have are stuff
    open-vocabulary  gIoU and cIoU of the masks of each word on a photo; mean IoU of the map of parts; both with seen
                     and unseen labels apart where it is known what training had
    everything       without labels: average recall, and objects as sets: best Dice, difference in count, borders

Labels are those of the photo's own source; a part whose source names the whole ("dog:head") is one label with it.
Label maps are painted from large masks to small; pixels without an annotation are left out. Crowd regions (several
things in one mask), where samples have them, excuse what lies in them in AP and panoptic quality, and are pixels of
their label in maps and for words; photos without any annotation count: as COCO has it. On photos that are annotated in
part, precision is a lower bound, because a right mask of something that nobody annotated counts as wrong. Where samples
know which labels were looked for (LVIS, PACO), the AP of instances and parts is that of lvis-api.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from semsam_model.data.samples import Sample
from semsam_model.errors import ConfigError
from semsam_model.evaluation.encoded_photos import encode_photos
from semsam_model.evaluation.labels import LabelList, labels_of
from semsam_model.evaluation.segmented_photo import SegmentedPhoto
from semsam_model.evaluation.tasks import NEEDS, NO_QUERIES, TASKS, Figures, TaskMetric
from semsam_model.inference.automatic import AutomaticOptions, automatic_masks
from semsam_model.inference.object_queries import Embed, ObjectQueries, predict_object_queries
from semsam_model.network.model import ImageEmbedding, SemanticSAM
from semsam_model.types import Candidate, Label


def evaluate_photos(
    model: SemanticSAM,
    samples: Sequence[Sample],
    embed: Embed,
    task: str,
    *,
    labels: Mapping[str, Collection[Label]] | None = None,
    seen: Collection[Label] | None = None,
    grid: int | None = None,
    predict: Callable[[SemanticSAM, ImageEmbedding], ObjectQueries] = predict_object_queries,
    on_photo: Callable[[], None] = lambda: None,
) -> PhotoReport:
    """Segment every photo and compare it with its annotation. `on_photo` is called after each.

    embed: label texts -> float32 (n, E), unit length. labels: the list of each source, which should not depend on how
    many photos are measured; what the samples are called when None. seen: labels that training had, parts with their
    wholes (open-vocabulary). grid: clicks along each side of the photo in place of object queries (everything).
    predict: where the object queries come from. A photo or mask that cannot be read is skipped and named.
    Raises ConfigError for a model without object queries, an unknown task, or samples of which none has what the task
    measures.
    """
    check_task(task, grid=grid, seen=seen)
    if grid is None:
        _check_model(model)
    if task == "everything":  # needs no labels, and sources without names may be long
        labels = {}
    elif labels is None:
        labels = labels_of(samples)
    lists = {source: LabelList.of(labels.get(source, ()), embed, seen) for source in {s.source for s in samples}}
    metrics: dict[str, TaskMetric] = {}
    skipped: list[str] = []
    partial: dict[str, int] = {}
    for photo in encode_photos(model, samples, skipped, without_targets=True, on_photo=on_photo):
        source = photo.sample.source
        queries, by_grid = NO_QUERIES, None
        if grid is None:
            queries = predict(model, photo.look)
        else:
            by_grid = _by_grid(model, photo.look, grid)
        if source not in metrics:
            metrics[source] = TASKS[task](lists[source], embed)
        masks = list(photo.masks.values())
        metrics[source].update(SegmentedPhoto(photo.sample, masks, photo.look.frame, queries, lists[source], by_grid))
        partial[source] = partial.get(source, 0) + photo.sample.partial
    figures = {source: metric.compute() for source, metric in sorted(metrics.items())}
    by_source = {source: row | {"partial_photos": partial[source]} for source, row in figures.items() if row}
    if not by_source:
        raise ConfigError(
            f"{task}: none of {len(samples)} photos has what is measured; {NEEDS[task]}; "
            f"{len(skipped)} were skipped: {skipped[:3]}"
        )
    return PhotoReport(task, by_source, tuple(skipped))


def _by_grid(model: SemanticSAM, embedding: ImageEmbedding, grid: int) -> list[Candidate]:
    """Masks of the whole photo by a grid of clicks."""
    return [mask.candidate for mask in automatic_masks(model, embedding, AutomaticOptions(grid=grid))]


def _check_model(model: SemanticSAM) -> None:
    if model.generic is None:
        raise ConfigError(
            f"model {model.config.name}: it has no object queries, only clicks; expected one with "
            "generic_queries in its config"
        )


def check_task(task: str, *, grid: object = None, seen: object = None) -> None:
    """Raises ConfigError for an unknown task, and for an option that only another task takes."""
    if task not in TASKS:
        raise ConfigError(f"task {task!r}: expected one of {', '.join(TASKS)}")
    for name, given, taken_by in (("grid", grid, "everything"), ("labels of training", seen, "open-vocabulary")):
        if given is not None and task != taken_by:
            raise ConfigError(f"{name}: only for the task {taken_by}, got {task}")


@dataclass(frozen=True)
class PhotoReport:
    """Figures of one task by source."""

    task: str
    by_source: dict[str, Figures]
    skipped: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """What report.json holds: figures by source, and their means over sources."""
        return {
            "task": self.task,
            "by_source": self.by_source,
            "mean_over_sources": self.means(),
            "skipped": list(self.skipped),
        }

    def means(self) -> dict[str, float]:
        """Of every percentage that all sources have."""
        rows = list(self.by_source.values())
        return {
            name: round(float(np.mean([row[name] for row in rows])), 2)
            for name in self._columns()
            if all(isinstance(row.get(name), float) for row in rows)
        }

    def _columns(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.by_source.values() for name in row))

    def table(self, title: str) -> Table:
        """For the terminal: a row a source."""
        columns = self._columns()
        table = Table("source", *columns, title=title)
        for source, row in self.by_source.items():
            table.add_row(source, *(_cell(row.get(name)) for name in columns))
        return table


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)
