"""Photos after the one that is worked on are embedded before anybody opens their tasks, in a real Label Studio."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import requests
from PIL import Image

from backend.demo.project import DemoProject
from tests.journeys.conftest import Studio
from tests.paths import SAMPLES
from tests.waiting import eventually


def entries(studio: Studio) -> int:
    """Embeddings that the backend keeps."""
    said = requests.get(f"{studio.backend_url}/metrics", timeout=10).text
    found = re.search(r"^semsam_embedding_cache_entries (\S+)", said, re.M)
    assert found
    return int(float(found[1]))


def test_a_click_warms_the_photos_of_the_next_three_tasks_and_makes_no_prediction_for_them(
    studio: Studio, project: Callable[..., DemoProject], tmp_path: Path
) -> None:
    photos = [tmp_path / f"{number}.png" for number in range(6)]
    sample = Image.open(SAMPLES / "coffee.jpg")
    for number, path in enumerate(photos):  # large things alone: no look at a part of a photo, which is kept too
        sample.crop((number, 0, 200 + number, 150)).save(path)
    made = project(photos)
    (backend,) = studio.api.call("GET", "/api/ml", params={"project": made.id})
    before = entries(studio)
    row = {"id": "k", "type": "keypoint", "from_name": "click_all", "to_name": "image", "is_positive": True}
    row |= {"original_width": 200, "original_height": 150, "value": {"x": 50, "y": 50, "width": 0.2}}
    body = {"task": made.tasks[1], "context": {"result": [row]}}
    answer = studio.api.call("POST", f"/api/ml/{backend['id']}/interactive-annotating", json=body)
    assert answer["data"]["result"]
    of_click = entries(studio) - before
    eventually(lambda: entries(studio) - before >= 4)
    assert entries(studio) - before <= of_click + 3
    every = studio.api.call("GET", "/api/predictions", params={"project": made.id})
    assert {each["task"] for each in every} <= {made.tasks[1]}
