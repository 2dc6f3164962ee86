"""The `semsam` command: its commands, and how their errors end. Heavy imports wait until a command needs them."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from backend.cli import data, evaluate, finetuning, projects, training, versions
from backend.cli.batch import batch
from backend.cli.calibration import calibrate_queries
from backend.cli.connection import connect, doctor
from backend.cli.conversion import convert
from backend.cli.photo import click, segment
from backend.cli.serve import demo, serve
from semsam_model.errors import SemsamError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Assisted labeling with Semantic-SAM: one click, up to six masks from object to part.",
)
app.command()(click)
app.command()(segment)
app.command()(batch)
app.command()(serve)
app.command()(demo)
app.command()(connect)
app.command()(doctor)
app.command()(projects.sync)
app.command()(projects.settle)
app.command()(projects.export)
app.command("worker")(finetuning.work)
app.command("finetune")(finetuning.finetune)
app.command("jobs")(finetuning.list_jobs)
app.command("train")(training.train)
app.command("train-ranker")(training.train_ranker)
app.command("train-names")(training.train_names)
app.command("refiner-answers")(training.refiner_answers)
app.command("train-refiner")(training.train_refiner)
app.command("calibrate-queries")(calibrate_queries)
app.command("train-borders")(training.train_borders)
data.app.command("convert")(convert)
app.add_typer(training.weights_app, name="weights")
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(data.app, name="data")
app.add_typer(versions.app, name="versions")
app.add_typer(projects.learner_app, name="learner")


def _print_version(asked: bool) -> None:
    if asked:
        print(f"semsam {importlib.metadata.version('semsam')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version, and end.")
    ] = False,
) -> None:
    """Options of the command itself."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: errors that semsam raises on purpose end as one line and exit code 1."""
    try:
        app(arguments, prog_name="semsam")
    except SemsamError as error:
        print(f"semsam: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"semsam: {error.filename or 'file'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("semsam: stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
