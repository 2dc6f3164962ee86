"""`semsam batch`: pre-annotation of a project or a folder. Parses and calls."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer


def batch(
    project: Annotated[int | None, typer.Option(help="Its id in Label Studio.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Pictures, instead of a project.")] = None,
    out: Annotated[Path, typer.Option(help="JSON lines, for a folder.")] = Path("predictions.jsonl"),
    labeling: Annotated[Path | None, typer.Option(help="Labeling config for a folder; configs/labeling.xml.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, each with a model of its own.")] = 1,
    rate: Annotated[float, typer.Option(min=0.01, help="Predictions written in a second, at most.")] = 20.0,
) -> None:
    """Annotate every picture that has no prediction of the live version. Run it again to go on after a stop."""
    from rich.progress import Progress

    from backend import batch as job
    from backend import batch_sources as sources
    from backend.errors import BackendError
    from backend.labelstudio import LabelStudio
    from backend.registry import open_registry
    from backend.settings import load_settings
    from backend.store import open_store
    from semsam_model.config import config_root

    if (project is None) == (folder is None):
        raise BackendError("semsam batch: expected either --project or --folder")
    settings = load_settings()
    with contextlib.closing(open_store(settings)) as store:
        live = open_registry(settings, store).live().version
    if project is not None:
        label_studio = LabelStudio(settings)
        config = job.read_config(str(label_studio.get_project(project).get("label_config") or ""))
        items = sources.tasks_of(label_studio, project, config, live.version)
    else:
        assert folder is not None
        config = job.read_config((labeling or config_root() / "labeling.xml").read_text(encoding="utf-8"))
        items = sources.pictures_of(folder, out, live.version, settings.max_image_bytes)
    with contextlib.ExitStack() as stack:
        annotate = stack.enter_context(
            job.in_process(settings, live.weights, config)
            if workers == 1
            else job.processes(settings, live.weights, config, workers)
        )
        progress = stack.enter_context(Progress())
        bar = progress.add_task("pictures", total=None)
        summary = job.run(
            items,
            annotate,
            seconds_between=1 / rate,
            tell=lambda line: progress.console.print(line, markup=False),
            on_picture=lambda s: progress.update(bar, completed=s.done + s.written + s.failed),
        )
    print(
        f"{live.version}: {summary.written} pictures annotated with {summary.regions} regions,"
        f" {summary.done} were done before, {summary.failed} failed"
    )
