"""An evaluation as one HTML page that needs no other file: figures, plots, the worst cases as pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from rich.table import Table

from semsam_model.data.samples import Sample
from semsam_model.evaluation.clicks import ClickScore, known_kind
from semsam_model.evaluation.clicks_summary import FORMER_NAMES
from semsam_model.inference.engine import Model
from semsam_model.inference.predict import predict_candidates
from semsam_model.inference.zoom import crop_encoder
from semsam_model.masks.clicker import innermost
from semsam_model.masks.drawing import draw_comparison, to_data_url
from semsam_model.types import Prompt, PromptContext

WORST = 24
A_SOURCE = 4  #: of them, so that one source does not fill the page
COLUMNS = (
    "oracle",
    "first",
    "top1_given_kind",
    "named",
    "max",
    "matched",
    "level_accuracy",
    "calibration_error",
    "noc80",
    "noc90",
)

IN_GROUPS = ("oracle", "first", "top1_given_kind", "named", "noc80", "noc90")


@dataclass(frozen=True)
class Case:
    """A picture of one click: what was wanted, what came."""

    url: str  #: data:image/webp;base64,...
    caption: str


def worst(clicks: Sequence[ClickScore], most: int = WORST, a_source: int = A_SOURCE) -> list[ClickScore]:
    """The lowest `top1_given_kind`, at most one a photo and `a_source` a source; of equals that of larger `oracle`."""
    taken: Counter[str] = Counter()
    photos: set[int] = set()
    found: list[ClickScore] = []
    for click in sorted(clicks, key=lambda c: (c.top1_given_kind, -c.oracle)):
        if len(found) < most and taken[click.source] < a_source and click.sample not in photos:
            found.append(click)
            photos.add(click.sample)
            taken[click.source] += 1
    return found


def draw_cases(model: Model, samples: Sequence[Sample], clicks: Iterable[ClickScore]) -> list[Case]:
    """samples: those that the clicks were made on."""
    cases = []
    for score in clicks:
        sample = samples[score.sample]
        name = sample.regions[score.region].name or ""
        figures = (
            f"top1 given kind {100 * score.top1_given_kind:.0f}, first {100 * score.first:.0f}, "
            f"oracle {100 * score.oracle:.0f}"
        )
        url = draw_click(model, sample, score.region, known_kind(score.granularity))
        cases.append(Case(url, f"{sample.name}: {name} ({score.granularity}); {figures}"))
    return cases


def draw_click(model: Model, sample: Sample, region: int, context: PromptContext | None = None) -> str:
    """A click in the middle of a region, its mask and the candidate ranked first, as data:image/webp;base64,..."""
    rgb, wanted = sample.image(), sample.mask(region)
    click, encode_crop = innermost(wanted), crop_encoder(model, rgb)
    candidates = predict_candidates(
        model, model.encode(rgb), Prompt((click,)), context=context, encode_crop=encode_crop
    )
    return to_data_url(draw_comparison(rgb, wanted, candidates[0].mask if candidates else None, click))


def render_page(content: Mapping[str, Any], cases: Sequence[Case]) -> str:
    """HTML of what `summarise` returned; further keys of `content` that are plain values go into the heading."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("clicks_report.html").render(
        content=content,
        about={k: v for k, v in content.items() if isinstance(v, str | int)},
        means={k.replace("_", " "): v for k, v in content.items() if k.startswith("mean_") and v},
        calibration={k: v for k, v in content["calibration"].items() if k not in FORMER_NAMES.values()},
        columns=COLUMNS,
        cases=cases,
    )


def tables(content: Mapping[str, Any]) -> list[Table]:
    """The same figures for a terminal: by source with the means below, by group of sources, and the simple rules."""
    groups = content.get("groups", {})
    main = Table("source", *(c.replace("_", " ") for c in COLUMNS), "masks", title=f"one click, {content['model']}, %")
    for name, row in content["by_source"].items():
        main.add_row(name, *_cells(row, COLUMNS), str(row["n"]))
    main.add_section()
    for name, row in content.items():
        if name.startswith("mean_") and row and name.removeprefix("mean_over_") not in groups:
            main.add_row(name.replace("_", " "), *_cells(row, COLUMNS))
    rules = Table("simple rule", "first", "top1_given_kind", "max", title="mean over sources, %")
    for name, rule in content["baselines"].items():
        rules.add_row(name.replace("_", " "), *_cells(rule["mean_over_sources"], ("first", "top1_given_kind", "max")))
    found = [main, rules]
    if "one_object" in content:
        found.append(_one_object_table(content["one_object"]))
    if not groups:
        return found
    apart = Table("group", *(c.replace("_", " ") for c in IN_GROUPS), "sources", title="mean over sources, %")
    for name, sources in groups.items():
        if sources:
            row = content[f"mean_over_{name}"]
            apart.add_row(name.replace("_", " "), *_cells(row, IN_GROUPS), str(len(sources)))
    return [main, apart, *found[1:]]


def engines_table(contents: Mapping[str, Mapping[str, Any]]) -> Table:
    """The means of several models on the same clicks. contents: what `summarise` returned for each."""
    table = Table("engine", *(c.replace("_", " ") for c in COLUMNS), title="one click, mean over sources, %")
    for name, content in contents.items():
        table.add_row(name, *_cells(content["mean_over_sources"], COLUMNS))
    return table


def _one_object_table(content: Mapping[str, Any]) -> Table:
    table = Table("one object a photo", "clicks to 85 %", "clicks to 90 %", "photos")
    for name, row in content["by_source"].items():
        table.add_row(name, f"{row['noc85']:.2f}", f"{row['noc90']:.2f}", str(row["noc_n"]))
    mean = content["mean_over_sources"]
    table.add_row("mean over sources", f"{mean['noc85']:.2f}", f"{mean['noc90']:.2f}", "")
    return table


def _cells(row: Mapping[str, Any], columns: Iterable[str]) -> list[str]:
    return [f"{row[c]:.1f}" if c in row else "" for c in columns]
