"""The regions that pre-annotation would offer on annotated photos, with their scores and what they are worth.

Each photo is asked twice: with the labels of its source, and without any label. A region is worth its IoU with the best
annotated mask of its kind that has its label, and nothing where there is none.

Two sorts of regions cannot be judged, and are left out: those of a kind that the source never annotates, and, on photos
that are annotated in part, those that lie mostly where nothing is annotated.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from semsam_model.data.samples import Sample, by_source
from semsam_model.evaluation.encoded_photos import EncodedPhoto, encode_photos
from semsam_model.evaluation.labels import LabelKey, LabelList, key_of, labels_of
from semsam_model.inference.object_queries import Embed, ObjectQueries, predict_object_queries
from semsam_model.inference.preannotate import Region, RegionOptions, queries_to_regions
from semsam_model.masks.geometry import crop_iou
from semsam_model.network.model import ImageEmbedding, SemanticSAM
from semsam_model.types import Kind, Label, LabelSet

#: All that could be offered at any threshold worth setting.
EVERY = RegionOptions(least=0.02, most=200)
ANNOTATED = 0.5  #: least share of a region that annotated masks cover, on photos annotated in part


@dataclass(frozen=True)
class OfferedRegion:
    """One region of one photo."""

    photo: int  #: index among the samples given
    source: str
    kind: Kind
    named: bool  #: whether labels were given
    score: float  #: 0..1, as the network says it, not calibrated
    iou: float  #: 0..1, what it is worth


def offered_regions(
    model: SemanticSAM,
    samples: Sequence[Sample],
    embed: Embed,
    *,
    labels: Mapping[str, Collection[Label]] | None = None,
    skipped: list[str] | None = None,
    predict: Callable[[SemanticSAM, ImageEmbedding], ObjectQueries] = predict_object_queries,
    on_photo: Callable[[], None] = lambda: None,
) -> list[OfferedRegion]:
    """Regions of every photo, best first; `on_photo` is called after each.

    labels: the list of each source; what the samples are called when None. skipped: gets a line for each photo or mask
    that cannot be read. predict: where the object queries come from. Raises ConfigError for a model without them.
    """
    lists = {name: LabelList.of(found, embed) for name, found in (labels or labels_of(samples)).items()}
    kinds = {
        source: {kind_of(r.granularity) for s in of for r in s.regions} for source, of in by_source(samples).items()
    }
    found: list[OfferedRegion] = []
    problems: list[str] = [] if skipped is None else skipped
    for photo in encode_photos(model, samples, problems, without_targets=True, on_photo=on_photo):
        source = photo.sample.source
        found += _of_photo(predict(model, photo.look), photo, lists.get(source), kinds[source])
    return found


def kind_of(granularity: str) -> Kind:
    """The kind that masks of a granularity are offered as: regions ("sky") are objects."""
    return "part" if granularity == "part" else "object"


def _of_photo(
    queries: ObjectQueries, photo: EncodedPhoto, listed: LabelList | None, kinds: Collection[Kind]
) -> Iterator[OfferedRegion]:
    frame, annotated = photo.look.frame, photo.sample.regions
    covered = np.logical_or.reduce([np.zeros(frame.photo, bool), *photo.masks.values()])
    for names in (None, _names(listed)):
        if names is not None and not names.values:
            continue
        for region in queries_to_regions(queries, frame, names, EVERY):
            if region.kind not in kinds or (photo.sample.partial and _share(region, covered) < ANNOTATED):
                continue
            right = [
                photo.masks[i]
                for i, other in enumerate(annotated)
                if kind_of(other.granularity) == region.kind
                and (names is None or _value(key_of(other.label)) == region.candidate.label)
            ]
            candidate = region.candidate
            iou = max((crop_iou(candidate.crop, candidate.bbox, mask) for mask in right), default=0.0)
            yield OfferedRegion(
                photo.number, photo.sample.source, region.kind, names is not None, candidate.score, float(iou)
            )


def _names(listed: LabelList | None) -> LabelSet | None:
    """The names of a list, those that are objects and parts twice; parts of several wholes once."""
    if listed is None:
        return LabelSet((), (), np.zeros((0, 1), np.float32))
    first = {(key.kind, key.name): i for i, key in reversed(list(enumerate(listed.keys)))}
    rows = sorted(first.values())
    return LabelSet(
        tuple(str(_value(listed.keys[i])) for i in rows),
        tuple(listed.keys[i].kind for i in rows),
        listed.vectors[rows],
    )


def _value(key: LabelKey | None) -> str | None:
    return None if key is None else f"{key.kind} {key.name}"


def _share(region: Region, covered: np.ndarray) -> float:
    """Of a region's pixels those inside `covered`, bool (H, W) of the photo."""
    candidate = region.candidate
    x0, y0, x1, y1 = candidate.bbox
    return float(np.count_nonzero(candidate.crop & covered[y0:y1, x0:x1]) / max(candidate.area, 1))
