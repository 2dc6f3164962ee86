"""`semsam segment`: everything in a photo, without a click and without Label Studio. Parses and calls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def segment(
    photo: Annotated[Path, typer.Argument(help="PNG, JPEG, WebP, BMP or TIFF.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for masks, overview.png and candidates.json.")],
    labels: Annotated[list[str], typer.Option("--label", help="A name to give; may be repeated.")] = [],  # noqa: B006
    parts: Annotated[list[str], typer.Option("--part", help="A name for parts; may be repeated.")] = [],  # noqa: B006
    grid: Annotated[int, typer.Option(min=1, max=128, help="Clicks along each side of the photo.")] = 32,
    level: Annotated[list[int], typer.Option("--level", help="1 = whole ... 6 = smallest part; all when absent.")] = [],  # noqa: B006
    most: Annotated[int, typer.Option(min=1, help="Masks to keep, the surest.")] = 150,
    model: Annotated[str, typer.Option("--model", help="A name in configs/model.")] = "mobile",
    weights: Annotated[Path | None, typer.Option("--weights", help="Safetensors file.")] = None,
) -> None:
    """Segment everything by a grid of clicks."""
    from backend.cli.drawing import write_overview
    from backend.images import load_photo
    from backend.settings import load_settings
    from semsam_model.checkpoints.checkpoint import load_model
    from semsam_model.inference.automatic import GridOptions, everything
    from semsam_model.inference.naming import KINDS, LabelSet
    from semsam_model.network.ranker import LEVELS
    from semsam_model.text_encoder import TextEncoder

    options = GridOptions(grid=grid, most=most, levels=tuple(sorted(set(level))) or LEVELS)
    settings = load_settings()
    picture = load_photo(photo, max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels)
    network, version = load_model(model, weights, folder=settings.data_dir / "weights")
    known = None
    if labels or parts:
        words = (*labels, *parts)
        kinds = (KINDS[0],) * len(labels) + (KINDS[1],) * len(parts)
        known = LabelSet(words, kinds, TextEncoder(settings.text_encoder).embed(list(words)).numpy())
    found = everything(network, network.encode(picture.rgb), options, known, settings.name_threshold)
    candidates = [f.candidate for f in found]
    write_overview(out, picture, candidates, version)
    for c in candidates:
        within = f"  part of {c.parent}" if c.parent else ""
        print(f"{c.rank}  level {c.level}  score {c.score:.2f}  {c.area} px  {c.label or ''}{within}".rstrip())
    print(f"{len(candidates)} masks written to {out}")
