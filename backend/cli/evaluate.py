"""`semsam evaluate ...`: how good a model is on annotated photos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backend.cli.evaluate_clicks import DataFolders, Limit, clicks, read_folders
from backend.cli.shared import (
    Device,
    ModelName,
    WeightsFile,
    load_network,
    open_text_encoder,
    print_tables,
    progress_bar,
    write_json,
)

if TYPE_CHECKING:
    from semsam_model.data.samples import Dataset, Sample
    from semsam_model.network.model import SemanticSAM
    from semsam_model.text_encoder import TextEncoder

app = typer.Typer(no_args_is_help=True, help="Measure a model on annotated photos.")
app.command()(clicks)


TASKS = {
    "instance": "Mask AP of named objects, as COCO counts it.",
    "parts": "Mask AP of named parts; those of different wholes are different labels where the data says the whole.",
    "semantic": "Mean IoU of the map of objects and named regions.",
    "panoptic": "PQ, SQ and RQ; what only regions are called is stuff.",
    "open-vocabulary": "gIoU and cIoU of the masks of each word; mean IoU of the map of parts, seen and unseen.",
    "everything": "Without labels: average recall; objects as sets: best Dice, difference in count, borders.",
}

SHOWN = 5  #: reasons why a photo or mask was skipped, in the terminal


def _photo_command(task: str) -> Callable[..., None]:
    def evaluate(
        data: Annotated[
            list[Path],
            typer.Argument(metavar="DATASET...", help="Folders with SOURCE.json, or configs/data/NAME.yaml."),
        ],
        out: Annotated[Path, typer.Option("--out", help="Folder for report.json.")],
        root: Annotated[Path | None, typer.Option("--root", help="Where the paths of a YAML file start.")] = None,
        model: ModelName = "mobile",
        weights: WeightsFile = None,
        limit: Limit = None,
        trained_on: Annotated[
            Path | None,
            typer.Option(
                help="open-vocabulary: folder with the SOURCE.json of training; other labels count as unseen."
            ),
        ] = None,
        grid: Annotated[
            int | None, typer.Option(help="everything: clicks along each side in place of object queries.")
        ] = None,
        device: Device = "cpu",
    ) -> None:
        from semsam_model.data.folder import evenly, read_labels
        from semsam_model.evaluation.labels import listed_labels
        from semsam_model.evaluation.photos import check_task, evaluate_photos

        check_task(task, grid=grid, seen=trained_on)
        seen = None if trained_on is None else read_labels(trained_on)
        datasets = _datasets(data, root)
        samples = [sample for dataset in datasets for sample in evenly(dataset.samples, limit)]
        labels = listed_labels(datasets) if task != "everything" else None
        network, version = load_network(model, weights, device)
        encoder = open_text_encoder()
        with progress_bar(len(samples)) as advance:
            report = evaluate_photos(
                network,
                samples,
                lambda labels: encoder.embed(list(labels)).numpy(),
                task,
                labels=labels,
                seen=seen,
                grid=grid,
                on_photo=advance,
            )
        skipped = [*(line for dataset in datasets for line in dataset.skipped), *report.skipped]
        content = {"model": version.version, "photos_per_source": limit or "all", **report.to_dict()}
        write_json(out / "report.json", content | {"skipped": skipped})
        print_tables(report.table(f"{task}, {version}"))
        _print_skipped(datasets, len(report.skipped), skipped)
        print(f"written to {out / 'report.json'}")

    return evaluate


def _datasets(data: list[Path], root: Path | None) -> list[Dataset]:
    """What folders and the sources of mixtures hold."""
    from semsam_model.data.folder import read_samples
    from semsam_model.data.mixture import read_mixture

    datasets: list[Dataset] = []
    for path in data:
        if path.suffix in (".yaml", ".yml"):
            datasets += read_mixture(path, root, evaluation=True).datasets.values()
        else:
            datasets.append(read_samples(path, evaluation=True))
    return datasets


def _print_skipped(datasets: list[Dataset], in_evaluation: int, reasons: list[str]) -> None:
    listed = sum(dataset.photos or len(dataset.samples) for dataset in datasets)
    skipped = listed - sum(len(dataset.samples) for dataset in datasets) + in_evaluation
    print(f"{skipped} of {listed} photos skipped")
    for line in reasons[:SHOWN]:
        print(f"  {line}")
    if len(reasons) > SHOWN:
        print(f"  {len(reasons) - SHOWN} more in report.json")


for task, text in TASKS.items():
    app.command(task, help=text)(_photo_command(task))


@app.command()
def adapt(
    examples: Annotated[
        Path, typer.Argument(help="Folder with SOURCE.json: the annotator's work, see docs/train/data.md.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for adapt.json.")],
    val: Annotated[
        Path | None, typer.Option("--val", help="Folder with other photos of the same sources, to be named.")
    ] = None,
    source: Annotated[list[str] | None, typer.Option("--source", help="Of the folder; all if not given.")] = None,
    photos: Annotated[int, typer.Option(help="Photos a source to replay, evenly spaced; 0 = no replay.")] = 60,
    label_first: Annotated[bool, typer.Option("--label-first", help="Labels are chosen before the click.")] = False,
    model: ModelName = "mobile",
    weights: WeightsFile = None,
) -> None:
    """Replay photos as an annotator would label them; name other photos with 0, 1, 5, 20 examples a label."""
    from semsam_model.data.folder import read_samples
    from semsam_model.evaluation.few_shot import few_shot_table

    network, version = load_network(model, weights)
    encoder = open_text_encoder()
    given = read_samples(examples, source).samples
    content: dict[str, Any] = {"model": version.version, "photos_per_source": photos, "replay": {}, "few_shot": {}}
    for name in dict.fromkeys(sample.source for sample in given):
        annotated = [sample for sample in given if sample.source == name]
        if photos:
            content["replay"][name] = _replay(network, annotated, encoder, photos, label_first, f"{name}, {version}")
        if val is not None:
            asked = list(read_samples(val, [name]).samples)
            content["few_shot"][name] = _few_shot(network, asked, annotated, encoder)
    if content["few_shot"]:
        print_tables(few_shot_table(content["few_shot"], f"top-1 / top-3 with k examples a label, {version}"))
    write_json(out / "adapt.json", content)
    print(f"written to {out / 'adapt.json'}")


def _replay(
    network: SemanticSAM, samples: list[Sample], encoder: TextEncoder, photos: int, label_first: bool, title: str
) -> dict[str, Any]:
    from semsam_model.data.folder import evenly
    from semsam_model.evaluation.replay import replay

    chosen = evenly(samples, photos)
    with progress_bar(len(chosen), "replay") as advance:
        result = replay(network, chosen, encoder, label_first=label_first, on_photo=advance)
    asked = "label first, " if label_first else ""
    print_tables(result.table(f"{title}, {result.photos} photos; {asked}percent, by the model alone -> with learning"))
    return {
        "photos": result.photos,
        "label_first": label_first,
        "curve": result.curve(),
        "total": result.total(),
        "skipped": result.skipped,
    }


def _few_shot(
    network: SemanticSAM, asked: list[Sample], examples: list[Sample] | None, encoder: TextEncoder
) -> dict[str, Any]:
    from semsam_model.evaluation.few_shot import few_shot_curve

    with progress_bar(len(asked) + len(examples or ()), "examples and photos to name") as advance:
        return dict(few_shot_curve(network, asked, encoder, examples=examples, on_photo=advance))


def _few_shot_of_sources(
    network: SemanticSAM, samples: list[Sample], examples: Path | None, encoder: TextEncoder
) -> tuple[dict[str, Any], list[str]]:
    """Curves by source, and why a source has none. examples: a folder that may have other photos of it."""
    from semsam_model.data.folder import read_samples
    from semsam_model.errors import DataError

    curves: dict[str, Any] = {}
    skipped = []
    for name in dict.fromkeys(sample.source for sample in samples):
        asked = [sample for sample in samples if sample.source == name]
        given = None
        if examples is not None and (examples / f"{name}.json").is_file():
            given = list(read_samples(examples, [name]).samples)
        try:
            curves[name] = _few_shot(network, asked, given, encoder)
        except DataError as error:
            skipped.append(f"{name}, few examples: {error}")
    return curves, skipped


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
    from semsam_model.evaluation.few_shot import few_shot_table
    from semsam_model.evaluation.names import evaluate_names

    every, samples, skipped = read_folders(data, limit)
    network, version = load_network(model, weights)
    encoder = open_text_encoder()
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
        content["few_shot"], without = _few_shot_of_sources(network, samples, examples, encoder)
        content["skipped"] += without
        print_tables(few_shot_table(content["few_shot"], "top-1 / top-3 with k examples a label, masks given"))
    write_json(out / "names.json", content)
    print_tables(report.table(f"names, {version}, percent of masks"))
    print(f"written to {out / 'names.json'}")
