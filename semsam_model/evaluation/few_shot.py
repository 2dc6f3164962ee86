"""How names get better with examples: k accepted regions of each label, then the masks of other photos.

Masks are given; only the name is measured. The text scores are those of the level with the best IoU under a
click in the middle of the mask. A draw takes k regions of each label at random; figures are means over the draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from semsam_model.adaptation.kernel_ridge import fit_names
from semsam_model.adaptation.lessons import Lesson, make_lesson, text_scores
from semsam_model.data.samples import Region, Sample
from semsam_model.data.vocabulary import HEAD_OF
from semsam_model.errors import DataError
from semsam_model.evaluation.encoded_photos import encode_photos, large_targets
from semsam_model.network.model import SemanticSAM
from semsam_model.text_encoder import GENERIC, TextEncoder, normalise_label
from semsam_model.types import KINDS, LabelSet

EXAMPLES = (0, 1, 5, 20)
DRAWS = 6
POOL = 40  #: regions of a label, at random, that the draws take theirs from


@dataclass(frozen=True, eq=False)
class NamedRegions:
    """Regions of one source as lessons, with their labels."""

    labels: LabelSet  #: of the source; values are "kind label"
    lessons: tuple[Lesson, ...]
    skipped: tuple[str, ...] = ()

    @property
    def rows(self) -> np.ndarray:
        """Index of each region's label."""
        return np.array([self.labels.values.index(each.label) for each in self.lessons], int)


def label_set(samples: Sequence[Sample], encoder: TextEncoder) -> LabelSet:
    """Every label of one source, objects and parts in one list. Raises DataError for fewer than two."""
    found = {region_label(region) for sample in samples for region in sample.regions}
    values = sorted(value for value in found if value is not None)
    if len(values) < 2:
        raise DataError(f"names: expected at least two labels, got {values}")
    kinds = tuple(KINDS[value.startswith(KINDS[1])] for value in values)
    vectors = encoder.embed([value.split(" ", 1)[1] for value in values]).numpy()
    return LabelSet(tuple(values), kinds, vectors)


def region_label(region: Region) -> str | None:
    """ "part wheel"; None for a region without a name, and for names that any mask could have."""
    name = normalise_label(region.name) if region.name is not None else ""
    return None if not name or name in GENERIC else f"{KINDS[HEAD_OF[region.granularity]]} {name}"


def named_regions(
    model: SemanticSAM,
    samples: Sequence[Sample],
    labels: LabelSet,
    *,
    most: int | None = None,
    seed: int = 0,
    on_photo: Callable[[], None] = lambda: None,
) -> NamedRegions:
    """The regions of one source whose label is in the list, at most `most` of a label, drawn at random by the seed.

    `on_photo` is called for every sample. A photo or mask that cannot be read is skipped and named.
    """
    found: dict[str, list[tuple[int, int]]] = {}
    for s, sample in enumerate(samples):
        for r, region in enumerate(sample.regions):
            value = region_label(region)
            if value in labels.values:
                found.setdefault(str(value), []).append((s, r))
    rng = np.random.default_rng(seed)
    chosen: dict[int, dict[int, str]] = {}
    for value in sorted(found):
        places = found[value]
        for i in sorted(rng.permutation(len(places))[:most]):
            chosen.setdefault(places[i][0], {})[places[i][1]] = value
    lessons, skipped = [], list[str]()

    def drawn(number: int, _: Sample) -> Iterable[int]:
        return chosen.get(number, ())

    for photo in encode_photos(model, samples, skipped, regions=drawn, targets=large_targets, on_photo=on_photo):
        for r in photo.targets:
            lessons.append(make_lesson(model, photo.embedding, photo.masks[r], label=chosen[photo.number][r]))
    return NamedRegions(labels, tuple(lessons), tuple(skipped))


def few_shot_ranks(
    examples: NamedRegions, to_name: NamedRegions, k: int, *, draws: int = DRAWS, seed: int = 0
) -> np.ndarray:
    """int (draws, n, 2): rank of the right label, 1 = first, among those of its kind and among all.

    Labels with fewer than k examples give what they have. Both have the same labels.
    """
    labels, right = to_name.labels, to_name.rows
    of_kind = np.array([[own == kind for own in labels.kinds] for kind in labels.kinds])[right]
    vectors, texts = _vectors(to_name), _texts(to_name)
    known, known_vectors = examples.rows, _vectors(examples)
    ranks = []
    for draw in range(draws if k else 1):
        rng = np.random.default_rng((seed, draw))
        by_label = [rng.permutation(np.flatnonzero(known == i))[:k] for i in range(len(labels.values))]
        drawn = np.sort(np.concatenate(by_label)).astype(int)
        learned = fit_names(known_vectors[drawn], known[drawn], len(labels.values))
        scores = learned.scores(vectors, texts)
        before = scores > scores[np.arange(len(right)), right][:, None]
        ranks.append(np.stack([1 + (before & of_kind).sum(1), 1 + before.sum(1)], 1))
    return np.array(ranks)


def _vectors(regions: NamedRegions) -> np.ndarray:
    return np.array([each.region for each in regions.lessons], np.float32)


def _texts(regions: NamedRegions) -> np.ndarray:
    lessons = regions.lessons
    return text_scores([each.name_embedding for each in lessons], [each.level for each in lessons], regions.labels)


def few_shot_curve(
    model: SemanticSAM,
    to_name: Sequence[Sample],
    encoder: TextEncoder,
    *,
    examples: Sequence[Sample] | None = None,
    counts: Sequence[int] = EXAMPLES,
    draws: int = DRAWS,
    seed: int = 0,
    on_photo: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, dict[str, float | int]]]:
    """One source: kind ("object", "part", "together") -> str(k) -> top1, top3 in percent, n masks.

    examples: other photos of the same source. None: the photos are cut in two halves, each the examples
    of the other. "together": one list of both kinds. Raises DataError where nothing is named, TextEncoderError.
    """
    labels = label_set([*to_name, *(examples or ())], encoder)
    if examples is not None:
        known = named_regions(model, examples, labels, most=POOL, seed=seed, on_photo=on_photo)
        pairs = [(known, named_regions(model, to_name, labels, on_photo=on_photo))]
    else:
        halves = [named_regions(model, to_name[start::2], labels, on_photo=on_photo) for start in (0, 1)]
        pairs = [(halves[1], halves[0]), (halves[0], halves[1])]
        pairs = [pair for pair in pairs if pair[0].lessons and pair[1].lessons]
    curve: dict[str, dict[str, dict[str, float | int]]] = {}
    for k in counts:
        for kind, ranks in _ranks_by_kind(pairs, labels, k, draws, seed).items():
            if ranks.size:
                curve.setdefault(kind, {})[str(k)] = {
                    "top1": round(100 * float((ranks == 1).mean()), 2),
                    "top3": round(100 * float((ranks <= 3).mean()), 2),
                    "spread": round(100 * float((ranks == 1).mean(1).std()), 2),
                    "n": ranks.shape[1],
                }
    return curve


def _ranks_by_kind(
    pairs: Sequence[tuple[NamedRegions, NamedRegions]], labels: LabelSet, k: int, draws: int, seed: int
) -> dict[str, np.ndarray]:
    """Kind or "together" -> int (draws, n) ranks of the right label. pairs: examples, and the regions to name."""
    found: dict[str, list[np.ndarray]] = {}
    for known, to_name in pairs:
        ranks = few_shot_ranks(known, to_name, k, draws=draws, seed=seed)
        kinds = np.array([labels.kinds[row] for row in to_name.rows])
        ranks = np.broadcast_to(ranks, (draws, *ranks.shape[1:]))  # without examples there is one draw
        for kind in KINDS:
            if labels.kinds.count(kind) > 1:
                found.setdefault(kind, []).append(ranks[:, kinds == kind, 0])
        found.setdefault("together", []).append(ranks[:, :, 1])
    return {kind: np.concatenate(parts, 1) for kind, parts in found.items()}


def few_shot_table(curves: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float | int]]]], title: str) -> Table:
    """For the terminal: source -> what `few_shot_curve` gives; top-1 / top-3 by number of examples."""
    counts = sorted({int(k) for kinds in curves.values() for by_k in kinds.values() for k in by_k})
    table = Table("source", "kind", *(f"k = {k}" for k in counts), "masks", title=title)
    for source, kinds in sorted(curves.items()):
        for kind, by_k in kinds.items():
            cells = [f"{by_k[str(k)]['top1']:.1f} / {by_k[str(k)]['top3']:.1f}" for k in counts]
            table.add_row(source, kind, *cells, str(by_k[str(counts[0])]["n"]))
    return table
