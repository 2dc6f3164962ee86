"""`semsam evaluate TASK DATASET`, a command for each task: whole photos without a click."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backend.cli import context
from backend.cli.console import progress_bar, write_json
from backend.cli.options import Device, Limit, ModelName, WeightsFile

if TYPE_CHECKING:
    from semsam_model.data.samples import Dataset

TASKS = {
    "instance": "Mask AP of named objects, as COCO counts it.",
    "parts": "Mask AP of named parts; those of different wholes are different labels where the data says the whole.",
    "semantic": "Mean IoU of the map of objects and named regions.",
    "panoptic": "PQ, SQ and RQ; what only regions are called is stuff.",
    "open-vocabulary": "gIoU and cIoU of the masks of each word; mean IoU of the map of parts, seen and unseen.",
    "everything": "Without labels: average recall; objects as sets: best Dice, difference in count, borders.",
}

SHOWN = 5  #: reasons why a photo or mask was skipped, in the terminal


def add_to(app: typer.Typer) -> None:
    """Add a command for each task."""
    for task, text in TASKS.items():
        app.command(task, help=text)(_command(task))


def _command(task: str) -> Callable[..., None]:
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
        from rich.console import Console

        from semsam_model.data.folder import evenly, read_labels
        from semsam_model.evaluation.labels import listed_labels
        from semsam_model.evaluation.photos import check_task, evaluate_photos

        check_task(task, grid=grid, seen=trained_on)
        seen = None if trained_on is None else read_labels(trained_on)
        datasets = _datasets(data, root)
        samples = [sample for dataset in datasets for sample in evenly(dataset.samples, limit)]
        labels = listed_labels(datasets) if task != "everything" else None
        network, version = context.load_network(model, weights, device)
        encoder = context.open_text_encoder()
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
        Console().print(report.table(f"{task}, {version}"))
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
