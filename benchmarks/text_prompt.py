"""A word -> its masks, by object queries, by a grid of clicks, and as `find` joins them, on annotated photos.

    python -m benchmarks.text_prompt DATA [--limit 16] [--sources coco ...]

DATA is a folder with SOURCE.json files. Of each photo every annotated name is asked for, objects and parts, and three
names of the source's list that nobody annotated there, but for photos that are annotated in part. A name is held
against the source's list and some general words, as the service holds it against the labels of a project. Prints gIoU
and cIoU (percent) of the union of the masks, the mean over sources and kinds, what share of the absent names was
answered and how surely, and seconds of the network on an embedded photo.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from backend.inference.label_embeddings import LabelEmbedder, LabelVectors
from backend.inference.text_prompt import competing_labels
from backend.label_studio.label_config import Label, LabelConfig
from backend.settings import Settings
from benchmarks.machine import described
from semsam_model.checkpoints.checkpoint import load_model
from semsam_model.data.folder import evenly, read_samples
from semsam_model.data.samples import Sample
from semsam_model.errors import DataError
from semsam_model.evaluation.metrics.masks import TextIou
from semsam_model.inference.object_queries import predict_object_queries
from semsam_model.inference.text_prompt import by_clicks, by_queries, grid_proposals
from semsam_model.text_encoder import GENERIC, TextEncoder, normalise_label
from semsam_model.types import Candidate, Kind

ABSENT = 3  #: names a photo that are not on it
WAYS = ("queries", "clicks", "joined")
Name = tuple[Kind, str]


@dataclass
class Tally:
    """What one way of finding answered."""

    present: dict[tuple[str, Kind], TextIou] = field(default_factory=dict)
    absent: list[float] = field(default_factory=list)  #: best score of each answer, 0 where there is none
    seconds: list[float] = field(default_factory=list)  #: of the network, a photo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--limit", type=int, default=16, help="photos a source, evenly spaced")
    parser.add_argument("--sources", nargs="*")
    arguments = parser.parse_args()
    model, version = load_model()
    threshold = Settings().name_threshold
    vectors = LabelVectors(TextEncoder(None))
    vectors.start().exception(120)
    embedder = LabelEmbedder(vectors, model.config)
    samples = read_samples(arguments.data, arguments.sources).samples
    lists: dict[str, set[Name]] = {}
    for sample in samples:
        lists.setdefault(sample.source, set()).update(_names(sample))
    tallies = {way: Tally() for way in WAYS}
    rng = np.random.default_rng(0)
    for sample in evenly(samples, arguments.limit):
        try:
            embedding = model.encode(sample.image())
            wanted = _wanted(sample)
        except DataError as error:
            print(f"skipped: {error}")
            continue
        began = time.perf_counter()
        queries = predict_object_queries(model, embedding)
        asked = time.perf_counter()
        grid = grid_proposals(model, embedding)
        tallies["clicks"].seconds.append(time.perf_counter() - asked)
        tallies["queries"].seconds.append(asked - began)
        missing = sorted(lists[sample.source] - set(wanted)) if not sample.partial else []
        chosen = rng.permutation(len(missing))[:ABSENT]
        for kind, name in [*wanted, *(missing[i] for i in chosen)]:
            others = tuple(Label(n, n, k) for k, n in sorted(lists[sample.source]) if n != name)
            labels = competing_labels(Label(name, name), LabelConfig(labels=others), embedder)
            assert labels is not None
            found = {
                "queries": by_queries(queries, embedding.frame, labels),
                "clicks": by_clicks(grid, embedding.frame, labels, threshold),
            }
            found["joined"] = found["queries"] or found["clicks"]  # as `find` does
            for way in WAYS:
                if (kind, name) in wanted:
                    ious = tallies[way].present.setdefault((sample.source, kind), TextIou())
                    ious.add(_union(found[way], (sample.height, sample.width)), wanted[kind, name])
                else:
                    tallies[way].absent.append(max((c.score for c in found[way]), default=0.0))
    _print(tallies, f"{version}, {described()}")


def _names(sample: Sample) -> list[Name]:
    regions = [r for r in sample.regions if r.name is not None and normalise_label(r.name) not in GENERIC]
    return [("part" if r.granularity == "part" else "object", normalise_label(r.name or "")) for r in regions]


def _wanted(sample: Sample) -> dict[Name, np.ndarray]:
    """Annotated name -> union of its masks."""
    found: dict[Name, np.ndarray] = {}
    for i, region in enumerate(sample.regions):
        if region.name is not None and normalise_label(region.name) not in GENERIC:
            name: Name = ("part" if region.granularity == "part" else "object", normalise_label(region.name))
            found[name] = found.get(name, np.zeros((sample.height, sample.width), bool)) | sample.mask(i)
    return {name: mask for name, mask in found.items() if mask.any()}


def _union(candidates: Sequence[Candidate], size: tuple[int, int]) -> np.ndarray:
    found = np.zeros(size, bool)
    for candidate in candidates:
        found |= candidate.mask
    return found


def _print(tallies: dict[str, Tally], title: str) -> None:
    table = Table("gIoU / cIoU", *WAYS, "names", title=title)
    rows = list(tallies[WAYS[0]].present)
    for source, kind in rows:
        figures = [tallies[way].present[source, kind].percent() for way in WAYS]
        cells = [f"{f['giou']:.1f} / {f['ciou']:.1f}" for f in figures]
        table.add_row(f"{source} {kind}s", *cells, str(figures[0]["n"]))
    percent = {way: [tallies[way].present[row].percent() for row in rows] for way in WAYS}
    means = {way: {m: np.mean([f[m] for f in percent[way]]) for m in ("giou", "ciou")} for way in WAYS}
    table.add_row("mean", *(f"{mean['giou']:.1f} / {mean['ciou']:.1f}" for mean in means.values()), "")
    absent = [np.array(tallies[way].absent) for way in WAYS]
    table.add_row(
        "absent names answered, percent", *(f"{100 * (a > 0).mean():.1f}" for a in absent), f"{len(absent[0])}"
    )
    table.add_row("best score of such an answer", *(f"{a[a > 0].mean():.2f}" if a.any() else "-" for a in absent), "")
    seconds = [f"{np.median(tallies[way].seconds):.2f}" for way in WAYS[:2]]
    table.add_row("seconds of the network, median", *seconds, "", "")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
