"""The `semsam` command: parses and calls. Heavy imports wait until a command needs them."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from backend.cli import adaptation as cli_learner
from backend.cli import evaluate_adapt as cli_adapt
from backend.cli import evaluate_photos as cli_photos
from backend.cli import finetuning as cli_training
from backend.cli import versions as cli_versions
from backend.cli.batch import batch
from backend.cli.segment import segment
from backend.cli.sync import sync
from semsam_model.errors import ConfigError, PromptError, SemsamError
from semsam_model.types import Box, Click, Prompt

if TYPE_CHECKING:
    from semsam_model.data.samples import Sample

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Assisted labeling with Semantic-SAM: one click, up to six masks from object to part.",
)
weights_app = typer.Typer(no_args_is_help=True, help="Convert or fetch published weights.")
app.add_typer(weights_app, name="weights")
evaluate_app = typer.Typer(no_args_is_help=True, help="Measure a model on annotated photos.")
app.add_typer(evaluate_app, name="evaluate")
cli_photos.add_to(evaluate_app)
evaluate_app.command()(cli_adapt.adapt)
app.command()(segment)
app.command()(batch)
data_app = typer.Typer(no_args_is_help=True, help="Look at training data, or make some.")
app.add_typer(data_app, name="data")
app.add_typer(cli_versions.app, name="versions")
app.add_typer(cli_learner.app, name="learner")
app.command("worker")(cli_training.work)
app.command("finetune")(cli_training.finetune)
app.command("jobs")(cli_training.list_jobs)

app.command()(sync)

ModelName = Annotated[str, typer.Option("--model", help="mobile, swin_t, swin_l, ...: a name in configs/model.")]
WeightsFile = Annotated[Path | None, typer.Option("--weights", help="Safetensors file; the embedded one for mobile.")]


def main() -> None:
    """Entry point: errors that semsam raises on purpose end as one line and exit code 1."""
    try:
        app()
    except SemsamError as error:
        print(f"semsam: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"semsam: {error.filename or 'file'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("semsam: stopped", file=sys.stderr)
        sys.exit(130)


def _numbers(text: str, count: int, option: str, form: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count:
        raise PromptError(f"{option} {text!r}: expected {form} in photo pixels, for example {option} {_EXAMPLE[count]}")
    return values


_EXAMPLE = {2: "320,213", 4: "100,80,400,300"}


def _prompt(points: list[str], negatives: list[str], boxes: list[str]) -> Prompt:
    clicks = []
    for option, texts, positive in (("--point", points, True), ("--not", negatives, False)):
        for text in texts:
            x, y = _numbers(text, 2, option, "X,Y")
            clicks.append(Click(x, y, positive))
    return Prompt(tuple(clicks), tuple(Box(*_numbers(b, 4, "--box", "X0,Y0,X1,Y1")) for b in boxes))


@app.command()
def click(
    photo: Annotated[Path, typer.Argument(help="PNG, JPEG, WebP, BMP or TIFF.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for masks, contact sheet and candidates.json.")],
    point: Annotated[list[str], typer.Option("--point", help="X,Y: a click on the object, photo pixels.")] = [],  # noqa: B006
    negative: Annotated[list[str], typer.Option("--not", help="X,Y: a click on what is not wanted.")] = [],  # noqa: B006
    box: Annotated[list[str], typer.Option("--box", help="X0,Y0,X1,Y1 around the object.")] = [],  # noqa: B006
    model: ModelName = "mobile",
    weights: WeightsFile = None,
    all_levels: Annotated[bool, typer.Option("--all-levels", help="All six levels of one prompt, raw.")] = False,
) -> None:
    """Segment what is under a click, without Label Studio."""
    prompt = _prompt(point, negative, box)
    if all_levels and (negative or len(point) + len(box) != 1):
        raise PromptError(
            "--all-levels: expected exactly one --point or --box and no --not: raw levels are of one prompt"
        )
    from backend.cli.drawing import write
    from backend.images import load_photo
    from backend.settings import load_settings
    from semsam_model.checkpoints.checkpoint import load_model
    from semsam_model.inference.predict import propose, raw_levels
    from semsam_model.inference.zoom import looker

    settings = load_settings()
    picture = load_photo(photo, max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels)
    network, version = load_model(model, weights, folder=settings.data_dir / "weights")
    embedding = network.encode(picture.rgb)
    if all_levels:
        candidates = raw_levels(network, embedding, prompt)
    else:
        candidates = propose(network, embedding, prompt, look=looker(network, picture.rgb))
    write(out, picture, prompt, candidates, version)
    for c in candidates:
        within = f"  part of {c.parent}" if c.parent else ""
        print(f"{c.rank}  level {c.level}  score {c.score:.2f}  {c.area} px{within}")
    print(f"written to {out}")


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="Settings file; see configs/backend.yaml.")] = None,
) -> None:
    """Start the Label Studio ML backend."""
    from backend.settings import load_settings
    from backend.web.server import serve as run

    environ = dict(os.environ)
    if host is not None:
        environ["SEMSAM_HOST"] = host
    if port is not None:
        environ["SEMSAM_PORT"] = str(port)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of each of its own parts
    run(load_settings(config, environ))


@weights_app.command()
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


@weights_app.command()
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


@weights_app.command()
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


@weights_app.command()
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


@weights_app.command()
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


@app.command()
def train(
    config: Annotated[Path, typer.Option("--config", help="configs/train/NAME.yaml")],
    out: Annotated[Path, typer.Option("--out", help="Run folder: state, weights, pictures, curves.")],
    data: Annotated[Path | None, typer.Option("--data", help="Folder with train/ and val/, see docs/data.md.")] = None,
    data_config: Annotated[
        Path | None, typer.Option("--data-config", help="Instead: a mixture, configs/data/NAME.yaml.")
    ] = None,
    root: Annotated[
        Path | None, typer.Option("--root", help="Where a mixture's paths start, and val/ lies; the current folder.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in --out stopped.")] = False,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N")] = "cpu",
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


@app.command("train-ranker")
def train_ranker(
    weights: Annotated[Path, typer.Option("--weights", help="Weights file whose network proposes; it stays as it is.")],
    data: Annotated[Path, typer.Option("--data", help="Folder with SOURCE.json and photos, see docs/data.md.")],
    out: Annotated[Path, typer.Option("--out", help="Weights file to write: the same network with the new ranker.")],
    per_source: Annotated[int, typer.Option(help="At most this many photos a source, evenly spaced.")] = 60,
    seed: Annotated[int, typer.Option(help="The same seed gives the same ranker.")] = 0,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N")] = "cpu",
    names: Annotated[bool, typer.Option(help="Let the sources' labels have a say; needs the text encoder.")] = True,
) -> None:
    """Learn which candidate to put first, for a trained network."""
    from rich.progress import Progress

    from backend.settings import load_settings
    from semsam_model.checkpoints.checkpoint import load, with_ranker
    from semsam_model.data.folder import evenly, read_samples
    from semsam_model.text_encoder import TextEncoder
    from semsam_model.training.ranker import fit_ranker

    samples = evenly(read_samples(data).samples, per_source)
    network, _ = load(weights, device=device)
    encoder = TextEncoder(load_settings().text_encoder) if network.name_head is not None and names else None
    with Progress() as progress:
        task = progress.add_task("photos", total=len(samples))
        ranker = fit_ranker(
            network,
            samples,
            per_source=None,
            encoder=encoder,
            seed=seed,
            on_photo=lambda: progress.advance(task),
        )
    card = {"ranker": {"photos": len(samples), "per_source": per_source, "seed": seed, "names": encoder is not None}}
    print(f"written to {out} as {with_ranker(weights, ranker, out, card=card)}")


@data_app.command("check")
def check_data(
    config: Annotated[Path, typer.Argument(help="configs/data/NAME.yaml")],
    out: Annotated[Path, typer.Option("--out", help="Folder for report.json and contact_sheet.png.")],
    root: Annotated[
        Path | None, typer.Option("--root", help="Where the file's paths start; the current folder.")
    ] = None,
) -> None:
    """Read a mixture once: counts, sizes, parts inside their wholes, labels, what is skipped, a contact sheet."""
    from rich.progress import Progress

    from semsam_model.data.check import check
    from semsam_model.data.mixture import read_mixture

    mixture = read_mixture(config, root)
    with Progress() as progress:
        task = progress.add_task("photos", total=len(mixture.samples))
        check(mixture, out, console=progress.console, on_photo=lambda: progress.advance(task))


@data_app.command("pack")
def pack_data(
    config: Annotated[Path, typer.Argument(help="configs/data/NAME.yaml")],
    out: Annotated[Path, typer.Option("--out", help="Empty folder for the tars and mixture.yaml.")],
    root: Annotated[
        Path | None, typer.Option("--root", help="Where the file's paths start; the current folder.")
    ] = None,
    shard_mb: Annotated[float, typer.Option(help="Largest size of a tar, MiB.")] = 60,
    longest_side: Annotated[
        int | None, typer.Option(min=64, help="Photos above this are made smaller, pixels; all kept when absent.")
    ] = None,
) -> None:
    """Pack a mixture into tars to train from elsewhere: semsam train --data-config OUT/mixture.yaml --root OUT."""
    from rich.progress import Progress

    from semsam_model.data.mixture import read_mixture
    from semsam_model.data.shards import pack_mixture

    mixture = read_mixture(config, root)
    with Progress() as progress:
        task = progress.add_task("photos", total=len(mixture.samples))
        packed = pack_mixture(
            mixture,
            out,
            shard_bytes=int(shard_mb * 2**20),
            longest_side=longest_side,
            on_photo=lambda: progress.advance(task),
        )
    for line in packed.skipped:
        print(f"left out: {line}")
    print(f"{packed.photos} photos in {len(packed.shards)} tars; train from {packed.mixture}")


@data_app.command("make")
def make_data(
    out: Annotated[Path, typer.Option("--out", help="Folder for synthetic.json and photos; see docs/data.md.")],
    count: Annotated[int, typer.Option(min=1, help="Scenes.")] = 100,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    size: Annotated[int, typer.Option(min=32, max=4096, help="Side, pixels.")] = 256,
) -> None:
    """Write made scenes of objects, parts and subparts with names."""
    from semsam_model.data.synthetic import write_scenes

    print(f"written to {write_scenes(out, count, seed=seed, size=(size, size))}")


def _photos(data: list[Path], limit: int | None) -> tuple[list[Sample], list[Sample], list[str]]:
    """Every photo of the folders, those to look at, and what could not be read."""
    from semsam_model.data.folder import evenly, read_samples

    readings = [read_samples(folder) for folder in data]
    every = [sample for reading in readings for sample in reading.samples]
    chosen = [sample for reading in readings for sample in evenly(reading.samples, limit)]
    return every, chosen, [line for reading in readings for line in reading.skipped]


@evaluate_app.command()
def clicks(
    data: Annotated[list[Path], typer.Argument(help="Folders with SOURCE.json and photos, see docs/data.md.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for report.json and report.html.")],
    model: ModelName = "mobile",
    weights: WeightsFile = None,
    limit: Annotated[int | None, typer.Option(help="At most this many photos a source, evenly spaced.")] = None,
    noc: Annotated[int, typer.Option(help="Photos a source on which one mask is corrected up to 20 times.")] = 8,
    grabcut: Annotated[int, typer.Option(help="Photos a source on which one mask is given to GrabCut.")] = 3,
    trained_on: Annotated[
        Path | None, typer.Option(help="Folder with the SOURCE.json of training: other sources are reported apart.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N")] = "cpu",
) -> None:
    """One click a mask: IoU of the best level, of the first candidate, and with the granularity told."""
    import json

    from rich.console import Console
    from rich.progress import Progress

    from backend.settings import load_settings
    from semsam_model.checkpoints.checkpoint import load_model
    from semsam_model.data.folder import read_samples
    from semsam_model.evaluation.clicks import evaluate_clicks
    from semsam_model.evaluation.clicks_report import draw_cases, page, tables, worst
    from semsam_model.evaluation.clicks_summary import summarise

    _, samples, skipped = _photos(data, limit)
    seen = None if trained_on is None else read_samples(trained_on).sources
    network, version = load_model(model, weights, folder=load_settings().data_dir / "weights", device=device)
    with Progress() as progress:
        task = progress.add_task("photos", total=len(samples))
        report = evaluate_clicks(
            network, samples, corrected=noc, grabcut=grabcut, on_photo=lambda: progress.advance(task)
        )
    report.skipped[:0] = skipped
    about = {"model": version.version, "ranker": "learned" if network.ranker else "none: by predicted IoU"}
    content = about | {"photos_per_source": limit or "all"} | summarise(report, seen)
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    (out / "report.html").write_text(
        page(content, draw_cases(network, samples, worst(report.clicks))), encoding="utf-8"
    )
    Console().print(*tables(content))
    print(f"written to {out / 'report.json'} and {out / 'report.html'}")


@evaluate_app.command()
def names(
    data: Annotated[list[Path], typer.Argument(help="Folders with SOURCE.json and photos, see docs/data.md.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for names.json.")],
    model: ModelName = "mobile",
    weights: WeightsFile = None,
    limit: Annotated[int | None, typer.Option(help="At most this many photos a source, evenly spaced.")] = None,
    few_shot: Annotated[bool, typer.Option(help="Also with 1, 5, 20 examples a label.")] = False,
    examples: Annotated[
        Path | None,
        typer.Option(help="Folder with other photos of the sources to take examples from; else the other half of DIR."),
    ] = None,
) -> None:
    """One click a named mask: how often the right label of its source is first, or among the first three."""
    import json

    from rich.console import Console
    from rich.progress import Progress

    from backend.settings import load_settings
    from semsam_model.checkpoints.checkpoint import load_model
    from semsam_model.evaluation.few_shot import few_shot_table
    from semsam_model.evaluation.names import evaluate_names
    from semsam_model.text_encoder import TextEncoder

    settings = load_settings()
    every, samples, skipped = _photos(data, limit)
    network, version = load_model(model, weights, folder=settings.data_dir / "weights")
    with Progress() as progress:
        task = progress.add_task("photos", total=len(samples))
        encoder = TextEncoder(settings.text_encoder)
        report = evaluate_names(network, samples, encoder, lists=every, on_photo=lambda: progress.advance(task))
    content: dict[str, Any] = {
        "model": version.version,
        "photos_per_source": limit or "all",
        "examples_per_label": 0,
    }
    content |= report.to_dict()
    content["skipped"] = [*skipped, *report.skipped]
    if few_shot or examples:
        content["few_shot"], without = cli_adapt.few_shot(network, samples, examples, encoder)
        content["skipped"] = [*skipped, *report.skipped, *without]
        Console().print(few_shot_table(content["few_shot"], "top-1 / top-3 with k examples a label, masks given"))
    out.mkdir(parents=True, exist_ok=True)
    (out / "names.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    Console().print(report.table(f"names, {version}, percent of masks"))
    print(f"written to {out / 'names.json'}")


@app.command()
def export(
    project: Annotated[int, typer.Option("--project", help="Id of the project in Label Studio.")],
    out: Annotated[Path, typer.Option("--out", help="Folder: new, empty, or with an earlier export.")],
    form: Annotated[
        Literal["coco", "sa1b", "labelstudio", "masks"], typer.Option("--format", help="See docs/export.md.")
    ] = "coco",
    origin: Annotated[
        str | None, typer.Option("--origin", help="Address of its Label Studio, where several have this project.")
    ] = None,
    images: Annotated[
        Literal["copy", "reference", "none"],
        typer.Option("--images", help="Copy the photos, point to where they lie, or only name them."),
    ] = "copy",
    complete: Annotated[
        bool, typer.Option("--complete", help="Everything visible was annotated: what has no mask is background.")
    ] = False,
) -> None:
    """Write a project's masks as COCO, SA-1B, Label Studio or PNG files, split into train and val."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from backend.corrections.photo_archive import open_photos
    from backend.corrections.queries import find_project, stream_regions
    from backend.export.run import export as run
    from backend.settings import load_settings
    from backend.store.database import open_store

    settings = load_settings()
    with contextlib.closing(open_store(settings)) as store:
        found = find_project(store, project, origin)
        columns = TextColumn("regions"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns) as progress:
            task = progress.add_task("regions", total=None)
            result = run(
                stream_regions(store, found.key),
                found,
                open_photos(settings),
                out,
                form=form,
                images=images,
                complete=complete,
                on_start=lambda total: progress.update(task, total=total),
                on_task=lambda regions: progress.advance(task, regions),
            )
    for split in result.tasks:
        print(f"{split:5}  {result.tasks[split]} photos, {result.regions[split]} regions")
    if result.left_out:
        print(f"left out: {result.left_out} regions whose photo could not be fetched yet; `semsam sync` tries again")
    if result.photos_missing:
        print(f"{result.photos_missing} photos are not in {settings.data_dir / 'photos'}: named, but not written")
    print(f"written to {out}")


@app.command()
def demo(
    port: Annotated[int, typer.Option(help="Port of Label Studio.")] = 8080,
    backend_port: Annotated[int, typer.Option(help="Port of the backend.")] = 9090,
    prepare: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Start nothing: make the project in LABEL_STUDIO_URL for the backend at URL."),
    ] = None,
) -> None:
    """Start Label Studio and the backend with a sample project, ready to click (`make run`)."""
    from backend.demo import run as demo
    from backend.settings import load_settings

    if prepare is None:
        demo.run(port=port, backend_port=backend_port)
        return
    settings = load_settings()
    project = demo.prepare(
        settings.label_studio_url, settings.label_studio_api_key or "", prepare, webhook_secret=settings.webhook_secret
    )
    print(f"project {project.id} with {len(project.tasks)} tasks is connected to {prepare}")


if __name__ == "__main__":
    main()
