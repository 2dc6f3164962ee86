"""`semsam data convert`: annotations of other tools into files of other forms."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from backend.cli.shared import progress_bar
from semsam_model.data.split import VALIDATION_SHARE

SHOWN = 10  #: lines about what was left out


def convert(
    path: Annotated[
        Path,
        typer.Argument(
            help="JSON of COCO, Label Studio or labelme, XML of CVAT for images, data.yaml of YOLO, a mixture; or a"
            " folder: of these, of Pascal VOC, of SA-1B, of a target storage."
        ),
    ],
    target: Annotated[Literal["coco", "sa1b", "yolo", "labelstudio"], typer.Option("--to", help="What to write.")],
    out: Annotated[Path, typer.Option("--out", help="New or empty folder.")],
    images: Annotated[
        Path | None, typer.Option("--images", help="Folder of the photos, if they are not beside it.")
    ] = None,
    validation_share: Annotated[
        float, typer.Option("--val", min=0, max=1, help="With --to yolo: share of the photos in `val`.")
    ] = VALIDATION_SHARE,
) -> None:
    """Write annotations in another form; what cannot be read is counted and named."""
    from semsam_model.data.convert import convert as run
    from semsam_model.data.convert import read_any

    datasets = read_any(path, images)
    with progress_bar(sum(len(dataset.samples) for dataset in datasets)) as advance:
        done = run(datasets, target, out, on_photo=advance, validation_share=validation_share)
    for line in done.skipped[:SHOWN]:
        print(f"left out: {line}")
    if len(done.skipped) > SHOWN:
        print(f"{len(done.skipped) - SHOWN} further lines about what was left out")
    print(f"{done.photos} photos with {done.masks} masks written to {out}, {done.masks_lost} masks left out")
