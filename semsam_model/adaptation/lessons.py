"""Names and preferences that a project's accepted regions teach at once. The network stays as it is.

    make_lesson        one accepted region on its photo's embedding -> a `Lesson`, to be kept
    adapt              the lessons of a project -> `ProjectAdaptation`
    ProjectAdaptation  names candidates by text and examples together; orders proposals, as a `Reranker`

The result depends on the set of lessons and on which are newest where there are many, not on the order in which they
were made. A lesson belongs to the network that describes regions, whatever
engine draws them.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from semsam_model.adaptation.kernel_ridge import (
    CHOSEN,
    CHOSEN_FADING,
    LearnedNames,
    Preference,
    fit_names,
    fit_preference,
    newest_of_each,
    preference_vectors,
)
from semsam_model.adaptation.region_features import region_features
from semsam_model.errors import DataError
from semsam_model.inference.engine import EngineEmbedding, Model, described
from semsam_model.inference.naming import label_probabilities, with_names
from semsam_model.inference.predict import expected_iou
from semsam_model.inference.proposals import Proposals, predict_proposals
from semsam_model.inference.zoom import CropEncoder
from semsam_model.masks.clicker import innermost
from semsam_model.masks.geometry import iou
from semsam_model.network.ranker import Ranker
from semsam_model.types import Candidate, Click, LabelSet, Prompt, PromptContext

PER_LABEL, EXAMPLES = 40, 300  #: newest regions that names are learned from, of a label and in all
ALIKE = 0.3  #: the best proposal is an example of the label too from this IoU with the accepted region on
PROMPTS = 80  #: newest regions that the preference is learned from
LAYOUT = 2  #: version of a lesson's bytes; those of layout 1 are read too, lessons of any other are made anew


@dataclass(frozen=True, eq=False)
class Lesson:
    """What one accepted region teaches: the region, and the n proposals for its click. Arrays are float16, as kept."""

    label: str
    region: np.ndarray  #: (F,), of the accepted mask
    name_embedding: np.ndarray  #: (2, E), of the proposal most like it; (2, 0) for a model without names
    level: int  #: of that proposal
    proposals: np.ndarray  #: (n, ...), see `preference_vectors`
    expected: np.ndarray  #: (n,), expected IoU without a reranker
    worth: np.ndarray  #: (n,), IoU with the accepted mask, in logit cells

    @property
    def examples(self) -> list[np.ndarray]:
        """Vectors (F,) of the label: of the region as accepted, and as it was proposed."""
        best = int(self.worth.argmax())
        proposed = [self.proposals[best, : len(self.region)]] if self.worth[best] >= ALIKE else []
        return [self.region, *proposed]

    def to_bytes(self) -> bytes:
        """As stored; `from_bytes` is the inverse."""
        arrays = [np.ascontiguousarray(getattr(self, name), np.float16) for name in _ARRAYS]
        sizes = len(self.region), self.name_embedding.shape[1], *self.proposals.shape
        head = _HEAD.pack(_MAGIC, LAYOUT, self.level, *sizes)
        return head + zlib.compress(b"".join(each.tobytes() for each in arrays), 1)  # more takes longer for nothing

    @classmethod
    def from_bytes(cls, data: bytes, *, label: str) -> Lesson:
        """Raises DataError for bytes that hold no lesson, or one of another layout."""
        try:
            level, arrays = _read_npz(data) if data[:2] == b"PK" else _read(data)
        except Exception as error:
            raise DataError(f"lesson of a region labelled {label!r}: cannot be read: {error}") from error
        return cls(label, level=level, **arrays)


_ARRAYS = ("region", "name_embedding", "proposals", "expected", "worth")
_MAGIC = b"lesson"
_HEAD = struct.Struct("<6sBB4I")  #: magic, layout, level, F, E, n, values of a proposal; compressed arrays follow


def _read(data: bytes) -> tuple[int, dict[str, np.ndarray]]:
    """Level and arrays of a lesson. Raises ValueError, struct.error, zlib.error."""
    magic, layout, level, region, names, count, values = _HEAD.unpack_from(data)
    if magic != _MAGIC or layout != LAYOUT:
        raise ValueError(f"expected {_MAGIC!r} of layout {LAYOUT}, got {magic!r} of layout {layout}")
    shapes = (region,), (2, names), (count, values), (count,), (count,)
    flat = np.frombuffer(zlib.decompress(data[_HEAD.size :]), np.float16)
    parts = np.split(flat, np.cumsum([math.prod(shape) for shape in shapes])[:-1])
    return level, {name: part.reshape(shape) for name, part, shape in zip(_ARRAYS, parts, shapes, strict=True)}


def _read_npz(data: bytes) -> tuple[int, dict[str, np.ndarray]]:
    """As `_read`, of layout 1, which took five times as long to read."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        if int(arrays["layout"]) != 1:
            raise ValueError(f"layout {arrays['layout']}, expected 1")
        return int(arrays["level"]), {name: arrays[name] for name in _ARRAYS}


def make_lesson(
    model: Model,
    embedding: EngineEmbedding,
    mask: np.ndarray,
    *,
    label: str,
    click: Click | None = None,
    context: PromptContext | None = None,
    encode_crop: CropEncoder | None = None,
) -> Lesson:
    """One accepted region: bool (H, W) mask of the embedded photo, not empty.

    click: the click that the mask answers; without one, or where it lies outside the mask, the middle of the mask.
    context, encode_crop: as for the project's prompts. Raises DataError for an empty mask or one of another size.
    """
    if mask.shape != embedding.frame.photo or not mask.any():
        raise DataError(f"accepted mask: expected {embedding.frame.photo} with something in it, got {mask.shape}")
    inside = click is not None and mask[min(int(click.y), len(mask) - 1), min(int(click.x), mask.shape[1] - 1)]
    prompt = Prompt((click if inside and click is not None else innermost(mask),))
    proposals = predict_proposals(model, embedding, prompt, encode_crop=encode_crop)
    return lesson_from_proposals(proposals, mask, label=label, ranker=described(model).ranker, context=context)


def lesson_from_proposals(
    proposals: Proposals,
    mask: np.ndarray,
    *,
    label: str,
    ranker: Ranker | None = None,
    context: PromptContext | None = None,
) -> Lesson:
    """As `make_lesson`, from the proposals for a click in the mask."""
    proposals = with_region_features(proposals)
    share = proposals.embedding.frame.coverage(mask)
    masks = context_masks(proposals)
    accepted = share >= min(0.5, float(share.max()))
    worth = np.array([iou(cells, accepted) for cells in masks])
    best = int(worth.argmax())
    named = proposals.pairs[best][1].name_embedding
    return Lesson(
        label,
        region=region_features(proposals.embedding, share[None], masks)[0].astype(np.float16),
        name_embedding=(np.zeros((2, 0)) if named is None else named).astype(np.float16),
        level=proposals.levels[best],
        proposals=rerank_features(proposals).astype(np.float16),
        expected=expected_iou(proposals, ranker, context).astype(np.float16),
        worth=worth.astype(np.float16),
    )


def with_region_features(proposals: Proposals) -> Proposals:
    """The proposals with the `region` of each; those that have it come back as they are."""
    if all(p.region is not None for _, p in proposals.pairs):
        return proposals
    cells = context_masks(proposals)
    vectors = iter(region_features(proposals.embedding, np.array(cells), cells))
    crops = (
        replace(crop, proposals=tuple(replace(p, region=next(vectors)) for p in crop.proposals))
        for crop in proposals.crops
    )
    return replace(proposals, crops=tuple(crops))


def context_masks(proposals: Proposals) -> list[np.ndarray]:
    """Every proposal as bool (h, w) cells of the whole photo's frame."""
    frame = proposals.embedding.frame
    return [p.cells if crop.frame == frame else crop.frame.onto(p.logits, frame) > 0 for crop, p in proposals.pairs]


def rerank_features(proposals: Proposals) -> np.ndarray:
    """A row for each proposal, see `preference_vectors`. The proposals have their `region`."""
    return preference_vectors(np.array([p.region for _, p in proposals.pairs]), proposals.features)


class ProjectAdaptation:
    """What a project's lessons add up to: a `Reranker` for `predict_candidates`, and `name` for its candidates."""

    def __init__(self, lessons: Sequence[Lesson], preference: Preference) -> None:
        """See `adapt`."""
        # copies, as the candidates' vectors are a hundred times as large
        self._examples = [(each.label, np.array(each.examples)) for each in lessons]
        self._names: dict[tuple[object, ...], LearnedNames] = {}
        self.preference = preference
        self.examples = len(lessons)

    def rerank(
        self,
        proposals: Proposals,
        expected: np.ndarray,
        context: PromptContext | None = None,
        without_label: np.ndarray | None = None,
    ) -> tuple[Proposals, np.ndarray]:
        """See `Reranker.rerank`. With a label chosen before the prompt, what is like its examples comes first, and its
        text gives way to them.
        """
        described = with_region_features(proposals)
        if context is not None and context.labels is not None and context.wanted is not None and len(expected):
            names = self._names_of(context.labels)
            regions = np.array([p.region for _, p in described.pairs], np.float32)
            if without_label is not None:
                by_text = CHOSEN_FADING / (CHOSEN_FADING + names.counts[context.wanted])
                expected = by_text * expected + (1 - by_text) * without_label
            likeness = names.likeness(regions)[:, context.wanted]
            expected = expected - CHOSEN * (likeness.max() - likeness)
        return described, self.preference.scores(rerank_features(described), expected)

    def scores(self, candidates: Sequence[Candidate], labels: LabelSet) -> np.ndarray:
        """(m, C), each row adding up to 1. Candidates have their `region`, from `rerank`."""
        text = text_scores([c.name_embedding for c in candidates], [c.level for c in candidates], labels)
        return self._names_of(labels).scores(np.array([c.region for c in candidates], np.float32), text)

    def name(self, candidates: Sequence[Candidate], labels: LabelSet, threshold: float) -> list[Candidate]:
        """As `name_candidates`, by text and examples together."""
        if not candidates:
            return []
        scores = self.scores(candidates, labels)
        return [with_names(c, labels, row, threshold) for c, row in zip(candidates, scores, strict=True)]

    def _names_of(self, labels: LabelSet) -> LearnedNames:
        key = labels.values, labels.kinds, labels.vectors.shape[1]
        if key not in self._names:
            index = {value: i for i, value in enumerate(labels.values)}
            mine = [each for each in self._examples if each[0] in index]
            mine = [mine[i] for i in newest_of_each([label for label, _ in mine], PER_LABEL, EXAMPLES)]
            shown = [(index[label], vector) for label, vectors in mine for vector in vectors]
            self._names[key] = fit_names(
                np.array([vector for _, vector in shown], np.float32),
                np.array([label for label, _ in shown], int),
                len(labels.values),
            )
        return self._names[key]


def needed(labels: Sequence[str], known: Collection[str]) -> list[int]:
    """Which of a project's lessons `adapt` makes use of; labels: of all of them, oldest first.

    known: labels that candidates are named with; those of all the lessons, where there are none.
    """
    named = [i for i, label in enumerate(labels) if label in known or (label and not known)]
    newest = newest_of_each([labels[i] for i in named], PER_LABEL, EXAMPLES)
    return sorted({*(named[i] for i in newest), *range(max(0, len(labels) - PROMPTS), len(labels))})


def adapt(lessons: Sequence[Lesson]) -> ProjectAdaptation | None:
    """Lessons of one project and one model, oldest first -> what they teach; None without lessons."""
    if not lessons:
        return None
    newest = lessons[-PROMPTS:]
    preference = fit_preference(
        np.concatenate([each.proposals for each in newest]),
        np.concatenate([each.expected for each in newest]).astype(np.float32),
        np.concatenate([each.worth for each in newest]).astype(np.float32),
    )
    return ProjectAdaptation(lessons, preference)


def text_scores(name_embeddings: Sequence[np.ndarray | None], levels: Sequence[int], labels: LabelSet) -> np.ndarray:
    """(m, C) in the order of the labels, each row adding up to 1; all equal where masks or labels have no embeddings.

    Raises ConfigError as `label_probabilities`.
    """
    known = [each for each in name_embeddings if each is not None and each.shape[1]]
    if not known or len(known) < len(name_embeddings) or not labels.vectors.shape[1]:
        return np.full((len(name_embeddings), len(labels.values)), 1 / len(labels.values))
    return label_probabilities(np.stack(known).astype(np.float32), levels, labels)
