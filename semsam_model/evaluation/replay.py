"""How much adaptation gains: annotated photos replayed as an annotator would label them, one after another.

Each region is clicked in its middle. The candidates are ordered and named twice, by the model alone and adapted to
the regions before; then the region is accepted as annotated, and becomes a lesson.

    first    the candidate ranked first is the best of those offered, by its IoU with the region
    iou      IoU of the candidate ranked first with the region
    label    the best candidate's first name is the region's
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.table import Table

from semsam_model.adaptation.lessons import (
    Lesson,
    ProjectAdaptation,
    adapt,
    lesson_from_proposals,
    with_region_features,
)
from semsam_model.data.samples import Sample
from semsam_model.evaluation.encoded_photos import EncodedPhoto, encode_photos, large_targets
from semsam_model.evaluation.few_shot import label_set, region_label
from semsam_model.inference.candidates import CandidateOptions
from semsam_model.inference.naming import name_candidates
from semsam_model.inference.predict import rank_candidates
from semsam_model.inference.proposals import predict_proposals
from semsam_model.inference.zoom import CropEncoder, crop_encoder
from semsam_model.masks.clicker import innermost
from semsam_model.masks.geometry import crop_iou
from semsam_model.network.model import SemanticSAM
from semsam_model.text_encoder import TextEncoder
from semsam_model.types import Candidate, LabelSet, Prompt, PromptContext

MEASURES = ("first", "iou", "label")
BLOCKS = (25, 50, 100, 200, 400, 800, 1600, 3200)  #: accepts at which a row of the curve ends


@dataclass
class Replay:
    """One entry a region in each list, in the order of accepting."""

    alone: dict[str, list[float]] = field(default_factory=lambda: {measure: [] for measure in MEASURES})
    learned: dict[str, list[float]] = field(default_factory=lambda: {measure: [] for measure in MEASURES})
    photos: int = 0
    skipped: list[str] = field(default_factory=list)

    @property
    def accepts(self) -> int:
        return len(self.alone["first"])

    def curve(self) -> list[dict[str, float | int]]:
        """Rows of percent: after how many accepts a row begins and ends, each measure without and with learning."""
        ends = [end for end in BLOCKS if end < self.accepts] + [self.accepts]
        return [self._row(start, end) for start, end in zip([0, *ends], ends, strict=False) if end > start]

    def total(self) -> dict[str, float | int]:
        """The same over all accepts."""
        return self._row(0, self.accepts)

    def _row(self, start: int, end: int) -> dict[str, float | int]:
        row: dict[str, float | int] = {"from": start, "to": end}
        for measure in MEASURES:
            for name, values in (("alone", self.alone[measure]), ("learned", self.learned[measure])):
                row[f"{measure}_{name}"] = round(100 * float(np.mean(values[start:end])), 1)
        return row

    def table(self, title: str) -> Table:
        """For the terminal: a row a stretch of accepts, without -> with learning."""
        table = Table("accepts", *MEASURES, title=title)
        for row in [*self.curve(), self.total()]:
            cells = [f"{row[f'{measure}_alone']:.1f} -> {row[f'{measure}_learned']:.1f}" for measure in MEASURES]
            table.add_row(f"{row['from']}..{row['to']}", *cells)
        return table


def replay(
    model: SemanticSAM,
    samples: Sequence[Sample],
    encoder: TextEncoder,
    *,
    label_first: bool = False,
    on_photo: Callable[[], None] = lambda: None,
) -> Replay:
    """Photos of one source, in the order given. A photo or mask that cannot be read is skipped and named.

    label_first: the annotator chooses the region's label, then clicks.
    Raises DataError for fewer than two labels, TextEncoderError.
    """
    labels, result, lessons = label_set(samples, encoder), Replay(), list[Lesson]()

    def named(sample: Sample, masks: Mapping[int, np.ndarray]) -> list[int]:
        return [i for i in large_targets(sample, masks) if region_label(sample.regions[i]) is not None]

    for photo in encode_photos(model, samples, result.skipped, targets=named, on_photo=on_photo):
        result.photos += 1
        encode_crop = crop_encoder(model, photo.rgb)
        for index in photo.targets:
            _accept(model, photo, encode_crop, index, labels, label_first, lessons, result)
    return result


def _accept(
    model: SemanticSAM,
    photo: EncodedPhoto,
    encode_crop: CropEncoder,
    region: int,
    labels: LabelSet,
    label_first: bool,
    lessons: list[Lesson],
    result: Replay,
) -> None:
    """Click a region, note what is suggested with and without the lessons so far, and append its own lesson."""
    mask, label = photo.masks[region], region_label(photo.sample.regions[region])
    assert label is not None
    options, learned = CandidateOptions(), adapt(lessons)
    context = None
    if label_first:
        wanted = labels.values.index(label)
        context = PromptContext(labels.kinds[wanted], labels=labels, wanted=wanted)
    prompt = Prompt((innermost(mask),))
    proposals = with_region_features(predict_proposals(model, photo.embedding, prompt, options, encode_crop))
    alone = ours = rank_candidates(proposals, options, model.ranker, context)
    if learned is not None:
        ours = rank_candidates(proposals, options, model.ranker, context, learned)
    if alone:
        _note(result.alone, name_candidates(alone, labels, 0), mask, label)
        _note(result.learned, _named(ours, learned, labels), mask, label)
    lessons.append(lesson_from_proposals(proposals, mask, label=label, ranker=model.ranker))


def _named(candidates: Sequence[Candidate], learned: ProjectAdaptation | None, labels: LabelSet) -> list[Candidate]:
    return name_candidates(candidates, labels, 0) if learned is None else learned.name(candidates, labels, 0)


def _note(into: dict[str, list[float]], candidates: Sequence[Candidate], mask: np.ndarray, label: str) -> None:
    ious = [crop_iou(c.crop, c.bbox, mask) for c in candidates]
    into["first"].append(ious[0] >= max(ious))
    into["iou"].append(ious[0])
    into["label"].append(candidates[int(np.argmax(ious))].label == label)
