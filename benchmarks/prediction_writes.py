"""How many predictions a real Label Studio (SQLite) takes in a second through its API, one by one and in groups.

    python -m benchmarks.prediction_writes [--tasks 400] [--writes 400] [--groups 1 8 50] [--data DIR]

The predictions are those of the default model for the photos of samples/. Label Studio (.venv-ls) is started in a
temporary folder, or in DIR, where its database is kept. One by one: POST /api/predictions/, what `semsam batch` does;
groups: POST /api/projects/ID/import/predictions. Prints predictions a second and bytes of the database for each.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import requests

from backend.batch.local import in_this_process
from backend.batch.run import read_config, run
from backend.batch.sources import Item
from backend.settings import Settings
from benchmarks.label_studio import CONFIG, LabelStudio, starting_label_studio
from benchmarks.machine import SAMPLES, children, cpu_seconds, described
from semsam_model.checkpoints.header import find_weights


def predictions() -> list[dict[str, Any]]:
    """Of the sample photos."""
    settings, made = Settings(), list[dict[str, Any]]()
    weights, _ = find_weights(settings.model, settings.weights, folder=settings.data_dir / "weights")
    with in_this_process(settings, weights, read_config(CONFIG)) as annotate:
        run(iter([Item(p.name, p.read_bytes, made.append) for p in sorted(SAMPLES.glob("*.jpg"))]), annotate)
    return made


def database_bytes(data: Path) -> int:
    return sum(path.stat().st_size for path in data.glob("*.sqlite3*"))


def measured(studio: LabelStudio, group: int, made: list[dict[str, Any]], tasks: int, writes: int) -> str:
    """The row of the table for `group` predictions in a request, in a new project with `tasks` tasks."""
    processes = [studio.server.pid, *children(studio.server.pid)]
    wanted = {"title": f"writes {group} {time.time():.0f}", "label_config": CONFIG}
    project = studio.api.call("POST", "/api/projects", json=wanted)["id"]
    imported = [{"data": {"image": f"s3://bucket/{i}.jpg"}} for i in range(tasks)]
    studio.api.call("POST", f"/api/projects/{project}/import", json=imported)
    page = {"project": project, "page_size": writes, "include": "id"}
    ids = [task["id"] for task in studio.api.call("GET", "/api/tasks", params=page)["tasks"]]
    rows = [{"task": number, **one} for number, one in zip(ids, itertools.cycle(made), strict=False)]
    before, used, began = database_bytes(studio.database), sum(map(cpu_seconds, processes)), time.perf_counter()
    with requests.Session() as session:
        session.headers.update(studio.headers)
        for first in range(0, len(rows), group):
            body: Any = rows[first] if group == 1 else rows[first : first + group]
            path = "/api/predictions/" if group == 1 else f"/api/projects/{project}/import/predictions"
            session.post(f"{studio.url}{path}", json=body, timeout=300).raise_for_status()
    seconds = time.perf_counter() - began
    grown = (database_bytes(studio.database) - before) / len(rows)
    each = 1000 * (sum(map(cpu_seconds, processes)) - used) / len(rows)
    return f"| {group} | {len(rows) / seconds:.1f} | {each:.1f} ms | {grown:,.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=400, help="of the project")
    parser.add_argument("--writes", type=int, default=400, help="of them get a prediction")
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 8, 50])
    parser.add_argument("--data", type=Path)
    given = parser.parse_args()
    made = predictions()
    size = sum(len(json.dumps(each)) for each in made) / len(made)
    with contextlib.ExitStack() as stack:
        data = given.data or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        studio = stack.enter_context(starting_label_studio(data))
        studio.server.wait_until_healthy(900)
        columns = ["predictions in a request", "predictions/s", "Label Studio's processor time for each"]
        print(f"| {' | '.join([*columns, 'bytes of its database for each'])} |\n|---|---|---|---|")
        for group in given.groups:
            print(measured(studio, group, made, given.tasks, given.writes), flush=True)
        print(f"\n{size:,.0f} bytes a prediction as JSON.\n\n{described()}")


if __name__ == "__main__":
    main()
