"""How long Label Studio waits for a webhook: `python -m benchmarks.webhooks [--url DATABASE]`.

Annotations of a 12-megapixel photo with 20 brush regions, each mask three times, as Label Studio repeats it in note and
level; posted over HTTP to the WSGI application, 50 times. Prints the size of the body and the milliseconds until the
answer: body read, stored on disk; and, apart, until it is processed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from backend.corrections.inbox import enqueue, process_inbox
from backend.label_studio.events import parse_webhook
from backend.metrics import Metrics
from backend.settings import Settings
from backend.store.database import Store
from backend.web.app import create_app
from semsam_model.masks.codecs import encode_brush_rle
from semsam_model.masks.geometry import crop_mask

SIZE = (3000, 4000)
REGIONS = 20
REPEATS = 50


def rows() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]].astype(np.float32)
    found: list[dict[str, Any]] = []
    for number in range(REGIONS):
        cx, cy, radius = rng.uniform(500, 3500), rng.uniform(500, 2500), rng.uniform(80, 400)
        angle = np.arctan2(y - cy, x - cx)
        mask = np.hypot(x - cx, y - cy) < radius * (1 + 0.2 * np.sin(7 * angle + number))
        value = {"format": "rle", "rle": encode_brush_rle(*crop_mask(mask), SIZE)}
        shared = {"id": f"r{number}", "to_name": "image", "original_width": SIZE[1], "original_height": SIZE[0]}
        found += [
            shared | {"type": "brushlabels", "from_name": "mask", "value": value | {"brushlabels": ["object"]}},
            shared | {"type": "textarea", "from_name": "note", "value": value | {"text": ["L1/6 object"]}},
            shared | {"type": "choices", "from_name": "level", "value": value | {"choices": ["level 1"]}},
        ]
    return found


class Stored:
    """As much of the service as a webhook meets."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def event(self, body: Any) -> dict[str, Any]:
        enqueue(self.store, parse_webhook(body).to_event("http://ls:8080"))
        return {"status": "noted"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="of the database; SQLite in a temporary folder if not given")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(arguments.url or f"sqlite:///{Path(folder) / 'semsam.db'}")
        http = create_app(Settings(), Stored(store), Metrics()).test_client()  # type: ignore[arg-type]
        result, answered, worked = rows(), [], []
        for number in range(REPEATS):
            stamp = f"2026-01-01T00:00:{number:02}Z"
            made = {"id": 1, "task": 1, "project": 1, "updated_at": stamp, "created_at": stamp, "result": result}
            body = json.dumps({"action": "ANNOTATION_CREATED", "annotation": made, "project": {"id": 1}}).encode()
            began = time.perf_counter()
            assert http.post("/webhook", data=body).status_code == 200
            answered.append(1000 * (time.perf_counter() - began))
            began = time.perf_counter()
            process_inbox(store)
            worked.append(1000 * (time.perf_counter() - began))
        store.close()
    print(f"{store.dialect}, {REGIONS} regions of {SIZE[1]} x {SIZE[0]} pixels, body {len(body) / 1e6:.1f} MB")
    for name, times in (("answered", answered), ("processed", worked)):
        middle, high = np.median(times), np.quantile(times, 0.95)
        print(f"{name}: median {middle:.0f} ms, 95 % {high:.0f} ms, most {max(times):.0f} ms")


if __name__ == "__main__":
    main()
