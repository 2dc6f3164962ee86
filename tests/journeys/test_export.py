"""An export goes into a new project of a real Label Studio, and is what it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backend.corrections.archive import PhotoArchive
from backend.demo.project import DemoProject
from backend.export.run import export
from semsam_model.data.split import SPLITS
from semsam_model.masks.label_studio import region_mask
from tests.backend.stored import project as stored_project
from tests.backend.stored import region
from tests.journeys.browser import Editor
from tests.journeys.conftest import Studio
from tests.paths import CONFIGS, SAMPLES
from tests.semsam_model.masks.shapes import disc

pytestmark = pytest.mark.browser

COFFEE = SAMPLES / "coffee.jpg"


def test_an_export_imports_into_a_new_project_with_masks_equal_to_the_pixel(
    editor: Editor, studio: Studio, project: Callable[..., DemoProject], tmp_path: Path
) -> None:
    first = project([COFFEE])
    address = studio.api.call("GET", f"/api/tasks/{first.tasks[0]}/")["data"]["image"]
    photos = PhotoArchive(tmp_path / "photos")
    sha256 = photos.keep(COFFEE.read_bytes())
    with Image.open(COFFEE) as picture:
        width, height = picture.size
    noise = np.random.default_rng(0).random((height, width)) < 0.3
    masks = [disc(height, width, 240, 180, 140), disc(height, width, 250, 190, 60) & noise]
    regions = [
        region(masks[0], name="cup", labels=("object",), image_sha256=sha256, image_url=address, level=1, score=0.9),
        region(masks[1], name="foam", labels=("part",), image_sha256=sha256, image_url=address, parent="cup", level=3),
    ]
    xml = (CONFIGS / "labeling.xml").read_text()
    out = tmp_path / "out"
    export(regions, stored_project(xml), photos, out, form="labelstudio", images="reference")

    labeling = (out / "labeling.xml").read_text()
    second = studio.api.call("POST", "/api/projects", json={"title": "imported", "label_config": labeling})["id"]
    for split in SPLITS:
        tasks = json.loads((out / f"{split}.json").read_text())
        if tasks:
            studio.api.call("POST", f"/api/projects/{second}/import", json=tasks)
    (task,) = studio.api.call("GET", f"/api/projects/{second}/export", params={"exportType": "JSON"})
    (annotation,) = task["annotations"]
    rows = {row["id"]: row for row in annotation["result"] if row["type"] == "brushlabels"}
    for name, mask, label in zip(("cup", "foam"), masks, ("object", "part"), strict=True):
        stored = region_mask(rows[name])
        assert stored is not None and np.array_equal(stored, mask)
        assert rows[name]["value"]["brushlabels"] == [label]
    assert rows["foam"]["parentID"] == "cup"

    editor.open_annotation(second, task["id"], regions=2)
    editor.screenshot("export-imported")
    assert sorted(shown["id"] for shown in editor.regions()) == ["cup", "foam"]
