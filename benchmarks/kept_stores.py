"""Made stores that are used again: a large one takes minutes to make, and a few seconds to copy."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from urllib.parse import urlsplit

from backend.corrections.queries import list_projects
from backend.store.database import Store
from benchmarks.machine import free_port
from benchmarks.made_store import FromModel, fill


def copied_store(kept: Path, target: Path, wanted: int, projects: int, of_model: FromModel) -> int:
    """A copy of the made store of this size (SQLite), made first where `kept` has none; the port of its Label Studio.

    The file's name has the size and the model that was taught. One of an older schema is migrated when it is opened.
    """
    kept.mkdir(parents=True, exist_ok=True)
    file = kept / f"{wanted}-in-{projects}-{of_model.digest[:12] or 'untaught'}.db"
    if not file.exists():
        making = kept / f"{file.name}.part"
        making.unlink(missing_ok=True)
        with contextlib.closing(Store.open(f"sqlite:///{making}")) as store:
            fill(store, f"http://127.0.0.1:{free_port()}", wanted, projects, of_model)
        making.replace(file)
    shutil.copy(file, target)
    with contextlib.closing(Store.open(f"sqlite:///{target}")) as store:
        port = urlsplit(list_projects(store)[0].key.origin).port
    assert port is not None
    return port
