"""A whole photo as a set of regions that can be accepted as they are: objects that do not overlap, parts that do not.

Each mask is an object or a part, whichever its query scores higher. Of two masks of one kind that share pixels, the
better one keeps them; the rest of the other stays a region if it is most of its mask. A part belongs to the object that
holds it. A part that is nearly all of its object would be the same region twice: the better of the two stays.

Weights that hold a calibration (`network.query_calibration`) give scores that are what they say, the expected IoU with
an annotated mask of that kind and label, and the score below which nothing is offered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from semsam_model.inference.candidates import CandidateOptions
from semsam_model.inference.engine import EngineEmbedding, Model, described, description_of
from semsam_model.inference.object_queries import INSIDE, ObjectQueries, predict_object_queries, queries_to_candidates
from semsam_model.inference.postprocess import COLUMNS, PostprocessOptions
from semsam_model.inference.reasked import redrawn
from semsam_model.masks.geometry import clean_pixels, crop_mask, crops_iou, shared_pixels
from semsam_model.network.frame import Frame
from semsam_model.network.query_calibration import Curve, QueryCalibration
from semsam_model.types import KINDS, Candidate, Kind, LabelSet

#: Score below which a mask is no region, by weights without a calibration.
UNCALIBRATED_LEAST = 0.08
#: An object and a part with a larger IoU are one region.
SAME_REGION = 0.85


@dataclass(frozen=True)
class RegionOptions:
    """Which regions are wanted."""

    least: float | None = None  #: score below which a mask is no region; None: as the weights have it
    most: int = 50  #: regions for one photo, the surest
    kind: Kind | None = None  #: only regions of this kind


@dataclass(frozen=True, eq=False)
class Region:
    """A mask, named where there are labels, and what it is. Ranks and parents are those of the whole list."""

    candidate: Candidate
    kind: Kind


def preannotate(
    model: Model, embedding: EngineEmbedding, labels: LabelSet | None, options: RegionOptions | None = None
) -> list[Region]:
    """The regions of an embedded photo, best first, in photo pixels: found by the describer, drawn by the engine.

    labels: None: every region is unnamed. Raises ConfigError for a model without object queries, and
    when the label vectors are not of the model's dimension.
    """
    options, answering = options or RegionOptions(), described(model)
    look, network = description_of(embedding), answering.describer
    queries = predict_object_queries(network, look)
    regions = queries_to_regions(queries, look.frame, labels, options, network.query_calibration)
    if answering.alone:
        return regions
    masks = redrawn(answering, embedding, [region.candidate for region in regions])
    drawn = [Region(mask, region.kind) for mask, region in zip(masks, regions, strict=True)]
    return linked(apart(drawn, PostprocessOptions.visible))


def least_score(calibration: QueryCalibration | None, options: RegionOptions) -> float:
    """The score, calibrated where there is a calibration, below which a mask is no region."""
    if options.least is not None:
        return options.least
    return UNCALIBRATED_LEAST if calibration is None else calibration.threshold


def queries_to_regions(
    queries: ObjectQueries,
    frame: Frame,
    labels: LabelSet | None,
    options: RegionOptions | None = None,
    calibration: QueryCalibration | None = None,
) -> list[Region]:
    """As `preannotate`, from object queries. calibration: of the network that they are of."""
    options = options or RegionOptions()
    every = len(queries.logits) * (len(labels.values) if labels else 1)
    least = least_score(calibration, options)
    is_part = _are_parts(queries, labels)
    found = []
    for group, mine in zip(KINDS, (~is_part, is_part), strict=True):
        if options.kind in (None, group) and mine.any():
            curve = None if calibration is None else calibration.curves[group, labels is not None]
            read = PostprocessOptions(most=every, least=least if curve is None else curve.inverse(least))
            candidates = queries_to_candidates(_only(queries, mine), frame, labels, group, read)
            found += [
                Region(candidate if curve is None else _calibrated(candidate, curve), group) for candidate in candidates
            ]
    return linked(apart(found, PostprocessOptions.visible)[: options.most])


def _calibrated(candidate: Candidate, curve: Curve) -> Candidate:
    """The candidate with its score, and those of its names, as expected IoU."""
    score, *of_names = curve(np.array([candidate.score, *(score for _, score in candidate.names)])).tolist()
    names = tuple((name, of) for (name, _), of in zip(candidate.names, of_names, strict=True))
    return replace(candidate, score=score, names=names)


def apart(regions: Sequence[Region], visible: float) -> list[Region]:
    """The regions without the pixels that better ones of their kind cover; best first, objects before equal parts.

    Left out is what keeps less than `visible` of its mask, and what is nearly a better region of the other kind.
    """
    taken: dict[Kind, np.ndarray] = {}
    kept: list[Region] = []
    order = sorted(regions, key=lambda r: (-r.candidate.score, KINDS.index(r.kind), r.candidate.rank))
    for kind, candidate in ((region.kind, region.candidate) for region in order):
        if not candidate.area:
            continue
        mine = taken.setdefault(kind, np.zeros(candidate.size, bool))
        free = _free(candidate, candidate.crop, candidate.bbox, mine)
        least = CandidateOptions().min_region / (640 * 640) * mine.size
        cleaned = clean_pixels(free.crop, free.bbox, least)
        free = _free(candidate, *cleaned, mine)  # a pinhole that was filled may be another's
        if not free.area or free.area < visible * candidate.area:
            continue
        others = (other.candidate for other in kept if other.kind != kind)
        if any(crops_iou(free.crop, free.bbox, other.crop, other.bbox) > SAME_REGION for other in others):
            continue
        x0, y0, x1, y1 = free.bbox
        mine[y0:y1, x0:x1] |= free.crop
        kept.append(Region(free, kind))
    return kept


def _free(candidate: Candidate, crop: np.ndarray, bbox: tuple[int, int, int, int], taken: np.ndarray) -> Candidate:
    """The candidate with this mask, less the pixels that are taken."""
    x0, y0, x1, y1 = bbox
    left, tight = crop_mask(crop & ~taken[y0:y1, x0:x1], (x0, y0))
    return replace(candidate, crop=left, bbox=tight)


def _are_parts(queries: ObjectQueries, labels: LabelSet | None) -> np.ndarray:
    """bool (Q,): whether the part head scores higher than the object head."""
    sure = np.stack([queries.kinds[:, COLUMNS[kind]].max(1) for kind in KINDS], 1)
    if labels is not None:
        sure = sure * queries.classify(labels).names.max(2)
    return np.asarray(sure[:, 1] > sure[:, 0])


def _only(queries: ObjectQueries, mine: np.ndarray) -> ObjectQueries:
    return replace(
        queries,
        logits=queries.logits[mine],
        kinds=queries.kinds[mine],
        embeddings=queries.embeddings[mine],
        tokens=queries.tokens[mine],
        levels=queries.levels[mine],
        predicted_iou=queries.predicted_iou[mine],
    )


def linked(regions: Sequence[Region]) -> list[Region]:
    """Ranked in this order; each part with the object that holds most of it, if it holds `INSIDE` of it."""
    objects = {i + 1: r.candidate for i, r in enumerate(regions) if r.kind == "object"}
    linked = []
    for i, region in enumerate(regions):
        parent = None
        if region.kind == "part":
            part = region.candidate
            shares = {
                rank: shared_pixels(part.crop, part.bbox, whole.crop, whole.bbox) / part.area
                for rank, whole in objects.items()
            }
            parent = max(shares, key=lambda rank: shares[rank], default=None)
            parent = parent if parent is not None and shares[parent] >= INSIDE else None
        linked.append(Region(replace(region.candidate, rank=i + 1, parent=parent), region.kind))
    return linked
