"""An evaluation as one HTML page that needs no other file: figures, plots, the worst cases as pictures."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment
from PIL import Image
from rich.table import Table

from semsam_model.data.samples import Sample
from semsam_model.evaluation.clicks import ClickScore, wanted_by
from semsam_model.inference.predict import predict_candidates
from semsam_model.inference.zoom import crop_encoder
from semsam_model.masks.clicker import innermost
from semsam_model.network.model import SemanticSAM
from semsam_model.types import Prompt

WORST = 24
A_SOURCE = 4  #: of them, so that one source does not fill the page
SIDE = 320  #: longer side of a picture
WANTED, GOT, CLICK = (40, 200, 90), (250, 120, 30), (255, 40, 60)
COLUMNS = ("oracle", "first", "told", "max", "matched", "level_accuracy", "calibration_error", "noc80", "noc90")


@dataclass(frozen=True)
class Case:
    """A picture of one click: what was wanted, what came."""

    url: str  #: data:image/webp;base64,...
    caption: str


def worst(clicks: Sequence[ClickScore], most: int = WORST, a_source: int = A_SOURCE) -> list[ClickScore]:
    """The lowest `told`, one a photo and at most so many a source; of equals the one that could have been best."""
    taken: Counter[str] = Counter()
    photos: set[int] = set()
    found: list[ClickScore] = []
    for click in sorted(clicks, key=lambda c: (c.told, -c.oracle)):
        if len(found) < most and taken[click.source] < a_source and click.sample not in photos:
            found.append(click)
            photos.add(click.sample)
            taken[click.source] += 1
    return found


def draw_cases(model: SemanticSAM, samples: Sequence[Sample], clicks: Iterable[ClickScore]) -> list[Case]:
    """samples: those that the clicks were made on."""
    cases = []
    for score in clicks:
        sample = samples[score.sample]
        rgb, wanted = sample.image(), sample.mask(score.region)
        click = innermost(wanted)
        told = predict_candidates(
            model,
            model.encode(rgb),
            Prompt((click,)),
            context=wanted_by(score.granularity),
            encode_crop=crop_encoder(model, rgb),
        )
        scale = SIDE / max(rgb.shape[:2])
        size = max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale))
        picture = np.ascontiguousarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA))
        masks = [(wanted, WANTED)] + ([(told[0].mask, GOT)] if told else [])
        for mask, colour in masks:
            small = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
            outlines, _ = cv2.findContours(small, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(picture, outlines, -1, colour, 2)
        cv2.circle(picture, (int(click.x * scale), int(click.y * scale)), 4, CLICK, -1)
        name = sample.regions[score.region].name or ""
        figures = f"told {100 * score.told:.0f}, first {100 * score.first:.0f}, oracle {100 * score.oracle:.0f}"
        cases.append(Case(_data_url(picture), f"{sample.name}: {name} ({score.granularity}); {figures}"))
    return cases


def _data_url(picture: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "webp", quality=80)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def page(content: Mapping[str, Any], cases: Sequence[Case]) -> str:
    """HTML of what `summarise` returned; further keys of `content` that are plain values go into the heading."""
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_PAGE)
    return template.render(
        content=content,
        about={k: v for k, v in content.items() if isinstance(v, str | int)},
        means={k.replace("_", " "): v for k, v in content.items() if k.startswith("mean_") and v},
        columns=COLUMNS,
        cases=cases,
    )


def tables(content: Mapping[str, Any]) -> list[Table]:
    """The same figures for a terminal: by source with the means below, and the simple rules."""
    main = Table("source", *(c.replace("_", " ") for c in COLUMNS), "masks", title=f"one click, {content['model']}, %")
    for name, row in content["by_source"].items():
        main.add_row(name, *_cells(row, COLUMNS), str(row["n"]))
    main.add_section()
    for name, row in content.items():
        if name.startswith("mean_") and row:
            main.add_row(name.replace("_", " "), *_cells(row, COLUMNS))
    rules = Table("simple rule", "first", "told", "max", title="mean over sources, %")
    for name, rule in content["baselines"].items():
        rules.add_row(name.replace("_", " "), *_cells(rule["mean_over_sources"], ("first", "told", "max")))
    return [main, rules]


def _cells(row: Mapping[str, Any], columns: Iterable[str]) -> list[str]:
    return [f"{row[c]:.1f}" if c in row else "" for c in columns]


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Clicks: {{ content.model }}</title>
<style>
body { font: 15px/1.4 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: 2px 10px; text-align: right }
th:first-child, td:first-child { text-align: left } tr.mean { font-weight: 600 } tr { border-bottom: 1px solid #e4e4e4 }
svg { background: #fafafa; margin: 0 1em 1em 0 } svg text { font-size: 11px; fill: #444 }
figure { display: inline-block; width: 330px; margin: 0 8px 16px 0; vertical-align: top }
figure img { max-width: 100% } figcaption { font-size: 12px; overflow-wrap: anywhere }
</style></head><body>
{% macro cell(row, key) %}{% if key in row %}{{ "%.1f" | format(row[key]) }}{% endif %}{% endmacro %}
{% macro axes(right, label) %}
<path d="M40 10V210H{{ right }}" stroke="#999" fill="none"/>
{% for v in (0, 20, 40, 60, 80, 100) %}
<text x="34" y="{{ 214 - 2 * v }}" text-anchor="end">{{ v }}</text>
<path d="M40 {{ 210 - 2 * v }}H{{ right }}" stroke="#e4e4e4"/>
{% endfor %}
<text x="{{ (40 + right) // 2 }}" y="240" text-anchor="middle">{{ label }}</text>
{% endmacro %}
<h1>Clicks</h1>
<p>{% for key, value in about.items() %}
{{ key.replace("_", " ") }}: {{ value }}{{ "; " if not loop.last }}
{% endfor %}</p>
<p>One click in the middle of every annotated mask; IoU in percent. <b>oracle</b>: best of six levels with the wanted
mask. <b>first</b>: ranked first, with the best annotated mask under the click. <b>told</b>: ranked first with object or
part known, with the wanted mask. <b>max</b>: highest predicted IoU, with the wanted mask. <b>matched</b>: six levels
paired with all annotated masks under the click. <b>level accuracy</b>: ranked first was the best offered.
<b>noc80</b>, <b>noc90</b>: clicks until 80, 90 percent, at most 20, on a subsample.</p>
<table><tr><th>source</th>{% for c in columns %}<th>{{ c.replace("_", " ") }}</th>{% endfor %}<th>masks</th></tr>
{% for name, row in content.by_source.items() %}
<tr><td>{{ name }}</td>{% for c in columns %}<td>{{ cell(row, c) }}</td>{% endfor %}<td>{{ row.n }}</td></tr>
{% endfor %}
{% for name, row in means.items() %}
<tr class="mean"><td>{{ name }}</td>{% for c in columns %}<td>{{ cell(row, c) }}</td>{% endfor %}<td></td></tr>
{% endfor %}
{% for name, row in content.by_granularity.items() %}
<tr class="mean"><td>{{ name }}, mean over sources</td>
{% for c in columns %}<td>{{ cell(row, c) }}</td>{% endfor %}<td></td></tr>
{% endfor %}
</table>
<h2>Simple rules, same clicks</h2>
<table><tr><th>rule</th><th>first</th><th>told</th><th>max</th></tr>
{% for name, rule in content.baselines.items() %}
{% set row = rule.mean_over_sources %}
<tr><td>{{ name.replace("_", " ") }}</td>
{% for c in ("first", "told", "max") %}<td>{{ cell(row, c) }}</td>{% endfor %}</tr>
{% endfor %}
</table>
<p>predicted iou: the network's own estimate ranks, told by levels 1-3 or 4-6. largest: the largest of the six levels.
grabcut: OpenCV GrabCut seeded with the click, on a subsample.</p>
<h2>Plots</h2>
{% set right = 60 + 56 * content.by_source | length %}
<svg width="{{ right + 20 }}" height="300" role="img"><title>IoU by source</title>
{{ axes(right, "") }}
{% for name, row in content.by_source.items() %}
{% set x = 50 + 56 * loop.index0 %}
{% for m, colour in (("oracle", "#9bb8d3"), ("first", "#2c6fab"), ("told", "#e08a2c")) %}
<rect x="{{ x + 15 * loop.index0 }}" y="{{ 210 - 2 * row[m] }}" width="13" height="{{ 2 * row[m] }}"
 fill="{{ colour }}"><title>{{ name }} {{ m }} {{ row[m] }}</title></rect>
{% endfor %}
<text transform="translate({{ x + 22 }},222) rotate(35)">{{ name }}</text>
{% endfor %}
<text x="60" y="22">oracle (light), first (dark), told (orange)</text></svg>
<br>
{% for name, curve in content.calibration.items() %}
<svg width="270" height="250" role="img"><title>reliability, {{ name }}</title>
{{ axes(250, "score of " + name.replace("_", " ") + ", error %.1f" % (100 * curve.error)) }}
<path d="M40 210L240 10" stroke="#999" stroke-dasharray="4"/>
{% for bin in curve.bins %}
<circle cx="{{ 40 + 200 * bin.score }}" cy="{{ 210 - 200 * bin.iou }}" r="{{ 3 + 8 * bin.share }}" fill="#2c6fab">
<title>score {{ "%.2f" | format(bin.score) }}, IoU {{ "%.2f" | format(bin.iou) }}</title></circle>
{% endfor %}
</svg>
{% endfor %}
{% if content.iou_after_clicks %}
<svg width="290" height="250" role="img"><title>IoU after corrections</title>
{{ axes(270, "IoU after 1 to 20 clicks") }}
<polyline fill="none" stroke="#2c6fab" stroke-width="2" points="
{% for v in content.iou_after_clicks %}{{ 40 + 11 * loop.index }},{{ 210 - 2 * v }} {% endfor %}"/></svg>
{% endif %}
<h2>Lowest told</h2>
<p>Green: wanted. Orange: ranked first. Dot: click. One a photo, few a source.</p>
{% for case in cases %}
<figure><img src="{{ case.url }}" alt=""><figcaption>{{ case.caption }}</figcaption></figure>
{% endfor %}
</body></html>
"""
