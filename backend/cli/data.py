"""`semsam data ...`: training data are looked at, packed, made, and completed by a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backend.cli.shared import Device, MixtureFile, MixtureRoot, progress_bar

app = typer.Typer(no_args_is_help=True, help="Look at training data, or make some.")


@app.command("check")
def check_data(
    config: MixtureFile,
    out: Annotated[Path, typer.Option("--out", help="Folder for report.json and contact_sheet.png.")],
    root: MixtureRoot = None,
) -> None:
    """Read a mixture once: counts, sizes, parts inside their wholes, labels, what is skipped, a contact sheet."""
    from rich.console import Console

    from semsam_model.data.check import check_mixture
    from semsam_model.data.mixture import read_mixture

    mixture, console = read_mixture(config, root), Console()
    with progress_bar(len(mixture.samples), console=console) as advance:
        check_mixture(mixture, out, console=console, on_photo=advance)


@app.command("pack")
def pack_data(
    config: MixtureFile,
    out: Annotated[Path, typer.Option("--out", help="Empty folder for the tars and mixture.yaml.")],
    root: MixtureRoot = None,
    shard_mb: Annotated[float, typer.Option(help="Largest size of a tar, MiB.")] = 60,
    longest_side: Annotated[
        int | None, typer.Option(min=64, help="Photos above this are made smaller, pixels; all kept when absent.")
    ] = None,
) -> None:
    """Pack a mixture into tars to train from elsewhere: semsam train --data-config OUT/mixture.yaml --root OUT."""
    from semsam_model.data.mixture import read_mixture
    from semsam_model.data.shards import pack_mixture

    mixture, shard_bytes = read_mixture(config, root, added=True), int(shard_mb * 2**20)
    with progress_bar(len(mixture.samples)) as advance:
        packed = pack_mixture(mixture, out, shard_bytes=shard_bytes, longest_side=longest_side, on_photo=advance)
    for line in packed.skipped:
        print(f"left out: {line}")
    print(f"{packed.photos} photos in {len(packed.shards)} tars; train from {packed.mixture}")


@app.command("make")
def make_data(
    out: Annotated[Path, typer.Option("--out", help="Folder for synthetic.json and photos; see docs/train/data.md.")],
    count: Annotated[int, typer.Option(min=1, help="Scenes.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same scenes.")] = 0,
    size: Annotated[int, typer.Option(min=32, max=4096, help="Side, pixels.")] = 256,
) -> None:
    """Write synthetic scenes of objects, parts and subparts with names."""
    from semsam_model.data.synthetic import write_scenes

    print(f"written to {write_scenes(out, count, seed=seed, size=(size, size))}")


@app.command("complete")
def complete_data(
    config: MixtureFile,
    weights: Annotated[Path, typer.Option("--weights", help="Weights file whose network finds the masks.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for SOURCE.jsonl, a file a source, and mixture.yaml.")],
    root: MixtureRoot = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many photos a source, evenly spaced.")] = None,
    least_iou: Annotated[float, typer.Option(help="Of a mask that is added, predicted.")] = 0.6,
    least_stability: Annotated[float, typer.Option(help="Of a mask that is added.")] = 0.8,
    workers: Annotated[int, typer.Option(help="Processes that look at photos; 0: one, this one.")] = 0,
    device: Device = "cpu",
) -> None:
    """Add what annotators left out: sure and stable masks of photos marked partial. Goes on where it was stopped."""
    from semsam_model.checkpoints.checkpoint import load
    from semsam_model.training.completion import complete_mixture
    from semsam_model.training.left_out import CompletionSettings

    settings = CompletionSettings(least_iou=least_iou, least_stability=least_stability)
    network, version = load(weights, device=device)
    done = complete_mixture(
        network,
        config,
        out,
        weights=str(version),
        root=root,
        settings=settings,
        limit=limit,
        workers=workers,
        watch=lambda name, photos: progress_bar(photos, name),
    )
    for name, source in done.items():
        print(f"{name}: {source.masks} masks on {source.photos} photos")
        for line in source.skipped:
            print(f"left out: {line}")
    print(f"train from {out / 'mixture.yaml'}")
