"""`semsam batch`: pre-annotation of a project, a folder, a list of files or a prefix of an object store."""

from __future__ import annotations

import contextlib
import math
import sys
from pathlib import Path
from typing import Annotated

import typer

PROJECT_RATE = 20.0  #: a second; of what one process of Label Studio can do, some is left to annotators


def batch(
    project: Annotated[int | None, typer.Option(help="Its id in Label Studio.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Pictures in it and below.")] = None,
    files: Annotated[str | None, typer.Option(help="A list: one path or URL a line; - is standard input.")] = None,
    prefix: Annotated[str | None, typer.Option(help="s3://bucket/path/ (gs, az, file): pictures below it.")] = None,
    out: Annotated[Path, typer.Option(help="Tasks with predictions, JSON lines.")] = Path("predictions.jsonl"),
    url_prefix: Annotated[
        str | None, typer.Option(help="What Label Studio finds the folder under, e.g. /data/local-files/?d=photos/")
    ] = None,
    labeling: Annotated[Path | None, typer.Option(help="Labeling config; configs/labeling.xml.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, or actors of Ray, each with a model of its own.")] = 1,
    ray: Annotated[str | None, typer.Option(help="A Ray cluster: local, auto or HOST:PORT; needs ray[data].")] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.01, help="Predictions written in a second, at most; into a project 20.")
    ] = None,
) -> None:
    """Annotate every picture that has no prediction of the live version. Run it again to go on after a stop.

    Name one of --project, --folder, --files and --prefix. A project's predictions go to Label Studio, others to --out.
    """
    from rich.progress import Progress

    from backend.batch import run as job
    from backend.batch import sources
    from backend.batch.local import in_process, processes
    from backend.batch.ray_cluster import on_ray
    from backend.batch.task_lines import TaskLines
    from backend.errors import BackendError
    from backend.label_studio.client import LabelStudio
    from backend.settings import load_settings
    from backend.store.database import open_store
    from backend.versions.registry import open_registry
    from semsam_model.config import config_root

    if [project, folder, files, prefix].count(None) != 3:
        raise BackendError("batch: expected one of --project, --folder, --files and --prefix")
    if url_prefix is not None and folder is None:
        raise BackendError("batch: --url-prefix goes with --folder")
    settings = load_settings()
    with contextlib.closing(open_store(settings)) as store:
        live = open_registry(settings, store).live().version
    with contextlib.ExitStack() as stack:
        if project is not None:
            label_studio = LabelStudio(settings)
            config = job.read_config(str(label_studio.get_project(project).get("label_config") or ""))
            items = sources.tasks_of(label_studio, project, config, live.version)
        else:
            config = job.read_config((labeling or config_root() / "labeling.xml").read_text(encoding="utf-8"))
            reader = sources.Reader(settings)
            if folder is not None:
                pictures = sources.in_folder(folder, reader, url_prefix)
            elif files is not None:
                lines = sys.stdin.buffer if files == "-" else stack.enter_context(Path(files).open("rb"))
                pictures = sources.in_list(lines, reader)
            else:
                assert prefix is not None
                pictures = sources.under_prefix(prefix, reader)
            lines_out = stack.enter_context(contextlib.closing(TaskLines(out, config, live.version)))
            items = sources.missing(pictures, lines_out)
        if ray is not None:
            executor = on_ray(ray, settings, live.weights, config, workers)
        elif workers > 1:
            executor = processes(settings, live.weights, config, workers)
        else:
            executor = in_process(settings, live.weights, config)
        annotate = stack.enter_context(executor)
        progress = stack.enter_context(Progress())
        bar = progress.add_task("pictures", total=None)
        summary = job.run(
            items,
            annotate,
            seconds_between=1 / (rate or (math.inf if project is None else PROJECT_RATE)),
            tell=lambda line: progress.console.print(line, markup=False),
            on_picture=lambda s: progress.update(bar, completed=s.done + s.written + s.failed),
        )
    print(
        f"{live.version}: {summary.written} pictures annotated with {summary.regions} regions,"
        f" {summary.done} were done before, {summary.failed} failed"
    )
