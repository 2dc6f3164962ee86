"""`semsam evaluate TASK DATASET`, a command a task: whole photos without a click."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

TASKS = {
    "instance": "Mask AP of named objects, as COCO counts it.",
    "parts": "Mask AP of named parts; those of different wholes are different labels where the data says the whole.",
    "semantic": "Mean IoU of the map of objects and named regions.",
    "panoptic": "PQ, SQ and RQ; what only regions are called is stuff.",
    "open-vocabulary": "gIoU and cIoU of the masks of each word; mean IoU of the map of parts, seen and unseen.",
    "everything": "Without labels: average recall; objects as sets: best Dice, difference in count, borders.",
}


SHOWN = 5  #: reasons why a photo or mask was skipped, in the terminal


def add_to(evaluate_app: typer.Typer) -> None:
    """Add a command for each task."""
    for task, text in TASKS.items():
        evaluate_app.command(task, help=text)(_command(task))


def _command(task: str) -> Callable[..., None]:
    def run(
        data: Annotated[
            list[Path],
            typer.Argument(metavar="DATASET...", help="Folders with SOURCE.json, or configs/data/NAME.yaml."),
        ],
        out: Annotated[Path, typer.Option("--out", help="Folder for report.json.")],
        root: Annotated[Path | None, typer.Option("--root", help="Where the paths of a YAML file start.")] = None,
        model: Annotated[str, typer.Option("--model", help="A name in configs/model.")] = "mobile",
        weights: Annotated[Path | None, typer.Option("--weights", help="Safetensors file.")] = None,
        limit: Annotated[int | None, typer.Option(help="At most this many photos a source, evenly spaced.")] = None,
        trained_on: Annotated[
            Path | None,
            typer.Option(
                help="open-vocabulary: folder with the SOURCE.json of training; other labels count as unseen."
            ),
        ] = None,
        grid: Annotated[
            int | None, typer.Option(help="everything: clicks along each side in place of object queries.")
        ] = None,
        device: Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N")] = "cpu",
    ) -> None:
        evaluate(task, data, out, root, model, weights, limit, trained_on, grid, device)

    return run


def evaluate(
    task: str,
    data: list[Path],
    out: Path,
    root: Path | None,
    model: str,
    weights: Path | None,
    limit: int | None,
    trained_on: Path | None,
    grid: int | None,
    device: str,
) -> None:
    """Evaluate, print a table, write OUT/report.json."""
    import json
    from collections.abc import Sequence

    import numpy as np
    from rich.console import Console
    from rich.progress import Progress

    from backend.settings import load_settings
    from semsam_model.checkpoints.checkpoint import load_model
    from semsam_model.data.folder import evenly, read_labels, read_samples
    from semsam_model.data.mixture import read_mixture
    from semsam_model.data.samples import Reading
    from semsam_model.evaluation.labels import listed
    from semsam_model.evaluation.photos import check_asked, evaluate_photos
    from semsam_model.text_encoder import TextEncoder

    check_asked(task, grid=grid, seen=trained_on)
    seen = None if trained_on is None else read_labels(trained_on)
    readings: list[Reading] = []
    for dataset in data:
        if dataset.suffix in (".yaml", ".yml"):
            readings += read_mixture(dataset, root, evaluation=True).readings.values()
        else:
            readings.append(read_samples(dataset, evaluation=True))
    samples = [sample for reading in readings for sample in evenly(reading.samples, limit)]
    labels = listed(readings) if task != "everything" else None
    settings = load_settings()
    network, version = load_model(model, weights, folder=settings.data_dir / "weights", device=device)
    encoder = TextEncoder(settings.text_encoder)

    def embed(labels: Sequence[str]) -> np.ndarray:
        return encoder.embed(list(labels)).numpy()

    with Progress() as progress:
        bar = progress.add_task("photos", total=len(samples))
        report = evaluate_photos(
            network, samples, embed, task, labels=labels, seen=seen, grid=grid, on_photo=lambda: progress.advance(bar)
        )
    content = {"model": version.version, "photos_per_source": limit or "all", **report.to_dict()}
    skipped = [*(line for reading in readings for line in reading.skipped), *report.skipped]
    content["skipped"] = skipped
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    Console().print(report.table(f"{task}, {version}"))
    listed_photos = sum(reading.photos or len(reading.samples) for reading in readings)
    left_out = listed_photos - sum(len(reading.samples) for reading in readings) + len(report.skipped)
    print(f"{left_out} of {listed_photos} photos skipped")
    for line in skipped[:SHOWN]:
        print(f"  {line}")
    if len(skipped) > SHOWN:
        print(f"  {len(skipped) - SHOWN} more in report.json")
    print(f"written to {out / 'report.json'}")
