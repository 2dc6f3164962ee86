"""`semsam evaluate`: `clicks` and `names` here, the other commands from the files beside this."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backend.cli import context, evaluate_adapt, evaluate_photos
from backend.cli.console import progress_bar, write_json
from backend.cli.options import DataFolders, Device, Limit, ModelName, WeightsFile

if TYPE_CHECKING:
    from semsam_model.data.samples import Sample

app = typer.Typer(no_args_is_help=True, help="Measure a model on annotated photos.")
evaluate_photos.add_to(app)
app.command()(evaluate_adapt.adapt)


@app.command()
def clicks(
    data: DataFolders,
    out: Annotated[Path, typer.Option("--out", help="Folder for report.json and report.html.")],
    model: ModelName = "mobile",
    weights: WeightsFile = None,
    limit: Limit = None,
    noc: Annotated[int, typer.Option(help="Photos a source on which one mask is corrected up to 20 times.")] = 8,
    grabcut: Annotated[int, typer.Option(help="Photos a source on which one mask is given to GrabCut.")] = 3,
    trained_on: Annotated[
        Path | None, typer.Option(help="Folder with the SOURCE.json of training: other sources are reported apart.")
    ] = None,
    device: Device = "cpu",
) -> None:
    """One click a mask: IoU of the best level, of the first candidate, and with the granularity given."""
    from rich.console import Console

    from semsam_model.data.folder import read_samples
    from semsam_model.data.samples import by_source
    from semsam_model.evaluation.clicks import evaluate_clicks
    from semsam_model.evaluation.clicks_report import draw_cases, render_page, tables, worst
    from semsam_model.evaluation.clicks_summary import summarise

    _, samples, skipped = _samples(data, limit)
    seen = None if trained_on is None else by_source(read_samples(trained_on).samples)
    network, version = context.load_network(model, weights, device)
    with progress_bar(len(samples)) as advance:
        report = evaluate_clicks(network, samples, corrected=noc, grabcut=grabcut, on_photo=advance)
    report.skipped[:0] = skipped
    about = {"model": version.version, "ranker": "learned" if network.ranker else "none: by predicted IoU"}
    content = about | {"photos_per_source": limit or "all"} | summarise(report, seen)
    write_json(out / "report.json", content)
    html = render_page(content, draw_cases(network, samples, worst(report.clicks)))
    (out / "report.html").write_text(html, encoding="utf-8")
    Console().print(*tables(content))
    print(f"written to {out / 'report.json'} and {out / 'report.html'}")


@app.command()
def names(
    data: DataFolders,
    out: Annotated[Path, typer.Option("--out", help="Folder for names.json.")],
    model: ModelName = "mobile",
    weights: WeightsFile = None,
    limit: Limit = None,
    few_shot: Annotated[bool, typer.Option(help="Also with 1, 5, 20 examples a label.")] = False,
    examples: Annotated[
        Path | None,
        typer.Option(help="Folder with other photos of the sources to take examples from; else the other half of DIR."),
    ] = None,
) -> None:
    """One click a named mask: how often the right label of its source is first, or among the first three."""
    from rich.console import Console

    from semsam_model.evaluation.few_shot import few_shot_table
    from semsam_model.evaluation.names import evaluate_names

    every, samples, skipped = _samples(data, limit)
    network, version = context.load_network(model, weights)
    encoder = context.open_text_encoder()
    with progress_bar(len(samples)) as advance:
        report = evaluate_names(network, samples, encoder, lists=every, on_photo=advance)
    content: dict[str, Any] = {
        "model": version.version,
        "photos_per_source": limit or "all",
        "examples_per_label": 0,
    }
    content |= report.to_dict()
    content["skipped"] = [*skipped, *report.skipped]
    if few_shot or examples:
        content["few_shot"], without = evaluate_adapt.few_shot(network, samples, examples, encoder)
        content["skipped"] += without
        Console().print(few_shot_table(content["few_shot"], "top-1 / top-3 with k examples a label, masks given"))
    write_json(out / "names.json", content)
    Console().print(report.table(f"names, {version}, percent of masks"))
    print(f"written to {out / 'names.json'}")


def _samples(data: list[Path], limit: int | None) -> tuple[list[Sample], list[Sample], list[str]]:
    """All samples of the folders, at most `limit` of each source, and why others could not be read."""
    from semsam_model.data.folder import evenly, read_samples

    datasets = [read_samples(folder) for folder in data]
    every = [sample for dataset in datasets for sample in dataset.samples]
    chosen = [sample for dataset in datasets for sample in evenly(dataset.samples, limit)]
    return every, chosen, [line for dataset in datasets for line in dataset.skipped]
