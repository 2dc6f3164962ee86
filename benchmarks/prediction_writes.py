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
from backend.demo.run import ProjectMaker
from backend.demo.servers import HOST, Credentials, start_label_studio
from backend.settings import Settings
from benchmarks.machine import ROOT, children, cpu_seconds, described, free_port
from semsam_model.checkpoints.header import find_weights

CONFIG = (ROOT / "configs" / "labeling.xml").read_text()


def predictions() -> list[dict[str, Any]]:
    """Of the sample photos."""
    settings, made = Settings(), list[dict[str, Any]]()
    weights, _ = find_weights(settings.model, settings.weights, folder=settings.data_dir / "weights")
    with in_this_process(settings, weights, read_config(CONFIG)) as annotate:
        run(iter([Item(p.name, p.read_bytes, made.append) for p in sorted((ROOT / "samples").glob("*.jpg"))]), annotate)
    return made


def database_bytes(data: Path) -> int:
    return sum(path.stat().st_size for path in data.glob("*.sqlite3*"))


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
        credentials, port = Credentials.load_or_create(data / "credentials.json"), free_port()
        program = ROOT / ".venv-ls" / "bin" / "label-studio"
        studio = start_label_studio(program, port, data / "ls", credentials, data / "ls.log")
        stack.callback(studio.stop)
        studio.wait_until_healthy(900)
        url, session = f"http://{HOST}:{port}", requests.Session()
        session.headers["Authorization"] = f"Token {credentials.token}"
        api = ProjectMaker(url, credentials.token)
        everyone = [studio.pid, *children(studio.pid)]
        columns = ["predictions in a request", "predictions/s", "Label Studio's processor time for each"]
        print(f"| {' | '.join([*columns, 'bytes of its database for each'])} |\n|---|---|---|---|")
        for group in given.groups:
            wanted = {"title": f"writes {group} {time.time():.0f}", "label_config": CONFIG}
            project = api.call("POST", "/api/projects", json=wanted)["id"]
            tasks = [{"data": {"image": f"s3://bucket/{i}.jpg"}} for i in range(given.tasks)]
            api.call("POST", f"/api/projects/{project}/import", json=tasks)
            page = {"project": project, "page_size": given.writes, "include": "id"}
            ids = [task["id"] for task in api.call("GET", "/api/tasks", params=page)["tasks"]]
            rows = [{"task": number, **one} for number, one in zip(ids, itertools.cycle(made), strict=False)]
            before, used, began = database_bytes(data / "ls"), sum(map(cpu_seconds, everyone)), time.perf_counter()
            for first in range(0, len(rows), group):
                body: Any = rows[first] if group == 1 else rows[first : first + group]
                path = "/api/predictions/" if group == 1 else f"/api/projects/{project}/import/predictions"
                session.post(f"{url}{path}", json=body, timeout=300).raise_for_status()
            seconds = time.perf_counter() - began
            grown = (database_bytes(data / "ls") - before) / len(rows)
            each = 1000 * (sum(map(cpu_seconds, everyone)) - used) / len(rows)
            print(f"| {group} | {len(rows) / seconds:.1f} | {each:.1f} ms | {grown:,.0f} |", flush=True)
        print(f"\n{size:,.0f} bytes a prediction as JSON.\n\n{described()}")


if __name__ == "__main__":
    main()
