"""`semsam segment`: everything in a photo, without a click and without Label Studio."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backend.cli import context
from backend.cli.console import print_candidates
from backend.cli.options import ModelName, PhotoFile, WeightsFile


def segment(
    photo: PhotoFile,
    out: Annotated[Path, typer.Option("--out", help="Folder for masks, overview.png and candidates.json.")],
    labels: Annotated[list[str], typer.Option("--label", help="A name to give; may be repeated.")] = [],  # noqa: B006
    parts: Annotated[list[str], typer.Option("--part", help="A name for parts; may be repeated.")] = [],  # noqa: B006
    grid: Annotated[int, typer.Option(min=1, max=128, help="Clicks along each side of the photo.")] = 32,
    level: Annotated[list[int], typer.Option("--level", help="1 = whole ... 6 = smallest part; all when absent.")] = [],  # noqa: B006
    most: Annotated[int, typer.Option(min=1, help="Masks to keep, the surest.")] = 150,
    model: ModelName = "mobile",
    weights: WeightsFile = None,
) -> None:
    """Segment everything by a grid of clicks."""
    from backend.cli.drawing import write_overview
    from backend.settings import load_settings
    from semsam_model.inference.automatic import AutomaticOptions, automatic_masks
    from semsam_model.types import KINDS, LEVELS, LabelSet

    options = AutomaticOptions(grid=grid, most=most, levels=tuple(sorted(set(level))) or LEVELS)
    loaded = context.read_photo(photo)
    network, version = context.load_network(model, weights)
    known = None
    if labels or parts:
        words = (*labels, *parts)
        kinds = (KINDS[0],) * len(labels) + (KINDS[1],) * len(parts)
        known = LabelSet(words, kinds, context.open_text_encoder().embed(list(words)).numpy())
    found = automatic_masks(network, network.encode(loaded.rgb), options, known, load_settings().name_threshold)
    candidates = [f.candidate for f in found]
    write_overview(out, loaded, candidates, version)
    print_candidates(candidates)
    print(f"{len(candidates)} masks written to {out}")
