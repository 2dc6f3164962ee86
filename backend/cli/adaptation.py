"""`semsam learner`: what projects learn at once; switching that, and forgetting. Parses and calls."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from backend.records import ProjectKey
    from backend.store.database import Store

app = typer.Typer(no_args_is_help=True, help="Learning at once: show, on, off, reset.")

Project = Annotated[int, typer.Option("--project", help="Its id in Label Studio.", show_default=False)]
Origin = Annotated[
    str | None,
    typer.Option("--origin", help="Its server, scheme://host:port, where several have a project of this id."),
]


@contextlib.contextmanager
def _project(project: int, origin: str | None) -> Iterator[tuple[Store, ProjectKey]]:
    from backend.corrections.queries import find_project
    from backend.settings import load_settings
    from backend.store.database import open_store

    store = open_store(load_settings())
    try:
        yield store, find_project(store, project, origin).key
    finally:
        store.close()


@app.command()
def show(project: Project, origin: Origin = None) -> None:
    """Whether a project learns, and from how many regions."""
    from backend.adaptation.lessons import learning_state, training_regions

    with _project(project, origin) as (store, key):
        state = learning_state(store, key)
        regions = len(training_regions(store, key))
        since = f", since {state.forgotten_at:%Y-%m-%d %H:%M:%S}" if state.forgotten_at else ""
        print(f"project {key}: {'on' if state.enabled else 'off'}, {regions} regions to learn from{since}")


@app.command()
def on(project: Project, origin: Origin = None) -> None:
    """Let a project learn; a running backend follows within seconds."""
    _switch(project, origin, True)


@app.command()
def off(project: Project, origin: Origin = None) -> None:
    """Let a project's clicks be answered as if nothing had been accepted; a running backend follows within seconds."""
    _switch(project, origin, False)


def _switch(project: int, origin: str | None, enabled: bool) -> None:
    from backend.adaptation.lessons import switch_learning

    with _project(project, origin) as (store, key):
        switch_learning(store, key, enabled)
        print(f"project {key}: learning is {'on' if enabled else 'off'}")


@app.command()
def reset(project: Project, origin: Origin = None) -> None:
    """Forget what a project has learned so far; its regions stay in the store, later ones teach again."""
    from backend.adaptation.lessons import forget

    with _project(project, origin) as (store, key):
        print(f"project {key}: {forget(store, key)} lessons forgotten")
