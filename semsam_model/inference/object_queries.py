"""A whole photo without a click: object queries of an embedded photo, classified by labels -> named candidates.

queries = predict_object_queries(model, embedding)                  # the network, once
queries_to_candidates(queries, embedding.frame, labels)             # named candidates, parents linked
candidates_by_word(queries, embedding.frame, ("car", "wheel of car"), embed)
to_panoptic(queries.classify(labels), stuff, enlarge=embedding.frame.enlarge)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from semsam_model.inference.candidates import CandidateOptions, Proposal, cleaned, stability
from semsam_model.inference.naming import part_and_whole
from semsam_model.inference.postprocess import (
    ClassifiedQueries,
    PostprocessOptions,
    query_label_probabilities,
    to_instances,
)
from semsam_model.inference.predict import promptless_candidates
from semsam_model.masks.geometry import mask_rows
from semsam_model.network.frame import LOGIT_STRIDE, Frame
from semsam_model.network.model import ImageEmbedding, SemanticSAM
from semsam_model.network.object_queries import query_logits, query_scores
from semsam_model.network.pixel_decoder import Features
from semsam_model.types import KINDS, Candidate, Kind, LabelSet, level_tokens

#: Labels -> float32 (n, E), unit length; `TextEncoder.embed` as an array.
Embed = Callable[[Sequence[str]], np.ndarray]
#: IoU from which on queries of two looks at a photo mean the same, and what finding a thing once is worth:
#: docs/results/training-log.md, "A second look in the mirror"
SAME_THING, FOUND_ONCE = 0.6, 0.5
INSIDE = 0.7  #: a part lies in its whole by at least this share of its mask


@dataclass(frozen=True, eq=False)
class ObjectQueries:
    """The object queries of one photo, which any list of labels can classify."""

    logits: np.ndarray  #: float32 (Q, h, w), stride 4 of the unpadded model frame
    kinds: np.ndarray  #: float32 (Q, 3), expected IoU with an annotated object, part, region, 0..1
    embeddings: np.ndarray  #: float32 (Q, 2, E), as Candidate.name_embedding
    none: np.ndarray  #: float32 (2,), logits of "none of these labels"
    tokens: np.ndarray  #: int (Q,), level token of the click that proposed the mask
    levels: np.ndarray  #: int (Q,), 1..6, of that token
    predicted_iou: np.ndarray  #: float32 (Q,), of that click

    def classify(self, labels: LabelSet) -> ClassifiedQueries:
        """Raises ConfigError when the label vectors are not of the model's dimension."""
        return ClassifiedQueries(
            self.logits, self.kinds, query_label_probabilities(self.embeddings, self.none, labels), labels.kinds
        )


@torch.inference_mode()
def predict_object_queries(model: SemanticSAM, embedding: ImageEmbedding) -> ObjectQueries:
    """Of the photo, and where the config has `generic_mirrored` of its mirror image too, see `joined`.

    Raises ConfigError for a model without object queries.
    """
    queries = _read(model, model.query_features(embedding.features), embedding.frame)
    return _with_mirrored(model, embedding.frame, embedding.pixels, queries)


@torch.inference_mode()
def predict_object_queries_of_resized(model: SemanticSAM, frame: Frame, resized: np.ndarray) -> ObjectQueries:
    """The same from what `Frame.resize` made of a photo, uint8 (h, w, 3).

    Faster than an embedding, which only clicks need.
    """
    queries = _read(model, model.query_features_of_resized(frame, resized), frame)
    return _with_mirrored(model, frame, resized, queries)


def _with_mirrored(
    model: SemanticSAM, frame: Frame, resized: np.ndarray | None, queries: ObjectQueries
) -> ObjectQueries:
    """resized: the whole photo; None for a window of it, which is looked at once."""
    if resized is None or not model.config.generic_mirrored:
        return queries
    turned = np.ascontiguousarray(resized[:, ::-1])
    mirrored = _read(model, model.query_features_of_resized(frame, turned), frame)
    return joined(queries, replace(mirrored, logits=np.ascontiguousarray(mirrored.logits[:, :, ::-1])))


def joined(queries: ObjectQueries, others: ObjectQueries) -> ObjectQueries:
    """Object queries of two looks at one photo, both in its frame.

    A pair with an IoU of SAME_THING, one to one, becomes one query: mean logits, expected IoU and class embedding.
    What one look alone has found is less sure: its expected IoU times FOUND_ONCE.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import; most services start without a photo to segment

    ours, theirs = mask_rows(queries.logits > 0), mask_rows(others.logits > 0)
    both = ours @ theirs.T
    iou = both / np.maximum(ours.sum(1)[:, None] + theirs.sum(1) - both, 1)
    first, second = linear_sum_assignment(np.where(iou >= SAME_THING, iou, 0), maximize=True)
    same = iou[first, second] >= SAME_THING
    first, second = first[same], second[same]
    alone = np.setdiff1d(np.arange(len(ours)), first), np.setdiff1d(np.arange(len(theirs)), second)
    total = queries.embeddings[first] + others.embeddings[second]
    scale = np.linalg.norm(queries.embeddings[first], axis=2) / np.maximum(np.linalg.norm(total, axis=2), 1e-6)

    def put(middle: np.ndarray, name: str, share: float = 1.0) -> np.ndarray:
        rest = [share * getattr(of, name)[rows] for of, rows in zip((queries, others), alone, strict=True)]
        return np.concatenate((middle, *rest)).astype(getattr(queries, name).dtype)

    return ObjectQueries(
        put((queries.logits[first] + others.logits[second]) / 2, "logits"),
        put((queries.kinds[first] + others.kinds[second]) / 2, "kinds", FOUND_ONCE),
        put(total * scale[..., None], "embeddings"),
        queries.none,
        put(queries.tokens[first], "tokens"),
        put(queries.levels[first], "levels"),
        put(queries.predicted_iou[first], "predicted_iou"),
    )


def _read(model: SemanticSAM, features: Features, frame: Frame) -> ObjectQueries:
    output = model.object_queries(features, 0)
    assert model.generic is not None
    h, w = frame.logits
    logits = query_logits(output, features.mask_features[0])
    names = torch.stack((output.object_embedding, output.part_embedding), 1).float()
    embeddings = F.normalize(names, dim=-1) * model.name_scales().float()[:, None]
    by_level = level_tokens(model.config.tokens)
    tokens = (output.chosen % len(by_level)).cpu().numpy()
    return ObjectQueries(
        logits[:, :h, :w].cpu().numpy(),
        query_scores(output, logits).sigmoid().cpu().numpy(),
        embeddings.cpu().numpy(),
        model.generic.none.float().cpu().numpy(),
        tokens,
        np.argsort(by_level)[tokens] + 1,
        output.proposals.predicted_iou[output.chosen].float().cpu().numpy(),
    )


def queries_to_candidates(
    queries: ObjectQueries,
    frame: Frame,
    labels: LabelSet | None = None,
    kind: Kind | None = None,
    options: PostprocessOptions | None = None,
) -> list[Candidate]:
    """Masks in photo pixels, best first, parents linked; each with its names, best first, and the best as `label`.

    labels: None: masks of any object, part or region, unnamed. kind: only labels of this kind, or without one.
    Raises ConfigError as `ObjectQueries.classify`.
    """
    if labels is None:
        return classified_to_candidates(
            queries, frame, _unnamed(queries.logits, queries.kinds, kind), ("",), kind, options
        )
    return classified_to_candidates(queries, frame, queries.classify(labels), labels.values, kind, options)


def classified_to_candidates(
    queries: ObjectQueries,
    frame: Frame,
    classified: ClassifiedQueries,
    values: Sequence[str],
    kind: Kind | None = None,
    options: PostprocessOptions | None = None,
) -> list[Candidate]:
    """As `queries_to_candidates`, for queries that are classified already. values: the text of each label."""
    names: dict[int, list[tuple[str, float]]] = {}
    for instance in to_instances(classified, kind, options):
        names.setdefault(instance.query, []).append((values[instance.label], instance.score))
    return _drawn(queries, frame, list(names.items()))


def candidates_by_word(
    queries: ObjectQueries, frame: Frame, words: Sequence[str], embed: Embed, options: PostprocessOptions | None = None
) -> dict[str, list[Candidate]]:
    """The masks of each word, best first. Words do not compete with each other.

    "car" is looked for as an object and as a part. "wheel of car" is the part "wheel" inside a "car", and scores as the
    product of both.
    """
    found = {}
    for word in words:
        name, whole = part_and_whole(word) or (word, None)
        found[word] = candidates_of_label(queries, frame, word, word_scores(queries, name, whole, embed), options)
    return found


def word_scores(queries: ObjectQueries, name: str, whole: str | None, embed: Embed) -> np.ndarray:
    """(Q,) scores of a name, or of a part inside a whole. Raises ConfigError as `ObjectQueries.classify`."""
    scores = single_label_scores(queries, LabelSet((name,), ("part" if whole else None,), embed([name])))
    if whole:
        wholes = single_label_scores(queries, LabelSet((whole,), ("object",), embed([whole])))
        scores = scores * containing_scores(queries, wholes[:, None])[:, 0]
    return scores


def single_label_scores(queries: ObjectQueries, label: LabelSet) -> np.ndarray:
    """(Q,) scores of one label whose only competitor is "none of these". Raises as `ObjectQueries.classify`."""
    return queries.classify(label).scores[:, 0]


def containing_scores(queries: ObjectQueries, wholes: np.ndarray) -> np.ndarray:
    """wholes (Q, W): scores of each query for W labels -> (Q, W): the best score of another query that holds the mask.

    0 where no query holds it.
    """
    holds = _shares_inside(queries.logits > 0) >= INSIDE
    best = [np.where(holds, scores[None], 0).max(1, initial=0) for scores in wholes.T]
    return np.stack(best, 1) if best else np.zeros_like(wholes)


def classify_parts(
    queries: ObjectQueries, names: LabelSet, wholes: LabelSet, pairs: Sequence[tuple[int, int | None]]
) -> ClassifiedQueries:
    """Queries classified by names, some of which are parts of a whole: "wheel" of "car".

    pairs: for each label an index into `names` and, for a part of a whole, one into `wholes`. Names compete with each
    other, and so do wholes; a part of a whole scores as in `candidates_by_word`.
    Raises ConfigError as `ObjectQueries.classify`.
    """
    probabilities = queries.classify(names).names[:, :, [name for name, _ in pairs]]
    if any(whole is not None for _, whole in pairs):
        held = containing_scores(queries, queries.classify(wholes).scores)
        for column, (_, whole) in enumerate(pairs):
            if whole is not None:
                probabilities[:, KINDS.index("part"), column] *= held[:, whole]
    return ClassifiedQueries(
        queries.logits, queries.kinds, probabilities, tuple(names.kinds[name] for name, _ in pairs)
    )


def candidates_of_label(
    queries: ObjectQueries, frame: Frame, word: str, scores: np.ndarray, options: PostprocessOptions | None = None
) -> list[Candidate]:
    """The distinct masks of one label, best first. scores (Q,): of the label."""
    classified = _unnamed(queries.logits, np.repeat(scores[:, None], queries.kinds.shape[1], 1), None)
    instances = to_instances(classified, None, options)
    return _drawn(queries, frame, [(i.query, [(word, i.score)]) for i in instances])


def _unnamed(logits: np.ndarray, kinds: np.ndarray, kind: Kind | None) -> ClassifiedQueries:
    """Queries with one label that fits all of them."""
    return ClassifiedQueries(logits, kinds, np.ones((len(logits), 2, 1), np.float32), (kind,))


def _shares_inside(masks: np.ndarray) -> np.ndarray:
    """bool (Q, h, w) -> (Q, Q): share of mask i that lies in mask j; 0 for itself."""
    flat = mask_rows(masks)
    inside = flat @ flat.T / np.maximum(flat.sum(1), 1)[:, None]
    np.fill_diagonal(inside, 0)
    return inside


def _drawn(
    queries: ObjectQueries, frame: Frame, chosen: Sequence[tuple[int, list[tuple[str, float]]]]
) -> list[Candidate]:
    """chosen: queries, best first, each with its names, best first; an empty name is none."""
    options = CandidateOptions(same_iou=1.0, most=len(chosen))
    proposals = []
    for query, names in chosen:
        proposal = Proposal(
            queries.logits[query],
            int(queries.tokens[query]),
            int(queries.levels[query]),
            float(queries.predicted_iou[query]),
            stability(queries.logits[query]),
            score=names[0][1],
            name_embedding=queries.embeddings[query],
            names=tuple(n for n in names if n[0]),
            label=names[0][0] or None,
        )
        proposals.append(cleaned(proposal, options.min_region / LOGIT_STRIDE**2))
    return promptless_candidates(proposals, frame, options)
