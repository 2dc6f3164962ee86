"""How well masks are named: every named mask is clicked once, and the best level's names are compared with its own.

The labels are those of the mask's own source and kind, as a project would list them; objects (with regions, "sky") and
parts apart. Which of the six levels is meant is given (the one with the best IoU), so that only names are measured.

    top1, top3  the right label is the first, or among the first three, of the labels of its kind
    together    the right label is the first when the source's objects and parts are in one list ("part wheel" and
                "object wheel" are two labels)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from rich.table import Table

from semsam_model.data.samples import MIN_AREA, Sample
from semsam_model.data.vocabulary import NO_LABEL, SourceLabels, Vocabulary, encode_vocabulary
from semsam_model.errors import ConfigError
from semsam_model.evaluation.encoded_photos import encode_photos, large_targets
from semsam_model.inference.naming import label_scores
from semsam_model.inference.predict import raw_levels
from semsam_model.masks.clicker import innermost
from semsam_model.masks.geometry import iou
from semsam_model.network.model import ImageEmbedding, SemanticSAM
from semsam_model.text_encoder import TextEncoder
from semsam_model.types import KINDS, LabelSet, Prompt

MEASURES = ("top1", "top3", "together")


@dataclass
class NameScores:
    """The named masks of one source and kind; one entry a mask in each list."""

    labels: int  #: how many there are to choose from
    rank: list[int] = field(default_factory=list)  #: of the right label among those of its kind, 1 = first
    together: list[bool] = field(default_factory=list)
    score: list[float] = field(default_factory=list)  #: of the first label in one list of both kinds
    iou: list[float] = field(default_factory=list)  #: of the level that was named

    def percent(self) -> dict[str, float | int]:
        """Shares in percent; `chance` is what guessing would reach as top1."""
        ranks = np.array(self.rank)
        shares = {
            "top1": ranks == 1,
            "top3": ranks <= 3,
            "together": np.array(self.together),
            "iou": np.array(self.iou),
        }
        means = {name: round(100 * float(np.mean(values)), 2) for name, values in shares.items()}
        return means | {"chance": round(100 / self.labels, 2), "n": len(ranks), "labels": self.labels}


@dataclass(frozen=True)
class NameReport:
    by_source: dict[str, dict[str, NameScores]]  #: source -> kind -> scores
    skipped: tuple[str, ...]  #: photos and masks that could not be read, and why

    def to_dict(self) -> dict[str, object]:
        """What report.json holds: percent by source and kind, the mean over sources, and what abstaining would cost."""
        by_source = {
            source: {kind: scores.percent() for kind, scores in sorted(kinds.items())}
            for source, kinds in sorted(self.by_source.items())
        }
        mean = {}
        for kind in KINDS:
            rows = [kinds[kind] for kinds in by_source.values() if kind in kinds]
            if rows:
                mean[kind] = {m: round(float(np.mean([row[m] for row in rows])), 2) for m in MEASURES}
        return {
            "by_source": by_source,
            "mean_over_sources": mean,
            "thresholds": self.thresholds(),
            "skipped": list(self.skipped),
        }

    def table(self, title: str) -> Table:
        """For the terminal: a row a source and kind."""
        table = Table("source", "kind", *MEASURES, "labels", "masks", title=title)
        for source, kinds in sorted(self.by_source.items()):
            for kind, scores in sorted(kinds.items()):
                row = scores.percent()
                table.add_row(source, kind, *(f"{row[m]:.1f}" for m in MEASURES), str(row["labels"]), str(row["n"]))
        return table

    def thresholds(self) -> list[dict[str, float]]:
        """All masks, both kinds in one list: at each threshold the share that gets a name, and how much is right."""
        every = [scores for kinds in self.by_source.values() for scores in kinds.values()]
        score = np.array([s for scores in every for s in scores.score])
        right = np.array([r for scores in every for r in scores.together], bool)
        rows = []
        for threshold in np.arange(0, 1, 0.1):
            named = score >= threshold
            if named.any():
                shares = {"named": named.mean(), "right": right[named].mean()}
                rows.append(
                    {"threshold": round(float(threshold), 1)} | {k: round(100 * float(v), 2) for k, v in shares.items()}
                )
        return rows


def evaluate_names(
    model: SemanticSAM,
    samples: Sequence[Sample],
    encoder: TextEncoder,
    *,
    lists: Sequence[Sample] | None = None,
    min_area: int = MIN_AREA,
    on_photo: Callable[[], None] = lambda: None,
) -> NameReport:
    """Click every mask of at least `min_area` pixels whose name is in its source's list; `on_photo` after each photo.

    lists: the samples that the label lists are taken from, when they are more than `samples`. Lists of a single label,
    and names that every mask could bear ("object"), are left out. A photo or mask that cannot be read is skipped and
    named. Raises ConfigError for a model without names or when nothing is named, TextEncoderError.
    """
    if model.name_head is None:
        raise ConfigError(f"model {model.config.name}: it cannot name masks, expected one trained with name_features")
    vocabulary = Vocabulary.of(samples if lists is None else lists)
    labels = SourceLabels(vocabulary, encode_vocabulary(vocabulary, encoder, model.config.text_dim).numpy())
    by_source: dict[str, dict[str, NameScores]] = {}
    skipped: list[str] = []

    def row_of(sample: Sample, index: int) -> int:
        region = sample.regions[index]
        return vocabulary.row(sample.source, region.granularity, region.name)

    def named(_: int, sample: Sample) -> list[int]:
        return [index for index in range(len(sample.regions)) if row_of(sample, index) != NO_LABEL]

    targets = partial(large_targets, min_area=min_area)
    for photo in encode_photos(model, samples, skipped, regions=named, targets=targets, on_photo=on_photo):
        source = photo.sample.source
        lists_of = [labels.of_source(source, heads, with_kind=True) for heads in ((0,), (1,), (0, 1))]
        for index in photo.targets:
            _, head, label = vocabulary.rows[row_of(photo.sample, index)]
            kinds = by_source.setdefault(source, {})
            scores = kinds.setdefault(KINDS[head], NameScores(len(lists_of[head].values)))
            _score(
                model,
                photo.look,
                photo.masks[index],
                f"{KINDS[head]} {label}",
                lists_of[head],
                lists_of[2],
                scores,
            )
    return NameReport(by_source, tuple(skipped))


def _score(
    model: SemanticSAM,
    embedding: ImageEmbedding,
    mask: np.ndarray,
    label: str,
    of_kind: LabelSet,
    of_both: LabelSet,
    scores: NameScores,
) -> None:
    """Add one mask. label: the right one, "kind label" as the lists have it."""
    levels = [(iou(c.mask, mask), c) for c in raw_levels(model, embedding, Prompt((innermost(mask),)))]
    best, candidate = max(levels, key=lambda pair: pair[0])
    assert candidate.name_embedding is not None
    ranked = [value for value, _ in label_scores(candidate.name_embedding, candidate.level, of_kind)]
    first, score = label_scores(candidate.name_embedding, candidate.level, of_both)[0]
    scores.rank.append(ranked.index(label) + 1)
    scores.together.append(first == label)
    scores.score.append(score)
    scores.iou.append(best)
