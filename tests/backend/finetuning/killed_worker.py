"""A worker that is killed in one stage after the other, each time by a new worker that goes on.

    python -m tests.backend.finetuning.killed_worker DATA WEIGHTS FINETUNE_CONFIG

The store of DATA has a job that waits. Each child runs it and kills itself when it has done the stage, before it can do
anything else. Prints, as JSON, how each ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import update

import backend.finetuning.worker
from backend.corrections.photo_archive import PhotoArchive
from backend.finetuning import jobs
from backend.finetuning.worker import Worker
from backend.settings import Settings
from backend.store.database import open_store
from backend.store.tables import jobs as job_rows
from backend.versions.registry import Registry, open_registry

STAGES: dict[str, Any] = {  #: in order; what holds the function of that name
    "compare": backend.finetuning.worker,
    "report": backend.finetuning.worker,
    "register": Registry,
    "activate": Registry,
}


def deadly(work: Callable[..., Any]) -> Callable[..., Any]:
    def done(*given: Any, **more: Any) -> None:
        work(*given, **more)
        os.kill(os.getpid(), signal.SIGKILL)

    return done


def run(settings: Settings, stage: str) -> None:
    """Until the stage is done; "finish": until the job is about to be ended."""
    if stage == "finish":
        jobs.finish = deadly(lambda *_, **more: None)
    else:
        setattr(STAGES[stage], stage, deadly(getattr(STAGES[stage], stage)))
    store = open_store(settings)
    with store.write() as connection:  # the one before it died long ago
        past = datetime.now(UTC) - timedelta(seconds=1)
        connection.execute(update(job_rows).values(lease_until=past, attempts=1))
    Worker(settings, store, open_registry(settings, store), PhotoArchive(settings.data_dir / "photos")).run_one()


def main(data: str, weights: str, config: str) -> None:
    settings = Settings(
        model="tiny", weights=Path(weights), data_dir=Path(data), finetune_config=Path(config), device="cpu"
    )
    ended = []
    for stage in (*STAGES, "finish"):
        child = os.fork()
        if child == 0:
            try:
                run(settings, stage)
            finally:
                os._exit(1)
        ended.append((stage, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
    print(json.dumps(ended))


if __name__ == "__main__":
    main(*sys.argv[1:])
