"""`semsam batch`: pre-annotation of a project, a folder, a list of files or a prefix of an object store."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backend.cli.shared import opened_store
from backend.errors import BackendError

if TYPE_CHECKING:
    from backend.batch.run import Annotate
    from backend.batch.sources import FailedItem, Item, PhotoFile, PhotoReader
    from backend.label_studio.label_config import LabelConfig
    from backend.settings import Settings
    from backend.store.database import Store
    from semsam_model.network.query_calibration import Curve

PROJECT_RATE = 20.0  #: predictions a second; one process of Label Studio can write more, annotators need the rest


def batch(
    project: Annotated[int | None, typer.Option(help="Its id in Label Studio.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Photos in it and below.")] = None,
    files: Annotated[str | None, typer.Option(help="A list: one path or URL a line; - is standard input.")] = None,
    prefix: Annotated[str | None, typer.Option(help="s3://bucket/path/ (gs, az, file): photos below it.")] = None,
    out: Annotated[Path, typer.Option(help="Tasks with predictions, JSON lines.")] = Path("predictions.jsonl"),
    url_prefix: Annotated[
        str | None, typer.Option(help="Label Studio's address of the folder, e.g. /data/local-files/?d=photos/")
    ] = None,
    labeling: Annotated[Path | None, typer.Option(help="Labeling config; configs/labeling.xml.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, or actors of Ray, each with a model of its own.")] = 1,
    ray: Annotated[str | None, typer.Option(help="A Ray cluster: local, auto or HOST:PORT; needs ray[data].")] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.01, help="Predictions written in a second, at most; into a project 20.")
    ] = None,
) -> None:
    """Annotate every photo that has no prediction of the live version. Run it again to go on after a stop.

    Name one of --project, --folder, --files and --prefix. A project's predictions go to Label Studio, others to --out.
    """
    from rich.progress import Progress

    from backend.batch.run import read_config, run
    from backend.batch.sources import PhotoReader, photo_items
    from backend.batch.task_lines import TaskLines
    from backend.inference.loaded import answering_name
    from backend.versions.registry import open_registry
    from semsam_model.config import config_root

    if [project, folder, files, prefix].count(None) != 3:
        raise BackendError("batch: expected one of --project, --folder, --files and --prefix")
    if url_prefix is not None and folder is None:
        raise BackendError("batch: --url-prefix goes with --folder")
    with opened_store() as (settings, store):
        live = open_registry(settings, store).live().version
        name = answering_name(settings, live.version)
        worth = None if project is None else _worth(store, project, name)
    with ExitStack() as stack:
        if project is not None:
            config, items = _project_items(settings, project, name)
        else:
            config = read_config((labeling or config_root() / "labeling.xml").read_text(encoding="utf-8"))
            photos = stack.enter_context(_photos(PhotoReader(settings), folder, files, prefix, url_prefix))
            items = photo_items(photos, stack.enter_context(closing(TaskLines(out, config, name))))
        annotate = stack.enter_context(open_executor(settings, live.weights, config, workers, ray, worth))
        progress = stack.enter_context(Progress())
        bar = progress.add_task("photos", total=None)
        summary = run(
            items,
            annotate,
            seconds_between=1 / (rate or (math.inf if project is None else PROJECT_RATE)),
            on_failure=lambda line: progress.console.print(line, markup=False),
            on_photo=lambda s: progress.update(bar, completed=s.done + s.written + s.failed),
        )
    print(
        f"{name}: {summary.written} photos annotated with {summary.regions} regions,"
        f" {summary.done} were done before, {summary.failed} failed"
    )


def _project_items(
    settings: Settings, project: int, version: str
) -> tuple[LabelConfig, Iterator[Item | FailedItem | None]]:
    from backend.batch.run import read_config
    from backend.batch.sources import task_items
    from backend.label_studio.client import LabelStudio

    label_studio = LabelStudio(settings)
    config = read_config(str(label_studio.get_project(project).get("label_config") or ""))
    return config, task_items(label_studio, project, config, version)


def _worth(store: Store, project: int, name: str) -> Curve | None:
    """What scores of the concept model in a version's name were worth in a project; None where that is not known."""
    from backend.adaptation.concepts import fit_worth
    from backend.corrections.queries import list_projects

    concepts = name.partition("@")[2]
    known = [each.key for each in list_projects(store) if each.key.project == project]
    return fit_worth(store, known[0], concepts) if concepts and len(known) == 1 else None


@contextmanager
def _photos(
    reader: PhotoReader, folder: Path | None, files: str | None, prefix: str | None, url_prefix: str | None
) -> Iterator[Iterator[PhotoFile]]:
    """The photos of whichever source was named."""
    from backend.batch import sources

    if folder is not None:
        yield sources.in_folder(folder, reader, url_prefix)
    elif files == "-":
        yield sources.in_list(sys.stdin.buffer, reader)
    elif files is not None:
        with Path(files).open("rb") as lines:
            yield sources.in_list(lines, reader)
    else:
        assert prefix is not None
        yield sources.under_prefix(prefix, reader)


def open_executor(
    settings: Settings, weights: Path, config: LabelConfig, workers: int, ray: str | None, worth: Curve | None = None
) -> AbstractContextManager[Annotate]:
    """Where photos are annotated: on the Ray cluster at the address `ray`, in worker processes, or here.

    worth: as `Annotator`.
    """
    from backend.batch.local import in_this_process, in_worker_processes
    from backend.batch.ray_cluster import on_ray

    if ray is not None:
        return on_ray(ray, settings, weights, config, workers, worth=worth)
    if workers > 1:
        return in_worker_processes(settings, weights, config, workers, worth)
    return in_this_process(settings, weights, config, worth)
