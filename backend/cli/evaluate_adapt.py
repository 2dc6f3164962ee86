"""`semsam evaluate adapt`: what learning at once is worth on annotated photos of something new."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backend.cli import context
from backend.cli.console import progress_bar, write_json
from backend.cli.options import ModelName, WeightsFile

if TYPE_CHECKING:
    from rich.console import Console

    from semsam_model.data.samples import Sample
    from semsam_model.network.model import SemanticSAM
    from semsam_model.text_encoder import TextEncoder


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
    model: ModelName = "mobile",
    weights: WeightsFile = None,
) -> None:
    """Replay photos as an annotator would label them; name other photos with 0, 1, 5, 20 examples a label."""
    from rich.console import Console

    from semsam_model.data.folder import read_samples
    from semsam_model.evaluation.few_shot import few_shot_table

    network, version = context.load_network(model, weights)
    encoder, console = context.open_text_encoder(), Console()
    given = read_samples(examples, source).samples
    content: dict[str, Any] = {"model": version.version, "photos_per_source": photos, "replay": {}, "few_shot": {}}
    for name in dict.fromkeys(sample.source for sample in given):
        annotated = [sample for sample in given if sample.source == name]
        if photos:
            content["replay"][name] = _replay(network, annotated, encoder, photos, console, f"{name}, {version}")
        if val is not None:
            asked = list(read_samples(val, [name]).samples)
            content["few_shot"][name] = _few_shot(network, asked, annotated, encoder)
    if content["few_shot"]:
        console.print(few_shot_table(content["few_shot"], f"top-1 / top-3 with k examples a label, {version}"))
    write_json(out / "adapt.json", content)
    print(f"written to {out / 'adapt.json'}")


def _replay(
    network: SemanticSAM, samples: list[Sample], encoder: TextEncoder, photos: int, console: Console, title: str
) -> dict[str, Any]:
    from semsam_model.data.folder import evenly
    from semsam_model.evaluation.replay import replay

    chosen = evenly(samples, photos)
    with progress_bar(len(chosen), "replay") as advance:
        result = replay(network, chosen, encoder, on_photo=advance)
    console.print(result.table(f"{title}, {result.photos} photos; percent, by the model alone -> with learning"))
    return {"photos": result.photos, "curve": result.curve(), "total": result.total(), "skipped": result.skipped}


def _few_shot(
    network: SemanticSAM, asked: list[Sample], examples: list[Sample] | None, encoder: TextEncoder
) -> dict[str, Any]:
    from semsam_model.evaluation.few_shot import few_shot_curve

    with progress_bar(len(asked) + len(examples or ()), "examples and photos to name") as advance:
        return dict(few_shot_curve(network, asked, encoder, examples=examples, on_photo=advance))


def few_shot(
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
