"""`semsam versions`: which models there are, which one answers, and changing that."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backend.cli.shared import AsJson, opened_store, print_tables

if TYPE_CHECKING:
    from backend.versions.registry import Registry
    from backend.versions.version import Activation, ModelVersion

app = typer.Typer(no_args_is_help=True, help="Model versions: list, activate, roll back, prune.")

Which = Annotated[
    str, typer.Argument(metavar="VERSION", help="Number, name, beginning of one, `base` or `live`.", show_default=False)
]
Reason = Annotated[str, typer.Option("--reason", help="Kept with the change.")]


@contextlib.contextmanager
def _registry() -> Iterator[Registry]:
    from backend.versions.registry import open_registry

    with opened_store() as (settings, store):
        yield open_registry(settings, store)


def _described(registry: Registry, version: ModelVersion, live: str, *, thorough: bool) -> dict[str, Any]:
    problems = registry.problems(version, thorough=thorough)
    return version.to_dict() | {"live": version.version == live, "problems": problems}


def _state(version: dict[str, Any]) -> str:
    words = ["live"] if version["live"] else []
    words += ["pinned"] if version["pinned"] and version["number"] else []
    words += ["pruned"] if version["pruned_at"] else ["damaged"] if version["problems"] else []
    return ", ".join(words)


def _now_live(activation: Activation) -> None:
    version = activation.version
    print(f"{version.version} (number {version.number}) is live; running backends switch to it within 10 s")


@app.command("list")
def list_versions(
    as_json: AsJson = False,
    pruned: Annotated[bool, typer.Option("--all", help="Also those whose files were pruned.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Look whether files are there, not what is in them.")] = False,
) -> None:
    """Every version: its parent, when it was made, whether it is live, whether its files are as registered."""
    with _registry() as registry:
        live = registry.live().version.version
        found = [_described(registry, v, live, thorough=not quick) for v in registry.all(pruned=pruned)]
    if as_json:
        print(json.dumps(found, indent=1))
        return
    from rich.table import Table

    table = Table("number", "version", "state", "parent", "made")
    for version in found:
        made = (version["created_at"] or "")[:16].replace("T", " ")
        table.add_row(str(version["number"]), version["version"], _state(version), version["parent"] or "", made)
    print_tables(table)
    for version in found:
        if version["problems"] and not version["pruned_at"]:
            print(f"{version['version']} cannot be served: {'; '.join(version['problems'])}")


@app.command()
def show(which: Which, as_json: AsJson = False) -> None:
    """All about one version: files, config, parent, data, figures; every byte of its files is checked."""
    with _registry() as registry:
        live = registry.live().version.version
        version = _described(registry, registry.find(which), live, thorough=True)
    if as_json:
        print(json.dumps(version, indent=1))
        return
    for name, value in version.items():
        if value not in (None, [], {}):
            print(f"{name:14}{json.dumps(value, indent=1) if isinstance(value, dict | list) else value}")


@app.command()
def activate(which: Which, reason: Reason = "by hand") -> None:
    """Let a version answer, in every backend that runs on this store."""
    with _registry() as registry:
        _now_live(registry.activate(which, reason=reason))


@app.command()
def rollback(reason: Reason = "rolled back by hand") -> None:
    """Give back what answered before the last activation; again: what answered before that."""
    with _registry() as registry:
        _now_live(registry.rollback(reason=reason))


@app.command()
def pin(which: Which, off: Annotated[bool, typer.Option("--off", help="May be pruned again.")] = False) -> None:
    """Keep a version from being pruned."""
    with _registry() as registry:
        version = registry.pin(which, not off)
        print(f"{version.version} may be pruned" if off else f"{version.version} stays until it is unpinned")


@app.command()
def prune(
    steps: Annotated[int, typer.Option("--steps", min=0, help="Rollbacks that stay possible.")] = 5,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Remove the files of versions that are neither live, nor needed to roll back, nor pinned, nor of the last hour.

    Also what fine-tuning jobs have left that have no version any more, but for the gate's reports.
    """
    from backend.finetuning.jobs import clear_job_files
    from backend.versions.registry import open_registry

    with opened_store() as (settings, store):
        registry = open_registry(settings, store)
        pruned = registry.prune(steps=steps, dry_run=dry_run)
        left = {version.version for version in registry.all()} - {version.version for version in pruned.versions}
        cleared = clear_job_files(store, settings.data_dir, left, dry_run=dry_run)
    does = "would remove" if dry_run else "removed"
    for version in pruned.versions:
        print(f"{does} {version.version} (number {version.number})")
    for folder in pruned.strays:
        print(f"{does} {folder.name}, which belongs to no version")
    for job in cleared:
        print(f"{does} what job {job} has left")
    size = pruned.size + sum(cleared.values())
    anything = pruned.versions or pruned.strays or cleared
    print(f"{does} {size / 2**20:.1f} MB in all" if anything else "nothing to remove")
