"""What commands print and write: progress, log lines, candidates, reports."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from semsam_model.types import Candidate


@contextlib.contextmanager
def progress_bar(total: int, text: str = "photos", console: Console | None = None) -> Iterator[Callable[[], None]]:
    """A bar of `total` steps; each call of the value is one step."""
    from rich.progress import Progress

    with Progress(console=console) as progress:
        task = progress.add_task(text, total=total)
        yield lambda: progress.advance(task)


def log_to_stderr() -> None:
    """Log lines with their times on standard error, for commands that serve until they are stopped."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)  # one line for each of its parts otherwise


def print_candidates(candidates: Sequence[Candidate]) -> None:
    """A line for each candidate."""
    for c in candidates:
        label = f"  {c.label}" if c.label else ""
        parent = f"  part of {c.parent}" if c.parent else ""
        print(f"{c.rank}  level {c.level}  score {c.score:.2f}  {c.area} px{label}{parent}")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """A report, in a folder that is made if it is missing. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
