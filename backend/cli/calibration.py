"""`semsam calibrate-queries`: scores of object queries become what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backend.cli.shared import Device, open_text_encoder, print_tables, progress_bar, write_json


def calibrate_queries(
    weights: Annotated[Path, typer.Option("--weights", help="Weights file whose network stays as it is.")],
    data: Annotated[Path, typer.Option("--data", help="Folder with SOURCE.json and photos that it has not seen.")],
    out: Annotated[Path, typer.Option("--out", help="Weights file to write: the same network, calibrated.")],
    report: Annotated[Path, typer.Option("--report", help="Folder for calibration.json.")],
    groups: Annotated[Path | None, typer.Option(help="Groups of sources, a file as configs/groups/val.yaml.")] = None,
    group: Annotated[str, typer.Option(help="The group to calibrate on, where there are groups.")] = "core",
    per_source: Annotated[int, typer.Option(help="At most this many photos a source, evenly spaced.")] = 12,
    device: Device = "cpu",
) -> None:
    """Learn what scores of object queries are worth, and from which on regions are offered without a click."""
    from semsam_model.checkpoints.checkpoint import load, with_query_calibration
    from semsam_model.data.folder import evenly, read_samples
    from semsam_model.evaluation.calibrated_queries import check_calibration, fit_calibration, tables
    from semsam_model.evaluation.groups import read_groups
    from semsam_model.evaluation.labels import listed_labels
    from semsam_model.evaluation.offered_regions import offered_regions

    dataset = read_samples(data, None if groups is None else read_groups(groups).sources(group))
    samples = evenly(dataset.samples, per_source)
    network, version = load(weights, device=device)
    encoder, skipped = open_text_encoder(), list(dataset.skipped)
    with progress_bar(len(samples)) as advance:
        regions = offered_regions(
            network,
            samples,
            lambda words: encoder.embed(list(words)).numpy(),
            labels=listed_labels([dataset]),
            skipped=skipped,
            on_photo=advance,
        )
    calibration = fit_calibration(regions)
    content = {"model": version.version, "photos": len(samples), **check_calibration(regions, calibration)}
    write_json(report / "calibration.json", content | {"skipped": skipped})
    print_tables(*tables(content))
    card = {"query_calibration": {"photos": len(samples), "group": group if groups else "all"}}
    print(f"threshold {calibration.threshold:.2f}; written to {report / 'calibration.json'}")
    print(f"written to {out} as {with_query_calibration(weights, calibration, out, card=card)}")
