"""What several groups of commands share: options, what they open before they work, what they print and write."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from backend.records import ProjectKey
    from backend.settings import Settings
    from backend.store.database import Store
    from semsam_model.checkpoints.header import Version
    from semsam_model.network.model import SemanticSAM
    from semsam_model.text_encoder import TextEncoder

ModelName = Annotated[str, typer.Option("--model", help="mobile, swin_t, swin_l, ...: a name in configs/model.")]
WeightsFile = Annotated[Path | None, typer.Option("--weights", help="Safetensors file; the embedded one for mobile.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N")]
SettingsFile = Annotated[Path | None, typer.Option("--config", help="Settings file; see configs/backend.yaml.")]
Project = Annotated[int, typer.Option("--project", help="Its id in Label Studio.", show_default=False)]
Origin = Annotated[
    str | None,
    typer.Option("--origin", help="Its server, scheme://host:port, where several have a project of this id."),
]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]


@contextlib.contextmanager
def opened_store(config: Path | None = None) -> Iterator[tuple[Settings, Store]]:
    """The settings, of the file `config` too, and their store, which is closed in the end.

    Raises ConfigError, StoreError.
    """
    from backend.settings import load_settings
    from backend.store.database import open_store

    settings = load_settings(config)
    with contextlib.closing(open_store(settings)) as store:
        yield settings, store


def project_key(store: Store, project: int, origin: str | None) -> ProjectKey:
    """A project that the store knows. Raises StoreError when none, or several servers, have one of this id."""
    from backend.corrections.queries import find_project

    return find_project(store, project, origin).key


def load_network(model: str, weights: Path | None, device: str = "cpu") -> tuple[SemanticSAM, Version]:
    """The model `model` with `weights`, or with those of the data folder or the package. Raises SemsamError."""
    from backend.settings import load_settings
    from semsam_model.checkpoints.checkpoint import load_model

    return load_model(model, weights, folder=load_settings().data_dir / "weights", device=device)


def open_text_encoder() -> TextEncoder:
    """The text encoder of the settings; it is loaded when it is first needed."""
    from backend.settings import load_settings
    from semsam_model.text_encoder import TextEncoder

    return TextEncoder(load_settings().text_encoder)


@contextlib.contextmanager
def progress_bar(total: int, text: str = "photos", console: Console | None = None) -> Iterator[Callable[[], None]]:
    """A bar of `total` steps; each call of the value is one step."""
    from rich.progress import Progress

    with Progress(console=console) as progress:
        task = progress.add_task(text, total=total)
        yield lambda: progress.advance(task)


def print_tables(*tables: Any) -> None:
    """Print tables and reports as rich draws them."""
    from rich.console import Console

    Console().print(*tables)


def log_to_stderr() -> None:
    """Log lines with their times on standard error, for commands that serve until they are stopped."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)  # one line for each of its parts otherwise


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """A report, in a folder that is made if it is missing. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
