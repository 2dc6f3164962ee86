"""`semsam sync`: the store against Label Studio, now."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from backend.cli.context import opened_store
from backend.cli.options import Origin
from backend.errors import NotFound, StoreError
from semsam_model.errors import SemsamError

if TYPE_CHECKING:
    from backend.corrections.photos import PhotoArchive
    from backend.label_studio.client import LabelStudio
    from backend.records import ProjectKey, StoredProject
    from backend.settings import Settings
    from backend.store.database import Store


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
    from backend.corrections.inbox import process_inbox
    from backend.corrections.photos import open_photos
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
    from backend.label_studio.servers import origin_of
    from backend.records import ProjectKey

    if project is None:
        known = [each.key for each in stored if not each.is_final and origin in (None, each.key.origin)]
        if not known:
            raise StoreError("no project is known yet: name one with --project")
        return known
    here = [each.key for each in stored if each.key.project == project and origin in (None, each.key.origin)]
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
