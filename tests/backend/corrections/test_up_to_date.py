"""A project is brought up to date with Label Studio in one way, whoever asks for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from backend.cli.main import app
from backend.corrections.queries import stream_regions
from backend.corrections.updates import save_project
from backend.records import ProjectKey, StoredRegion
from backend.store.database import Store
from tests.backend.annotations import CONFIG, KEY, square
from tests.backend.corrections.test_prediction_outcomes import PART, edited, geometry, prediction
from tests.backend.studio import FakeStudio, labelled, serving
from tests.backend.studio_http import TOKEN


@pytest.fixture
def studio() -> Iterator[FakeStudio]:
    with serving(FakeStudio()) as studio:
        yield studio


def preannotated(studio: FakeStudio) -> dict[str, Any]:
    """One task whose annotation was begun from a prediction: its row of the region that the annotator made smaller."""
    studio.predictions[31] = prediction(31)
    whole, part, other = geometry(studio.predictions[31])
    row = edited(part, PART & ~square(8, 8, 4))  # 48 of 64 pixels
    studio.task(1, labelled(5, whole, row, other, task=1, parent_prediction=31))
    return row


def test_fine_tuning_judges_preannotated_regions_before_it_takes_its_snapshot(
    studio: FakeStudio, tmp_path: Path, weights: Path
) -> None:
    corrected = preannotated(studio)
    environment = {
        "LABEL_STUDIO_URL": studio.url,
        "LABEL_STUDIO_API_KEY": TOKEN,
        "SEMSAM_MODEL": "tiny",
        "SEMSAM_WEIGHTS": str(weights),
        "SEMSAM_DATA_DIR": str(tmp_path),
        "SEMSAM_WORKER_NICE": "0",
        "SEMSAM_DEVICE": "cpu",
    }
    with_project = ["--project", str(KEY.project)]
    store = Store.open(f"sqlite:///{tmp_path}/semsam.db")
    with store.write() as connection:
        save_project(connection, ProjectKey(studio.url, KEY.project), "cars", CONFIG, None)
    done = CliRunner().invoke(app, ["finetune", *with_project], env=environment)
    assert "too few corrections" in done.output, done.output
    (photo,) = map(json.loads, (tmp_path / "jobs" / "1" / "snapshot.jsonl").read_text().splitlines())
    region = regions(store, studio)[corrected["id"]]
    store.close()
    assert (region.outcome, region.iou_with_offer) == ("corrected", 48 / 64)
    accepted, wrong = 0.25, 0.25 + 0.75 * (1 - 48 / 64)
    assert sorted(each["weight"] for each in photo["regions"]) == [accepted, accepted, wrong]


def regions(store: Store, studio: FakeStudio) -> dict[str, StoredRegion]:
    """The usable regions of the studio's project, by id."""
    return {region.key.region: region for region in stream_regions(store, ProjectKey(studio.url, KEY.project))}
