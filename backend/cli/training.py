"""`semsam train`, `train-...` and `weights ...`: from annotated photos to weights that can be served."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backend.cli.shared import (
    Device,
    MixtureFile,
    MixtureRoot,
    open_text_encoder,
    print_tables,
    progress_bar,
    with_engine,
)
from semsam_model.errors import ConfigError

weights_app = typer.Typer(no_args_is_help=True, help="Convert or fetch published weights.")


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
    workers: Annotated[int, typer.Option(help="Processes that click beside each other; 0: one, this one.")] = 0,
    engine: Annotated[
        str | None, typer.Option(help="Order what this mask engine proposes, described by the weights; see engines.md.")
    ] = None,
) -> None:
    """Learn which candidate to put first, for a trained network."""
    from semsam_model.checkpoints.checkpoint import load, with_ranker
    from semsam_model.data.folder import evenly, read_samples
    from semsam_model.training.ranker import fit_ranker

    samples = evenly(read_samples(data).samples, per_source)
    network, _ = load(weights, device=device)
    answering, name = with_engine(network, engine, device)
    encoder = open_text_encoder() if network.name_head is not None and names else None
    with progress_bar(len(samples)) as advance:
        ranker = fit_ranker(
            answering, samples, per_source=None, encoder=encoder, seed=seed, workers=workers, on_photo=advance
        )
    about = {"photos": len(samples), "per_source": per_source, "seed": seed, "names": encoder is not None}
    card = {"ranker": about if name is None else {**about, "engine": name}}
    print(f"written to {out} as {with_ranker(weights, ranker, out, card=card)}")


def train_names(
    config: MixtureFile,
    weights: Annotated[Path, typer.Option("--weights", help="Weights file whose masks are named; they stay.")],
    out: Annotated[Path, typer.Option("--out", help="Weights file to write: the same masks with other names.")],
    root: MixtureRoot = None,
    photos: Annotated[int, typer.Option(min=1, help="Photos, drawn from the sources by their weights.")] = 2000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same names.")] = 0,
    device: Device = "cpu",
    workers: Annotated[int, typer.Option(help="Processes that click beside each other; 0: one, this one.")] = 0,
) -> None:
    """Learn names of masks, for a trained network; `train-ranker` comes after it, because the order reads names."""
    from semsam_model.checkpoints.checkpoint import load, with_tensors
    from semsam_model.data.mixture import read_mixture
    from semsam_model.training.names import fit_names

    mixture, (network, _), encoder = read_mixture(config, root), load(weights, device=device), open_text_encoder()
    with progress_bar(photos) as advance:
        changed = fit_names(network, mixture, encoder, photos=photos, seed=seed, workers=workers, on_photo=advance)
    card = {"names": {"photos": photos, "seed": seed}}
    print(f"written to {out} as {with_tensors(weights, changed, out, card=card)}")


def refiner_answers(
    config: MixtureFile,
    weights: Annotated[Path, typer.Option("--weights", help="Weights file whose answers the refiner is to correct.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the answers, a file a photo, about 1 MB each.")],
    root: MixtureRoot = None,
    photos: Annotated[int, typer.Option(min=1, help="Photos, drawn from the sources by their weights.")] = 1000,
    part: Annotated[int, typer.Option(min=0, help="Of several processes, which one this is: 0, 1, ...")] = 0,
    parts: Annotated[int, typer.Option(min=1, help="How many processes share the photos.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same photos.")] = 0,
    device: Device = "cpu",
) -> None:
    """Click masks of annotated photos and keep the answers, for `train-refiner`. Goes on where it was stopped."""
    from semsam_model.checkpoints.checkpoint import load
    from semsam_model.data.mixture import read_mixture
    from semsam_model.training.refiner_answers import collect_answers

    mixture, (network, _) = read_mixture(config, root), load(weights, device=device)
    with progress_bar(photos // parts) as advance:
        made = collect_answers(network, mixture, out, photos=photos, part=(part, parts), seed=seed, on_photo=advance)
    print(f"{made} photos answered, in {out}")


def train_refiner(
    config: MixtureFile,
    answers: Annotated[Path, typer.Option("--answers", help="Folder of `refiner-answers`.")],
    start: Annotated[Path, typer.Option("--start", help="Weights file whose backbone the refiner starts from.")],
    out: Annotated[Path, typer.Option("--out", help="Run folder: state and refiner.safetensors.")],
    root: MixtureRoot = None,
    steps: Annotated[int, typer.Option(min=1, help="In all.")] = 3000,
    batch: Annotated[int, typer.Option(min=1, help="Examples a step.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of the examples.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in --out stopped.")] = False,
    minutes: Annotated[float | None, typer.Option(help="Save and stop after so much time; --resume goes on.")] = None,
) -> None:
    """Train the network that corrects masks; `semsam weights add-refiner` puts it into a weights file."""
    from semsam_model.checkpoints.run_weights import read_network
    from semsam_model.data.mixture import read_mixture
    from semsam_model.training.refiner import WEIGHTS, RefinerRun, RefinerSettings, new_refiner, train_refiner
    from semsam_model.training.refiner_answers import answer_files
    from semsam_model.training.refiner_examples import Material

    run = RefinerRun(new_refiner(read_network(start), seed), RefinerSettings(steps, batch, seed), out)
    if resume:
        run.load()
    done = train_refiner(run, Material(answer_files(answers), read_mixture(config, root)), minutes=minutes)
    print(f"{done} of {steps} steps done; {out / WEIGHTS}")


def train_borders(
    weights: Annotated[Path, typer.Option("--weights", help="Weights file whose network stays as it is.")],
    data: Annotated[Path, typer.Option("--data", help="Folder with SOURCE.json and photos, see docs/train/data.md.")],
    out: Annotated[Path, typer.Option("--out", help="Weights file to write: the same with the learned borders.")],
    per_source: Annotated[int, typer.Option(help="At most this many photos a source, evenly spaced.")] = 12,
    seed: Annotated[int, typer.Option(help="The same seed gives the same borders.")] = 0,
    device: Device = "cpu",
) -> None:
    """Learn which regions of a photo belong together, for a trained network."""
    from semsam_model.checkpoints.checkpoint import load, with_borders
    from semsam_model.data.folder import evenly, read_samples
    from semsam_model.training.borders import fit_borders

    samples = evenly(read_samples(data).samples, per_source)
    network, _ = load(weights, device=device)
    with progress_bar(len(samples)) as advance:
        cost = fit_borders(network, samples, per_source=None, seed=seed, on_photo=advance)
    card = {"borders": {"photos": len(samples), "per_source": per_source, "seed": seed}}
    print(f"written to {out} as {with_borders(weights, cost, out, card=card)}")


@weights_app.command("convert")
def convert_weights(
    source: Annotated[Path, typer.Argument(metavar="IN.pth", help="Published checkpoint.")],
    model: Annotated[str, typer.Option("--model", help="swin_t, swin_l or swin_l_many2one.")],
    out: Annotated[Path, typer.Option("--out", help="Safetensors file to write.")],
    keys: Annotated[bool, typer.Option("--keys", help="Also list every key and what became of it.")] = False,
) -> None:
    """Turn a published .pth into safetensors + config + digest, accounting for every key."""
    from semsam_model.checkpoints.published import convert

    report = convert(source, model, out)
    if keys:
        for entry in report.entries:
            print(f"{entry.status:8} {entry.key}  {entry.note}".rstrip())
    print_tables(report)
    print(f"written to {out} as {report.version}")


@weights_app.command("fetch")
def fetch_weights(
    model: Annotated[str, typer.Argument(help="swin_t or swin_l.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder; the data folder's weights when not given.")] = None,
) -> None:
    """Download a published checkpoint (resumes), convert it, record its digest. Needs a network."""
    from backend.settings import load_settings
    from semsam_model.checkpoints.published import fetch

    print_tables(fetch(model, out or load_settings().data_dir / "weights"))


@weights_app.command("pack")
def pack_weights(
    source: Annotated[Path, typer.Argument(metavar="RUN.safetensors", help="Weights of a training run.")],
    model: Annotated[str, typer.Option("--model", help="Name in configs/model.")],
    out: Annotated[Path, typer.Option("--out", help="Safetensors file to write, half precision.")],
    card: Annotated[Path | None, typer.Option("--card", help="YAML with data, licences, command and figures.")] = None,
    ranker: Annotated[
        Path | None, typer.Option("--ranker", help="Weights file whose order of candidates still holds.")
    ] = None,
) -> None:
    """Make a weights file that can be served out of a training run."""
    from semsam_model.checkpoints.run_weights import pack
    from semsam_model.config import read_model_config, read_yaml

    version = pack(source, read_model_config(model), out, card=read_yaml(card) if card else None, ranker_of=ranker)
    print(f"written to {out} as {version}")


@weights_app.command("add-refiner")
def add_refiner(
    source: Annotated[Path, typer.Argument(metavar="WEIGHTS", help="Weights file that can be served.")],
    refiner: Annotated[Path, typer.Option("--refiner", help="Of `semsam train-refiner`, or a weights file with one.")],
    out: Annotated[Path, typer.Option("--out", help="Weights file to write: the same network with this refiner.")],
    card: Annotated[Path | None, typer.Option("--card", help="YAML file: added to the card of WEIGHTS.")] = None,
) -> None:
    """Let further clicks correct the mask: put a trained refiner into a weights file."""
    from semsam_model.checkpoints.checkpoint import with_refiner
    from semsam_model.checkpoints.run_weights import read_refiner
    from semsam_model.config import read_yaml

    version = with_refiner(source, read_refiner(refiner), out, card=read_yaml(card) if card else None)
    print(f"written to {out} as {version}")


@weights_app.command("average")
def average_weights(
    first: Annotated[Path, typer.Argument(metavar="FIRST", help="Weights of a training run, or packed ones.")],
    second: Annotated[Path, typer.Argument(metavar="SECOND", help="Others that were trained from the same.")],
    out: Annotated[Path, typer.Option("--out", help="Safetensors file to write, to be packed.")],
    share: Annotated[float, typer.Option("--share", help="Of the second, 0 to 1.")] = 0.5,
    only: Annotated[
        str, typer.Option("--only", help="Average weights that begin so; the others are the first's.")
    ] = "",
) -> None:
    """The average of two training runs from one start: often better than both on what neither was trained on."""
    from semsam_model.checkpoints.run_weights import average

    average(first, second, share, out, only)
    print(f"written to {out}")


@weights_app.command("blend")
def blend_weights(
    packed: Annotated[Path, typer.Argument(metavar="PACKED", help="Weights file that can be served.")],
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Weights of a training run that began with it.")],
    out: Annotated[Path, typer.Option("--out", help="Weights file to write, with all that PACKED has.")],
    share: Annotated[float, typer.Option("--share", help="Of the run, 0 to 1.")] = 0.5,
    only: Annotated[str, typer.Option("--only", help="Weights that begin so; the others are PACKED's.")] = "",
    card: Annotated[Path | None, typer.Option("--card", help="YAML file: added to the card of PACKED.")] = None,
) -> None:
    """As `average`, for a file that is served: its order of candidates, refiner, calibration and card stay."""
    from semsam_model.checkpoints.run_weights import blend
    from semsam_model.config import read_yaml

    version = blend(packed, run, share, out, only, card=read_yaml(card) if card else None)
    print(f"written to {out} as {version}")


@weights_app.command("graft")
def graft_weights(
    clicks: Annotated[Path, typer.Argument(metavar="CLICKS", help="Weights of a training run, or packed ones.")],
    queries: Annotated[Path, typer.Argument(metavar="QUERIES", help="Others, whose object queries are wanted.")],
    model: Annotated[str, typer.Option("--model", help="Name in configs/model, with generic_decoder_layers.")],
    out: Annotated[Path, typer.Option("--out", help="Safetensors file to write, to be trained on or packed.")],
) -> None:
    """Clicks of one network, and object queries of another with the decoders that they learned with."""
    from semsam_model.checkpoints.run_weights import graft
    from semsam_model.config import read_model_config

    graft(clicks, queries, read_model_config(model), out)
    print(f"written to {out}")
