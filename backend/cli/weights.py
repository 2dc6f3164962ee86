"""`semsam weights`: convert, fetch, pack and combine weights files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Convert or fetch published weights.")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN.pth", help="Published checkpoint.")],
    model: Annotated[str, typer.Option("--model", help="swin_t, swin_l or swin_l_many2one.")],
    out: Annotated[Path, typer.Option("--out", help="Safetensors file to write.")],
    keys: Annotated[bool, typer.Option("--keys", help="Also list every key and what became of it.")] = False,
) -> None:
    """Turn a published .pth into safetensors + config + digest, accounting for every key."""
    from rich.console import Console

    from semsam_model.checkpoints.published import convert as run

    report = run(source, model, out)
    if keys:
        for entry in report.entries:
            print(f"{entry.status:8} {entry.key}  {entry.note}".rstrip())
    Console().print(report)
    print(f"written to {out} as {report.version}")


@app.command()
def fetch(
    model: Annotated[str, typer.Argument(help="swin_t or swin_l.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder; the data folder's weights when not given.")] = None,
) -> None:
    """Download a published checkpoint (resumes), convert it, record its digest. Needs a network."""
    from rich.console import Console

    from backend.settings import load_settings
    from semsam_model.checkpoints.published import fetch as run

    report = run(model, out or load_settings().data_dir / "weights")
    Console().print(report)


@app.command()
def pack(
    source: Annotated[Path, typer.Argument(metavar="RUN.safetensors", help="Weights of a training run.")],
    model: Annotated[str, typer.Option("--model", help="Name in configs/model.")],
    out: Annotated[Path, typer.Option("--out", help="Safetensors file to write, half precision.")],
    card: Annotated[Path | None, typer.Option("--card", help="YAML with data, licences, command and figures.")] = None,
    ranker: Annotated[
        Path | None, typer.Option("--ranker", help="Weights file whose order of candidates still holds.")
    ] = None,
) -> None:
    """Make a weights file that can be served out of a training run."""
    from semsam_model.checkpoints.run_weights import pack as run
    from semsam_model.config import read_model_config, read_yaml

    version = run(source, read_model_config(model), out, card=read_yaml(card) if card else None, ranker_of=ranker)
    print(f"written to {out} as {version}")


@app.command()
def average(
    first: Annotated[Path, typer.Argument(metavar="FIRST", help="Weights of a training run, or packed ones.")],
    second: Annotated[Path, typer.Argument(metavar="SECOND", help="Others that were trained from the same.")],
    out: Annotated[Path, typer.Option("--out", help="Safetensors file to write, to be packed.")],
    share: Annotated[float, typer.Option("--share", help="Of the second, 0 to 1.")] = 0.5,
    only: Annotated[
        str, typer.Option("--only", help="Average weights that begin so; the others are the first's.")
    ] = "",
) -> None:
    """The average of two training runs from one start: often better than both on what neither was trained on."""
    from semsam_model.checkpoints.run_weights import average as run

    run(first, second, share, out, only)
    print(f"written to {out}")


@app.command()
def graft(
    clicks: Annotated[Path, typer.Argument(metavar="CLICKS", help="Weights of a training run, or packed ones.")],
    queries: Annotated[Path, typer.Argument(metavar="QUERIES", help="Others, whose object queries are wanted.")],
    model: Annotated[str, typer.Option("--model", help="Name in configs/model, with generic_decoder_layers.")],
    out: Annotated[Path, typer.Option("--out", help="Safetensors file to write, to be trained on or packed.")],
) -> None:
    """Clicks of one network, and object queries of another with the decoders that they learned with."""
    from semsam_model.checkpoints.run_weights import graft as run
    from semsam_model.config import read_model_config

    run(clicks, queries, read_model_config(model), out)
    print(f"written to {out}")
