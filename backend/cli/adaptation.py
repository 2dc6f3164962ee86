"""`semsam learner`: what projects learn at once; switching that, and forgetting."""

from __future__ import annotations

import typer

from backend.cli.context import opened_store, project_key
from backend.cli.options import Origin, Project

app = typer.Typer(no_args_is_help=True, help="Learning at once: show, on, off, reset.")


@app.command()
def show(project: Project, origin: Origin = None) -> None:
    """Whether a project learns, and from how many regions."""
    from backend.adaptation.lessons import learning_state, training_regions

    with opened_store() as (_, store):
        key = project_key(store, project, origin)
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

    with opened_store() as (_, store):
        key = project_key(store, project, origin)
        switch_learning(store, key, enabled)
        print(f"project {key}: learning is {'on' if enabled else 'off'}")


@app.command()
def reset(project: Project, origin: Origin = None) -> None:
    """Forget what a project has learned so far; its regions stay in the store, later ones teach again."""
    from backend.adaptation.lessons import forget

    with opened_store() as (_, store):
        key = project_key(store, project, origin)
        print(f"project {key}: {forget(store, key)} lessons forgotten")
