"""`semsam train` and `semsam train-ranker`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backend.cli.console import progress_bar
from backend.cli.context import open_text_encoder
from backend.cli.options import Device
from semsam_model.errors import ConfigError


def train(
    config: Annotated[Path, typer.Option("--config", help="configs/train/NAME.yaml")],
    out: Annotated[Path, typer.Option("--out", help="Run folder: state, weights, previews, curves.")],
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder with train/ and val/, see docs/train/data.md.")
    ] = None,
    data_config: Annotated[
        Path | None, typer.Option("--data-config", help="Instead: a mixture, configs/data/NAME.yaml.")
    ] = None,
    root: Annotated[
        Path | None, typer.Option("--root", help="Where a mixture's paths start, and val/ lies; the current folder.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in --out stopped.")] = False,
    device: Device = "cpu",
    minutes: Annotated[
        float | None, typer.Option(help="Save and stop after so much time, start included; --resume goes on.")
    ] = None,
    backbone: Annotated[Path | None, typer.Option("--backbone-weights", help="Features to start from.")] = None,
) -> None:
    """Train a model. Ctrl-C saves; --resume continues exactly."""
    if (data is None) == (data_config is None):
        raise ConfigError("train: expected either --data DIR or --data-config FILE with --root DIR")
    if data is not None and root is not None:
        raise ConfigError("train: --root goes with --data-config; --data says where train/ and val/ are")
    from semsam_model.training.loop import train_from_config

    train_from_config(
        config,
        data=data or root or Path(),
        mixture=data_config,
        out=out,
        resume=resume,
        device=device,
        minutes=minutes,
        backbone_weights=backbone,
    )


def train_ranker(
    weights: Annotated[Path, typer.Option("--weights", help="Weights file whose network proposes; it stays as it is.")],
    data: Annotated[Path, typer.Option("--data", help="Folder with SOURCE.json and photos, see docs/train/data.md.")],
    out: Annotated[Path, typer.Option("--out", help="Weights file to write: the same network with the new ranker.")],
    per_source: Annotated[int, typer.Option(help="At most this many photos a source, evenly spaced.")] = 60,
    seed: Annotated[int, typer.Option(help="The same seed gives the same ranker.")] = 0,
    device: Device = "cpu",
    names: Annotated[bool, typer.Option(help="Let the sources' labels have a say; needs the text encoder.")] = True,
) -> None:
    """Learn which candidate to put first, for a trained network."""
    from semsam_model.checkpoints.checkpoint import load, with_ranker
    from semsam_model.data.folder import evenly, read_samples
    from semsam_model.training.ranker import fit_ranker

    samples = evenly(read_samples(data).samples, per_source)
    network, _ = load(weights, device=device)
    encoder = open_text_encoder() if network.name_head is not None and names else None
    with progress_bar(len(samples)) as advance:
        ranker = fit_ranker(network, samples, per_source=None, encoder=encoder, seed=seed, on_photo=advance)
    card = {"ranker": {"photos": len(samples), "per_source": per_source, "seed": seed, "names": encoder is not None}}
    print(f"written to {out} as {with_ranker(weights, ranker, out, card=card)}")
