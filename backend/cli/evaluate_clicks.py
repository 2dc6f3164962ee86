"""`semsam evaluate clicks`, and how commands that click annotated masks read their folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backend.cli.shared import (
    Device,
    ModelName,
    WeightsFile,
    load_answering,
    open_text_encoder,
    print_tables,
    progress_bar,
    write_json,
)

if TYPE_CHECKING:
    from semsam_model.data.samples import Sample

DataFolders = Annotated[list[Path], typer.Argument(help="Folders with SOURCE.json and photos, see docs/train/data.md.")]
Limit = Annotated[int | None, typer.Option(help="At most this many photos a source, evenly spaced.")]


def clicks(
    data: DataFolders,
    out: Annotated[Path, typer.Option("--out", help="Folder for report.json and report.html.")],
    model: ModelName = "mobile",
    weights: WeightsFile = None,
    limit: Limit = None,
    noc: Annotated[int, typer.Option(help="Photos a source on which one mask is corrected up to 20 times.")] = 8,
    one_object: Annotated[
        int, typer.Option(help="Photos a source with one object that is corrected up to 20 times: clicks to 85, 90 %.")
    ] = 0,
    grabcut: Annotated[int, typer.Option(help="Photos a source on which one mask is given to GrabCut.")] = 3,
    trained_on: Annotated[
        Path | None, typer.Option(help="Folder with the SOURCE.json of training: other sources are reported apart.")
    ] = None,
    groups: Annotated[
        Path | None, typer.Option(help="Sources to report apart, a file as configs/groups/val.yaml.")
    ] = None,
    masks: Annotated[
        int | None, typer.Option(min=1, help="At most this many masks a photo, drawn at random, each time the same.")
    ] = None,
    engine: Annotated[
        list[str],
        typer.Option(help="A mask engine described by the model: FAMILY:ARGUMENT or a model of ours; may be repeated."),
    ] = [],  # noqa: B006
    device: Device = "cpu",
) -> None:
    """One click a mask: IoU of the best level, of the first candidate, with the granularity or the label given.

    With --engine, each is measured, in a folder of its own, and a table compares them with the model alone.
    """
    from semsam_model.data.folder import read_samples
    from semsam_model.data.samples import by_source
    from semsam_model.data.vocabulary import SourceLabels
    from semsam_model.evaluation.clicks import evaluate_clicks
    from semsam_model.evaluation.clicks_report import draw_cases, engines_table, render_page, tables, worst
    from semsam_model.evaluation.clicks_summary import summarise
    from semsam_model.evaluation.groups import read_groups
    from semsam_model.inference.engine import described

    every, samples, skipped = read_folders(data, limit)
    seen = None if trained_on is None else by_source(read_samples(trained_on).samples)
    apart = None if groups is None else read_groups(groups)
    if apart is not None:
        apart.of(by_source(samples))  # a source in no group is told before the work, not after it
    asked: list[str | None] = [None, *engine]
    compared = {}
    for each in asked:
        network, name = load_answering(each, model, weights, device)
        parts = described(network)
        named = parts.describer.name_head is not None and parts.ranker is not None
        labels = SourceLabels.of(every, open_text_encoder(), parts.describer.config.text_dim) if named else None
        with progress_bar(len(samples), name) as advance:
            report = evaluate_clicks(
                network,
                samples,
                labels=labels,
                masks=masks,
                corrected=noc,
                one_object=one_object,
                grabcut=grabcut if each is None else 0,
                on_photo=advance,
            )
        report.skipped[:0] = skipped
        about: dict[str, Any] = {"model": name, "ranker": "learned" if parts.ranker else "none: by predicted IoU"}
        about |= {"photos_per_source": limit or "all", "masks_per_photo": masks or "all"}
        content = about | summarise(report, seen, apart)
        folder = out / name if engine else out
        write_json(folder / "report.json", content)
        html = render_page(content, draw_cases(network, samples, worst(report.clicks)))
        (folder / "report.html").write_text(html, encoding="utf-8")
        print_tables(*tables(content))
        print(f"written to {folder / 'report.json'} and {folder / 'report.html'}")
        compared[name] = content
    if engine:
        print_tables(engines_table(compared))


def read_folders(data: list[Path], limit: int | None) -> tuple[list[Sample], list[Sample], list[str]]:
    """All samples of the folders, at most `limit` of each source, and why others could not be read."""
    from semsam_model.data.folder import evenly, read_samples

    datasets = [read_samples(folder) for folder in data]
    every = [sample for dataset in datasets for sample in dataset.samples]
    chosen = [sample for dataset in datasets for sample in evenly(dataset.samples, limit)]
    return every, chosen, [line for dataset in datasets for line in dataset.skipped]
