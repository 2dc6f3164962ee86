"""What several groups of commands share: options, what they open before they work, what they print and write."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from semsam_model.files import named

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from backend.records import ProjectKey
    from backend.settings import Settings
    from backend.store.database import Store
    from semsam_model.checkpoints.header import Version
    from semsam_model.inference.engine import Model
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
MixtureFile = Annotated[Path, typer.Argument(help="configs/data/NAME.yaml")]
MixtureRoot = Annotated[Path | None, typer.Option("--root", help="Where the file's paths start; the current folder.")]
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


def load_answering(engine: str | None, model: str, weights: Path | None, device: str = "cpu") -> tuple[Model, str]:
    """The model, with a mask engine in front where one is named, and what its answers are called. Raises SemsamError.

    engine: as `with_engine`.
    """
    network, version = load_network(model, weights, device)
    answering, of_masks = with_engine(network, engine, device)
    return answering, version.version if of_masks is None else f"{of_masks}+{version}"


def with_engine(network: SemanticSAM, engine: str | None, device: str = "cpu") -> tuple[Model, str | None]:
    """A network describing what an engine proposes, and the engine's version; None: the network alone.

    engine: FAMILY:ARGUMENT, or a model of ours. Raises SemsamError.
    """
    if engine is None:
        return network, None
    from semsam_model.engines.open_engine import open_engine
    from semsam_model.inference.engine import DescribedEngine
    from semsam_model.inference.semantic_sam import SemanticSamEngine

    if ":" in engine:
        opened = open_engine(engine, device)
        return DescribedEngine(opened.engine, network), opened.version.version
    masks, of_masks = load_network(engine, None, device)
    return DescribedEngine(SemanticSamEngine(masks), network, masks.ranker), of_masks.version


def open_text_encoder() -> TextEncoder:
    """The text encoder of the settings; it is loaded when it is first needed."""
    from backend.settings import load_settings
    from semsam_model.text_encoder import TextEncoder

    return TextEncoder(load_settings().text_encoder)


@contextlib.contextmanager
def progress_bar(total: int, text: str = "photos", console: Console | None = None) -> Iterator[Callable[[], None]]:
    """A bar of `total` steps; each call of the value is one step."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    class TimeLeft(ProgressColumn):
        """By the mean of the steps so far: rich's own waits for the second one."""

        def render(self, task: Task) -> Text:
            if not task.completed or task.elapsed is None:
                return Text("")
            left = task.elapsed / task.completed * ((task.total or task.completed) - task.completed)
            return Text(f"{timedelta(seconds=round(left))} left")

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeLeft()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(text, total=total)
        yield lambda: progress.advance(task)


def print_tables(*tables: Any) -> None:
    """Print tables and reports as rich draws them."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for each in tables:
        console.print(*(columns_in(each, console.width) if isinstance(each, Table) else [each]))


def columns_in(table: Table, width: int) -> list[Table]:
    """A table as one or more that fit a width without a broken word; each begins with the table's first column."""
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    wide = Console(width=10_000)
    cells = [list(column.cells) for column in table.columns]

    def part(places: Sequence[int]) -> Table:
        made = Table(*(str(table.columns[place].header) for place in places), title=table.title, box=table.box)
        for row in range(table.row_count):
            made.add_row(*(cells[place][row] for place in places))
        return made

    groups: list[list[int]] = [[0]]
    for place in range(1, len(table.columns)):
        fits = Measurement.get(wide, wide.options, part([*groups[-1], place])).minimum <= width
        if fits or len(groups[-1]) == 1:
            groups[-1].append(place)
        else:
            groups.append([0, place])
    return [table] if len(groups) == 1 else [part(places) for places in groups]


def log_to_stderr() -> None:
    """Log lines with their times on standard error, for commands that serve until they are stopped."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)  # one line for each of its parts otherwise


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """A report, in a folder that is made if it is missing. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with named(path):
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")
