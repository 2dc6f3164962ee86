"""`semsam sync`, `settle`, `export` and `learner ...`: what the store keeps of projects in Label Studio."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from backend.cli.shared import Origin, Project, opened_store, project_key
from backend.errors import NotFound, StoreError
from semsam_model.errors import SemsamError

if TYPE_CHECKING:
    from backend.corrections.archive import PhotoArchive
    from backend.label_studio.client import LabelStudio
    from backend.records import ProjectKey, StoredProject
    from backend.settings import Settings
    from backend.store.database import Store

learner_app = typer.Typer(no_args_is_help=True, help="Learning at once: show, on, off, reset.")


def sync(
    project: Annotated[
        int | None, typer.Option(help="Its id in Label Studio; all that are known if not given.")
    ] = None,
    origin: Origin = None,
    everything: Annotated[bool, typer.Option("--all", help="Read tasks that did not change, too.")] = False,
) -> None:
    """Fetch corrections that no webhook brought, mark what was deleted, keep the photos.

    A project that fails is named, and the others go on; the exit code is 1 then.
    """
    from backend.corrections.archive import open_photos
    from backend.corrections.inbox import process_inbox
    from backend.corrections.queries import list_projects
    from backend.label_studio.client import LabelStudio

    failed = 0
    with opened_store() as (settings, store):
        label_studio, photos = LabelStudio(settings), open_photos(settings)
        process_inbox(store)
        stored = list_projects(store)
        chosen = _chosen(stored, settings, project, origin)
        missed = {each.key for each in stored if each.missed_at is not None}
        for key in chosen:
            try:
                _compare(store, label_studio, photos, key, everything)
            except NotFound as error:
                # known to be missing, and asked for with all others: that it is still missing is no failure
                still_missing = project is None and key in missed
                failed += not still_missing
                print(f"project {key}: {'still not there' if still_missing else 'failed'}: {error}", file=sys.stderr)
            except SemsamError as error:
                failed += 1
                print(f"project {key}: failed: {error}", file=sys.stderr)
    if failed:
        print(f"{failed} of {len(chosen)} projects failed", file=sys.stderr)
        raise typer.Exit(1)


def _chosen(
    stored: Sequence[StoredProject], settings: Settings, project: int | None, origin: str | None
) -> list[ProjectKey]:
    """The project that was named, known or not, or all that are known. Raises StoreError."""
    from backend.label_studio.servers import is_same_server, origin_of
    from backend.records import ProjectKey

    stored = [each for each in stored if origin is None or is_same_server(origin, each.key.origin)]
    if project is None:
        known = [each.key for each in stored if not each.is_final]
        if not known:
            raise StoreError("no project is known yet: name one with --project")
        return known
    here = [each.key for each in stored if each.key.project == project]
    if len(here) > 1:
        raise StoreError(f"project {project}: on several servers; name one with --origin {here[0].origin}")
    return here or [ProjectKey(origin or str(origin_of(settings.label_studio_url)), project)]


def _compare(store: Store, label_studio: LabelStudio, photos: PhotoArchive, key: ProjectKey, everything: bool) -> None:
    """Bring one project up to date and print what changed. Raises SemsamError."""
    from rich.progress import Progress

    from backend.corrections.sync import bring_up_to_date

    with Progress(transient=True) as progress:
        bar = progress.add_task(f"project {key.project}", total=None)
        synced, photos_fetched = bring_up_to_date(
            store,
            label_studio,
            photos,
            key,
            everything=everything,
            on_task=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    missing = f", {photos_fetched.failed} could not be" if photos_fetched.failed else ""
    print(f"project {key}: {synced}; {photos_fetched.fetched} photos fetched{missing}")
    for problem in synced.problems:
        print(f"  {problem}")


def settle(
    days: Annotated[
        float | None, typer.Option(min=0, help="Age of what is settled; the setting suggestion_days if not given.")
    ] = None,
    compact: Annotated[
        bool, typer.Option("--compact", help="Then give the room back to the disk; nobody can write meanwhile.")
    ] = False,
) -> None:
    """Delete what was suggested and became no region, but for what is new; the running backend does it by itself.

    Of what became regions the other candidates go, after a day at most.
    """
    from datetime import timedelta

    from backend.corrections.settling import settle as settle_some

    with opened_store() as (settings, store):
        if days is None and not settings.suggestion_days:
            raise StoreError("settle: suggestion_days is 0, which keeps everything; name an age with --days")
        total = sum(settle_some(store, timedelta(days=settings.suggestion_days if days is None else days)))
        print(f"{total} suggestions settled")
        if compact:
            store.compact()


def export(
    project: Project,
    out: Annotated[Path, typer.Option("--out", help="Folder: new, empty, or with an earlier export.")],
    form: Annotated[
        Literal["coco", "sa1b", "labelstudio", "masks", "yolo"],
        typer.Option("--format", help="See docs/run/export.md."),
    ] = "coco",
    origin: Origin = None,
    images: Annotated[
        Literal["copy", "reference", "none"],
        typer.Option("--images", help="Copy the photos, point to where they lie, or only name them."),
    ] = "copy",
    complete: Annotated[
        bool, typer.Option("--complete", help="Everything visible was annotated: what has no mask is background.")
    ] = False,
) -> None:
    """Write a project's masks as COCO, SA-1B, Label Studio, YOLO or PNG files: train and val."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from backend.corrections.archive import open_photos
    from backend.corrections.queries import (
        bare_photos,
        emptied_tasks,
        find_project,
        problems,
        stream_newest,
        stream_regions,
    )
    from backend.export.run import export as run

    columns = TextColumn("regions"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with opened_store() as (settings, store):
        found = find_project(store, project, origin)
        every = form == "labelstudio"
        emptied = emptied_tasks(store, found.key)
        bare = [photo for photo in bare_photos(store, found.key) if not (every and photo.task in emptied)]
        with Progress(*columns) as progress:
            task = progress.add_task("regions", total=None)
            result = run(
                (stream_regions if every else stream_newest)(store, found.key),
                found,
                open_photos(settings),
                out,
                form=form,
                images=images,
                complete=complete,
                bare=bare,
                unreadable=problems(store, found.key),
                on_start=lambda total: progress.update(task, total=total),
                on_task=lambda regions: progress.advance(task, regions),
            )
    for split in result.tasks:
        print(f"{split:5}  {result.tasks[split]} photos, {result.regions[split]} regions")
    if emptied and not every:
        print(f"left out: older annotations of {len(emptied)} tasks whose last updated one has nothing in it")
    if left_out := result.regions_without_photo:
        print(f"left out: {left_out} regions whose photo could not be fetched yet; `semsam sync` tries again")
    if result.bare_photos:
        print(f"of them {result.bare_photos} photos that were submitted with nothing on them")
    if result.bare_without_photo:
        print(f"left out: {result.bare_without_photo} more of them whose photo could not be fetched yet")
    if result.unreadable:
        print(f"left out: {len(result.unreadable)} regions that cannot be read:")
        for line in result.unreadable[:5]:
            print(f"  {line}")
        if len(result.unreadable) > 5:
            print(f"  all are in {out / 'export.json'}")
    if result.photos_missing:
        print(f"{result.photos_missing} photos are not in {settings.data_dir / 'photos'}: named, but not written")
    print(f"written to {out}")


@learner_app.command("show")
def show_learner(project: Project, origin: Origin = None) -> None:
    """Whether a project learns, and from how many regions."""
    from backend.adaptation.lessons import learning_state, training_regions

    with opened_store() as (_, store):
        key = project_key(store, project, origin)
        state = learning_state(store, key)
        regions = len(training_regions(store, key))
        since = f", since {state.forgotten_at:%Y-%m-%d %H:%M:%S}" if state.forgotten_at else ""
        print(f"project {key}: {'on' if state.enabled else 'off'}, {regions} regions to learn from{since}")


@learner_app.command("on")
def switch_on(project: Project, origin: Origin = None) -> None:
    """Let a project learn; a running backend follows within seconds."""
    _switch(project, origin, True)


@learner_app.command("off")
def switch_off(project: Project, origin: Origin = None) -> None:
    """Let a project's clicks be answered as if nothing had been accepted; a running backend follows within seconds."""
    _switch(project, origin, False)


def _switch(project: int, origin: str | None, enabled: bool) -> None:
    from backend.adaptation.lessons import switch_learning

    with opened_store() as (_, store):
        key = project_key(store, project, origin)
        switch_learning(store, key, enabled)
        print(f"project {key}: learning is {'on' if enabled else 'off'}")


@learner_app.command("reset")
def reset_learner(project: Project, origin: Origin = None) -> None:
    """Forget what a project has learned so far; its regions stay in the store, later ones teach again."""
    from backend.adaptation.lessons import forget

    with opened_store() as (_, store):
        key = project_key(store, project, origin)
        print(f"project {key}: {forget(store, key)} lessons forgotten")
