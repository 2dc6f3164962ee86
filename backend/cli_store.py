"""`semsam sync`: the store against Label Studio, now."""

from __future__ import annotations

from typing import Annotated

import typer

from backend.errors import StoreError


def sync(
    project: Annotated[
        int | None, typer.Option(help="Its id in Label Studio; all that are known if not given.")
    ] = None,
    origin: Annotated[
        str | None, typer.Option(help="Its server, scheme://host:port, where several have a project of this id.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Read tasks that did not change, too.")] = False,
) -> None:
    """Fetch corrections that no webhook brought, mark what was deleted, keep the pictures."""
    from rich.progress import Progress

    from backend.connection import origin_of
    from backend.corrections import list_projects
    from backend.ingest import work_in
    from backend.intake import open_photos
    from backend.keeping import keep_pictures
    from backend.labelstudio import LabelStudio
    from backend.preannotated import judge_preannotated
    from backend.reconcile import synchronise
    from backend.records import ProjectKey
    from backend.settings import load_settings
    from backend.store import open_store

    settings = load_settings()
    store, label_studio, photos = open_store(settings), LabelStudio(settings), open_photos(settings)
    work_in(store)
    known = [each.key for each in list_projects(store) if each.deleted_at is None]
    if project is None:
        chosen = [key for key in known if origin in (None, key.origin)]
        if not chosen:
            raise StoreError("no project is known yet: name one with --project")
    else:
        here = [key for key in known if key.project == project and origin in (None, key.origin)]
        if len(here) > 1:
            raise StoreError(f"project {project}: on several servers; name one with --origin {here[0].origin}")
        chosen = here or [ProjectKey(origin or str(origin_of(settings.label_studio_url)), project)]
    for key in chosen:
        with Progress(transient=True) as progress:
            bar = progress.add_task(f"project {key.project}", total=None)
            synced = synchronise(
                store,
                label_studio,
                key,
                everything=everything,
                on_task=lambda done, total, bar=bar: progress.update(bar, completed=done, total=total),  # type: ignore[misc]
            )
        judge_preannotated(store, label_studio, key, retry=True)
        kept, failed = keep_pictures(store, label_studio, photos, key, retry=True)
        missing = f", {failed} could not be" if failed else ""
        print(f"project {key}: {synced}; {kept} pictures kept{missing}")
        for problem in synced.problems:
            print(f"  {problem}")
    store.close()
