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

from backend.corrections.archive import open_photos
from backend.finetuning.job_runner import Steps
from backend.finetuning.worker import Worker
from backend.settings import Settings
from backend.store.database import open_store
from backend.store.tables import jobs as job_rows
from backend.versions.registry import Registry
from semsam_model.checkpoints.header import find_weights
from semsam_model.gate.report import render_report
from semsam_model.gate.verdict import compare

STEPS: dict[str, Callable[..., Any]] = {"compare": compare, "render_report": render_report}
#: What the registry is asked for; the last one by the next attempt, when the job is about to be ended.
OF_REGISTRY = ("register", "activate", "has_been_live")


def deadly(work: Callable[..., Any]) -> Callable[..., Any]:
    def done(*given: Any, **more: Any) -> None:
        work(*given, **more)
        os.kill(os.getpid(), signal.SIGKILL)

    return done


def run(settings: Settings, stage: str) -> None:
    """Until the stage is done."""
    store = open_store(settings)
    with store.write() as connection:  # the one before it died long ago
        past = datetime.now(UTC) - timedelta(seconds=1)
        connection.execute(update(job_rows).values(lease_until=past, attempts=1))
    changed = {stage: deadly(getattr(Registry, stage))} if stage in OF_REGISTRY else {}
    registry = type("DeadlyRegistry", (Registry,), changed)
    weights, header = find_weights(settings.model, settings.weights)
    made = registry(store, settings.data_dir / "versions", weights, header)
    steps = Steps(**{stage: deadly(STEPS[stage])} if stage in STEPS else {})
    Worker(settings, store, made, open_photos(settings), steps=steps).run_one()


def main(data: str, weights: str, config: str) -> None:
    settings = Settings(
        model="tiny", weights=Path(weights), data_dir=Path(data), finetune_config=Path(config), device="cpu"
    )
    ended = []
    for stage in (*STEPS, *OF_REGISTRY):
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
