"""What the gate saw as one HTML page, nothing fetched: verdict, figures, plots, the same photos before and after."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment
from PIL import Image

from semsam_model.gate.clicks import GateClick
from semsam_model.gate.verdict import Comparison
from semsam_model.inference.predict import predict_candidates
from semsam_model.inference.zoom import crop_encoder
from semsam_model.masks.clicker import innermost
from semsam_model.network.model import SemanticSAM
from semsam_model.types import Prompt

PICTURES = 8  #: half of them the largest gains, half the largest losses
SIDE = 320
WANTED, GOT, CLICK = (40, 170, 70), (235, 130, 30), (220, 30, 60)


@dataclass(frozen=True)
class Pair:
    """One click before and after, as pictures."""

    before: str  #: data:image/webp;base64,...
    after: str
    caption: str


def report(
    comparison: Comparison,
    parent: SemanticSAM,
    child: SemanticSAM,
    about: Mapping[str, Any] | None = None,
    *,
    on_pair: Callable[[], None] = lambda: None,
) -> str:
    """The page. about: further lines of its heading. Draws PICTURES clicks, so it needs both models.

    on_pair: before each of them.
    """
    gains = _gains(comparison)
    order = np.argsort(gains, kind="stable")
    half = PICTURES // 2
    chosen = [*order[::-1][:half], *(i for i in order[:half] if i not in order[::-1][:half])]
    pairs = []
    for index in chosen:
        on_pair()
        pairs.append(_pair(comparison, int(index), parent, child))
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_PAGE)
    return template.render(
        verdict=comparison.verdict,
        about=about or {},
        sets={
            "held-out corrections": comparison.verdict.figures["held_out"],
            "guard": comparison.verdict.figures["guard"],
        },
        groups={"level": comparison.verdict.figures["by_level"], "label": comparison.verdict.figures["by_label"]},
        dots=[
            {"x": p.value, "y": c.value, "label": p.label or "no label"}
            for p, c in zip(comparison.parent, comparison.child, strict=True)
        ],
        measures=("oracle", "first", "max", "label_top1"),
        pairs=pairs,
    )


def _gains(comparison: Comparison) -> list[float]:
    return [c.value - p.value for p, c in zip(comparison.parent, comparison.child, strict=True)]


def _pair(comparison: Comparison, index: int, parent: SemanticSAM, child: SemanticSAM) -> Pair:
    before, after = comparison.parent[index], comparison.child[index]
    pictures = [_picture(model, comparison, before) for model in (parent, child)]
    change = f"{before.value:.0f} to {after.value:.0f}"
    return Pair(pictures[0], pictures[1], f"{before.label or 'no label'}: {change}")


def _picture(model: SemanticSAM, comparison: Comparison, at: GateClick) -> str:
    """The photo with the wanted mask, the candidate ranked first, and the click."""
    sample = comparison.samples[at.photo]
    rgb, wanted = sample.image(), sample.mask(at.region)
    click = innermost(wanted)
    offered = predict_candidates(model, model.encode(rgb), Prompt((click,)), encode_crop=crop_encoder(model, rgb))
    scale = SIDE / max(rgb.shape[:2])
    size = max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale))
    picture = np.ascontiguousarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA))
    for mask, colour in [(wanted, WANTED), *((c.mask, GOT) for c in offered[:1])]:
        small = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        outlines, _ = cv2.findContours(small, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, colour, 2)
    cv2.circle(picture, (int(click.x * scale), int(click.y * scale)), 4, CLICK, -1)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "webp", quality=80)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<title>semsam gate: {{ "promoted" if verdict.promoted else "refused" }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 0 0 1.5rem } th, td { padding: .2rem .7rem; text-align: right }
th:first-child, td:first-child { text-align: left } tr { border-bottom: 1px solid #ddd }
figure { display: inline-block; margin: 0 1rem 1rem 0 } img { vertical-align: top } svg text { font: 12px sans-serif }
.up { color: #12763a } .down { color: #b3261e }
</style></head><body>
<h1 class="{{ "up" if verdict.promoted else "down" }}">{{ "Promoted" if verdict.promoted else "Refused" }}</h1>
{% for reason in verdict.reasons %}<p>{{ reason }}</p>{% endfor %}
<table>
{% for name, value in about.items() %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>{% endfor %}
<tr><td>gain on the held-out corrections, points</td>
<td>{{ "%+.1f (%+.1f to %+.1f)" | format(verdict.gain.mean, verdict.gain.low, verdict.gain.high) }}</td></tr>
{% if verdict.figures.pictures and verdict.figures.pictures.asked %}{% set pictures = verdict.figures.pictures %}
<tr><td>masks agree better with their own photos than with others, points</td>
<td>{{ "%+.1f (%+.1f to %+.1f)" | format(pictures.gain.mean, pictures.gain.low, pictures.gain.high) }}</td></tr>
{% endif %}
<tr><td>change on the guard set, points</td><td>{{ "%+.1f" | format(verdict.guard_gain) }}</td></tr>
</table>
{% macro cells(row) %}
{% for m in measures %}
{% if row[m] %}<td>{{ "%.1f" | format(row[m][0]) }}</td><td>{{ "%.1f" | format(row[m][1]) }}</td>
{% else %}<td></td><td></td>{% endif %}
{% endfor %}
<td>{{ row.masks }}</td>
{% endmacro %}
{% macro head(name) %}
<tr><th>{{ name }}</th>
{% for m in measures %}<th>{{ m.replace("_", " ") }}</th><th>after</th>{% endfor %}
<th>masks</th></tr>
{% endmacro %}
<h2>Before and after, percent</h2>
<table>{{ head("set") }}
{% for name, row in sets.items() %}<tr><td>{{ name }}</td>{{ cells(row) }}</tr>{% endfor %}
</table>
<p>One click a mask, at its innermost point. oracle: IoU of the best of six levels with the mask; first: of the
candidate offered first with the best annotated mask under the click; max: of the level said to be best. The gate
compares the mean of oracle and first; of nested masks max may be another right one than was wanted.</p>
<svg width="300" height="270" role="img"><title>each click before and after</title>
<path d="M40 10V230H270" fill="none" stroke="#555"/><path d="M40 230L260 10" stroke="#999" stroke-dasharray="4"/>
<text x="40" y="246">0</text><text x="245" y="246">100</text><text x="120" y="262">before</text>
<text x="12" y="16">100</text><text x="2" y="120">after</text>
{% for dot in dots %}
<circle cx="{{ "%.1f" | format(40 + 2.2 * dot.x) }}" cy="{{ "%.1f" | format(230 - 2.2 * dot.y) }}" r="3.5"
 fill="#2c6fab" fill-opacity=".5">
<title>{{ dot.label }}: {{ "%.0f" | format(dot.x) }} to {{ "%.0f" | format(dot.y) }}</title></circle>
{% endfor %}</svg>
{% for what, rows in groups.items() %}
<h2>By {{ what }}</h2>
<svg width="{{ 80 + 52 * rows | length }}" height="260" role="img"><title>oracle by {{ what }}, before and after</title>
<path d="M40 10V210H{{ 60 + 52 * rows | length }}" fill="none" stroke="#555"/>
<text x="8" y="16">100</text><text x="24" y="214">0</text>
{% for name, row in rows.items() %}
{% set x = 50 + 52 * loop.index0 %}
{% for value, colour in ((row.oracle[0], "#9bb8d3"), (row.oracle[1], "#2c6fab")) %}
<rect x="{{ x + 17 * loop.index0 }}" y="{{ 210 - 2 * value }}" width="15" height="{{ 2 * value }}" fill="{{ colour }}">
<title>{{ name }} {{ value }}</title></rect>
{% endfor %}
<text transform="translate({{ x + 10 }},222) rotate(28)">{{ name }}</text>
{% endfor %}</svg>
<table>{{ head(what) }}
{% for name, row in rows.items() %}<tr><td>{{ name }}</td>{{ cells(row) }}</tr>{% endfor %}
</table>
{% endfor %}
<h2>Largest gains and losses</h2>
<p>Green: wanted. Orange: offered first. Dot: click. Left before, right after.</p>
{% for pair in pairs %}
<figure><img src="{{ pair.before }}" alt="before"> <img src="{{ pair.after }}" alt="after">
<figcaption>{{ pair.caption }}</figcaption></figure>
{% endfor %}
</body></html>
"""
