"""What the gate measured as one HTML page that needs no other file: figures, plots, photos before and after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from semsam_model.evaluation.clicks_report import draw_click
from semsam_model.gate.verdict import Comparison
from semsam_model.gate.verdict_table import page_environment, read_verdict
from semsam_model.network.model import SemanticSAM
from semsam_model.types import ShouldStop, never_stop, until_stopped

PICTURES = 8  #: half of them the largest gains, half the largest losses


def render_report(
    comparison: Comparison,
    parent: SemanticSAM,
    child: SemanticSAM,
    about: Mapping[str, Any] | None = None,
    *,
    should_stop: ShouldStop = never_stop,
) -> str:
    """The page. about: further lines of its heading. Draws PICTURES clicks, so it needs both models.

    should_stop: asked before each of them. Raises Stopped.
    """
    changes = until_stopped(_largest_changes(comparison), should_stop)
    pairs = [_pair(comparison, index, parent, child) for index in changes]
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


def _largest_changes(comparison: Comparison) -> list[int]:
    """Indices of clicks: PICTURES / 2 of the largest gains, then as many of the largest losses."""
    gains = [c.value - p.value for p, c in zip(comparison.parent, comparison.child, strict=True)]
    order = np.argsort(gains, kind="stable").tolist()
    best = order[::-1][: PICTURES // 2]
    return [*best, *(index for index in order[: PICTURES // 2] if index not in best)]


def _pair(comparison: Comparison, index: int, parent: SemanticSAM, child: SemanticSAM) -> dict[str, str]:
    """One click before and after, as data URLs of drawings, and a caption."""
    before, after = comparison.parent[index], comparison.child[index]
    sample = comparison.samples[before.photo]
    drawn = {name: draw_click(model, sample, before.region) for name, model in (("before", parent), ("after", child))}
    return drawn | {"caption": f"{before.label or 'no label'}: {before.value:.0f} to {after.value:.0f}"}
