"""`semsam export`: a project's masks as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from backend.cli.context import opened_store
from backend.cli.options import Origin, Project


def export(
    project: Project,
    out: Annotated[Path, typer.Option("--out", help="Folder: new, empty, or with an earlier export.")],
    form: Annotated[
        Literal["coco", "sa1b", "labelstudio", "masks"], typer.Option("--format", help="See docs/run/export.md.")
    ] = "coco",
    origin: Origin = None,
    images: Annotated[
        Literal["copy", "reference", "none"],
        typer.Option("--images", help="Copy the photos, point to where they lie, or only name them."),
    ] = "copy",
    complete: Annotated[
        bool, typer.Option("--complete", help="Everything visible was annotated: what has no mask is background.")
    ] = False,
) -> None:
    """Write a project's masks as COCO, SA-1B, Label Studio or PNG files, split into train and val."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from backend.corrections.photos import open_photos
    from backend.corrections.queries import find_project, stream_regions
    from backend.export.run import export as run

    columns = TextColumn("regions"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with opened_store() as (settings, store):
        found = find_project(store, project, origin)
        with Progress(*columns) as progress:
            task = progress.add_task("regions", total=None)
            result = run(
                stream_regions(store, found.key),
                found,
                open_photos(settings),
                out,
                form=form,
                images=images,
                complete=complete,
                on_start=lambda total: progress.update(task, total=total),
                on_task=lambda regions: progress.advance(task, regions),
            )
    for split in result.tasks:
        print(f"{split:5}  {result.tasks[split]} photos, {result.regions[split]} regions")
    if result.left_out:
        print(f"left out: {result.left_out} regions whose photo could not be fetched yet; `semsam sync` tries again")
    if result.photos_missing:
        print(f"{result.photos_missing} photos are not in {settings.data_dir / 'photos'}: named, but not written")
    print(f"written to {out}")
