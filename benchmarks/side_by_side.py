"""Random clicks answered by two weights files: a picture of them all, and their IoU.

    python -m benchmarks.side_by_side DATA A.safetensors B.safetensors --out OUT [--clicks 24] [--seed 0] [--named]

DATA is a folder with SOURCE.json files of annotated photos. Clicks are drawn, not chosen: a source, one of its photos,
one of that photo's masks (at least 64 pixels, outline drawn by somebody), each with equal chances; the same seed draws
the same ones, whatever the weights. Sources are those of a group of --groups; where there are fewer than clicks, some
come twice. The mask is clicked once, at the point farthest from its border. Nothing else is known of it or, with
--named, the labels of its source are, and its own is chosen before the click (see `semsam evaluate clicks`, `named`).

OUT/side_by_side.png: of the group `shown`, a pair of photos for each click, A left and B right: wanted mask green, mask
ranked first orange, with its IoU and, behind a stroke, that of the best of the offered ones.
OUT/side_by_side.md: the same figures as tables, for the groups `shown` and `unseen`.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from semsam_model.checkpoints.checkpoint import load
from semsam_model.data.folder import read_samples
from semsam_model.data.samples import Sample, by_source, clickable
from semsam_model.data.vocabulary import SourceLabels
from semsam_model.evaluation.clicks import chosen_label
from semsam_model.evaluation.groups import read_groups
from semsam_model.inference.predict import predict_candidates
from semsam_model.inference.zoom import crop_encoder
from semsam_model.masks.clicker import innermost
from semsam_model.masks.drawing import draw_comparison, scaled
from semsam_model.masks.geometry import crop_iou
from semsam_model.network.model import SemanticSAM
from semsam_model.text_encoder import TextEncoder
from semsam_model.types import Prompt, PromptContext

GROUPS = Path(__file__).parent.parent / "configs" / "groups" / "side_by_side.yaml"
SIDE, GAP, LINE = 220, 6, 28  #: pixels of a photo, between photos, of the text below
PAIRS = 4  #: in a row
MOST_BYTES = 1_500_000


@dataclass(frozen=True, eq=False)
class DrawnClick:
    """One mask of one photo."""

    sample: Sample
    region: int

    @property
    def name(self) -> str:
        region = self.sample.regions[self.region]
        return f"{self.sample.source}: {region.name or region.granularity}"


@dataclass(frozen=True, eq=False)
class Answer:
    """What one weights file offers for a click. IoU with the wanted mask, percent."""

    first: float
    best: float
    picture: np.ndarray  #: uint8 (h, w, 3)


def draw_clicks(samples: Sequence[Sample], count: int, seed: int) -> list[DrawnClick]:
    """`count` masks, see the module's first lines; no source again before every other has had its turn."""
    rng, of_source = np.random.default_rng(seed), by_source(samples)
    names = sorted(of_source)
    turns = [names[i] for _ in range(-(-count // len(names))) for i in rng.permutation(len(names))]
    drawn: list[DrawnClick] = []
    for name in turns[:count]:
        while True:
            sample = of_source[name][int(rng.integers(len(of_source[name])))]
            regions = clickable(sample.regions, sample.masks())
            if regions:
                break
        drawn.append(DrawnClick(sample, int(rng.choice(regions))))
    return drawn


def label_contexts(samples: Sequence[Sample], clicks: Sequence[DrawnClick], model: SemanticSAM) -> list[PromptContext]:
    """What is known where the labels of the source are given and the mask's own is chosen."""
    labels = SourceLabels.of(samples, TextEncoder(), model.config.text_dim)
    return [chosen_label(labels, click.sample.source, click.sample.regions[click.region]) for click in clicks]


def answer(model: SemanticSAM, click: DrawnClick, context: PromptContext) -> Answer:
    rgb, wanted = click.sample.image(), click.sample.mask(click.region)
    at = innermost(wanted)
    crop = crop_encoder(model, rgb)
    found = predict_candidates(model, model.encode(rgb), Prompt((at,)), context=context, encode_crop=crop)
    ious = [100 * crop_iou(candidate.crop, candidate.bbox, wanted) for candidate in found] or [0.0]
    picture = draw_comparison(rgb, wanted, found[0].mask if found else None, at, 2 * SIDE)
    return Answer(ious[0], max(ious), scaled(picture, 0.5))  # finer lines, and a dot that hides less


def sheet(clicks: Sequence[DrawnClick], answers: Sequence[tuple[Answer, Answer]]) -> Image.Image:
    """All pairs on white, with their figures below."""
    width, height = 2 * SIDE + 3 * GAP, SIDE + LINE + GAP
    rows = -(-len(clicks) // PAIRS)
    page = Image.new("RGB", (PAIRS * width, rows * height + GAP), "white")
    pen = ImageDraw.Draw(page)
    for number, (click, pair) in enumerate(zip(clicks, answers, strict=True)):
        left, top = number % PAIRS * width + GAP, number // PAIRS * height + GAP
        for side, found in enumerate(pair):
            x = left + side * (SIDE + GAP)
            page.paste(Image.fromarray(found.picture), (x, top))
            pen.text((x, top + SIDE + 1), f"{'AB'[side]}  {found.first:.0f} | {found.best:.0f}", "black")
        pen.text((left, top + SIDE + 13), f"{number + 1} {click.name}"[: (2 * SIDE) // 7], (90, 90, 90))
    return page


def write_png(page: Image.Image, path: Path) -> None:
    """With as many colours as fit into MOST_BYTES."""
    for colours in (256, 128, 64, 32):
        file = io.BytesIO()
        page.quantize(colours).save(file, "png", optimize=True)
        if file.tell() <= MOST_BYTES:
            break
    path.write_bytes(file.getvalue())


def table(group: str, clicks: Sequence[DrawnClick], answers: Sequence[tuple[Answer, Answer]]) -> str:
    """Markdown, a row a click and the mean."""
    lines = [f"## {group}", "", "| | mask | A first | A best | B first | B best |", "|---|---|---|---|---|---|"]
    figures = np.array([[a.first, a.best, b.first, b.best] for a, b in answers])
    for number, (click, row) in enumerate(zip(clicks, figures, strict=True), 1):
        lines.append(f"| {number} | {click.name} | " + " | ".join(f"{value:.0f}" for value in row) + " |")
    lines.append("| | mean | " + " | ".join(f"{value:.1f}" for value in figures.mean(0)) + " |")
    usable = [f"{int((figures[:, i] >= 75).sum())}" for i in range(4)]
    lines.append(f"| | of {len(clicks)} with an IoU of at least 75 | " + " | ".join(usable) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path, nargs=2, metavar=("A", "B"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--groups", type=Path, default=GROUPS, help="with the groups `shown` and `unseen`")
    parser.add_argument("--clicks", type=int, default=24, help="of each group")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--named", action="store_true", help="the label of the mask is chosen before the click")
    given = parser.parse_args()
    models = [load(path) for path in given.weights]
    known = "label chosen before the click" if given.named else "nothing known but the click"
    tables = [f"A: {models[0][1]}, B: {models[1][1]}; seed {given.seed}; {known}; IoU in percent\n"]
    given.out.mkdir(parents=True, exist_ok=True)
    for group in ("shown", "unseen"):
        samples = read_samples(given.data, read_groups(given.groups).sources(group)).samples
        clicks = draw_clicks(samples, given.clicks, given.seed)
        contexts = label_contexts(samples, clicks, models[0][0]) if given.named else [PromptContext()] * len(clicks)
        answers = [
            (answer(models[0][0], click, context), answer(models[1][0], click, context))
            for click, context in zip(clicks, contexts, strict=True)
        ]
        tables.append(table(group, clicks, answers))
        if group == "shown":
            write_png(sheet(clicks, answers), given.out / "side_by_side.png")
    (given.out / "side_by_side.md").write_text("\n".join(tables), encoding="utf-8")
    print("\n".join(tables))


if __name__ == "__main__":
    main()
