"""What the gate saw as one HTML page, nothing fetched: verdict, figures, plots, the same photos before and after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from semsam_model.gate.clicks import GateClick
from semsam_model.gate.verdict import Comparison
from semsam_model.gate.verdict_table import page_environment, read_verdict
from semsam_model.inference.predict import predict_candidates
from semsam_model.inference.zoom import crop_encoder
from semsam_model.masks.clicker import innermost
from semsam_model.masks.drawing import draw_comparison, to_data_url
from semsam_model.network.model import SemanticSAM
from semsam_model.types import Prompt

PICTURES = 8  #: half of them the largest gains, half the largest losses


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
    return (
        page_environment()
        .get_template("report.html")
        .render(
            verdict=read_verdict(comparison.verdict.to_dict()),
            promoted=comparison.verdict.promoted,
            about=about or {},
            dots=[
                {"x": p.value, "y": c.value, "label": p.label or "no label"}
                for p, c in zip(comparison.parent, comparison.child, strict=True)
            ],
            pairs=pairs,
        )
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
    return to_data_url(draw_comparison(rgb, wanted, offered[0].mask if offered else None, click))
