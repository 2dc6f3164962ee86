"""Many pictures: what lacks a prediction gets the service's, once; a run that was cut off is resumed."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from backend.batch import Annotator, Summary, processes, read_config, run
from backend.batch_sources import pictures_of, tasks_of
from backend.labelstudio import LabelStudio
from backend.metrics import Metrics
from backend.preannotation import UNFINISHED
from backend.service import build_service
from semsam_model.errors import ConfigError
from tests.backend.test_preannotation import everything_weights, settings
from tests.backend.test_service import CONFIG, Files, body, picture, png, serving

__all__ = ["everything_weights"]


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    (folder / "a.png").write_bytes(png(picture(0)))
    (folder / "broken.png").write_bytes(png(picture(0))[:200])
    (folder / "deeper" / "b.png").write_bytes(png(picture(1)))
    return folder


def test_a_folder_gets_what_the_service_says_and_a_killed_run_goes_on(
    photos: Path, everything_weights: Path, tmp_path: Path
) -> None:
    with serving(Files()) as url:
        chosen = settings(url, everything_weights, tmp_path)
        with contextlib.closing(build_service(chosen, Metrics())) as service:
            expected = service.predict_request(body(None, "a.png", "b.png"), "r")
    annotator, out, told = Annotator(chosen, everything_weights), tmp_path / "out.jsonl", list[str]()
    version = annotator.loaded.version.version

    def go() -> Summary:
        return run(pictures_of(photos, out, version, 2**20), read_config(CONFIG), annotator, tell=told.append)

    first = go()
    assert (first.written, first.failed) == (2, 1)
    assert rows(out) == [{"image": n, **p} for n, p in zip(("a.png", "deeper/b.png"), expected, strict=True)]
    assert first.regions > 0
    assert told[0].startswith("broken.png: ")
    whole = out.read_bytes()
    assert (go().written, out.read_bytes()) == (0, whole)
    out.write_bytes(whole[:-50])
    assert go().written == 1
    assert out.read_bytes() == whole


def test_worker_processes_say_the_same(photos: Path, everything_weights: Path, tmp_path: Path) -> None:
    chosen = settings("http://localhost:1", everything_weights, tmp_path)
    annotator = Annotator(chosen, everything_weights)
    alone, together = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    with processes(chosen, everything_weights, 1) as pool:
        for out, annotate in ((alone, annotator), (together, pool)):
            items = pictures_of(photos, out, annotator.loaded.version.version, 2**20)
            assert run(items, read_config(CONFIG), annotate, tell=lambda line: None).failed == 1
    assert rows(alone) == rows(together)


class Studio(LabelStudio):
    """Over the same file server; tasks and predictions are kept here."""

    predictions: dict[int, list[dict[str, Any]]]

    def list_tasks(self, number: int, page: int, page_size: int, *, project: str | None = None) -> dict[str, Any]:
        return {"tasks": [{"id": i} for i in self.predictions], "total": len(self.predictions)}

    def get_task(self, task_id: int, *, project: str | None = None) -> dict[str, Any]:
        image = "/data/upload/1/" + {1: "a.png", 2: "missing.png", 3: "b.png"}[task_id]
        return {"id": task_id, "data": {"image": image}, "predictions": self.predictions[task_id]}

    def create_prediction(self, prediction: dict[str, Any], *, project: str | None = None) -> dict[str, Any]:
        self.predictions[prediction["task"]].append(prediction)
        return prediction


def test_tasks_without_a_prediction_of_this_very_version_get_one_once(everything_weights: Path, tmp_path: Path) -> None:
    with serving(Files()) as url:
        chosen = settings(url, everything_weights, tmp_path)
        annotator, studio = Annotator(chosen, everything_weights), Studio(chosen)
        version = annotator.loaded.version.version
        studio.predictions = {1: [{"model_version": version + UNFINISHED}], 2: [], 3: [{"model_version": version}]}
        config = read_config(CONFIG)
        summaries = [run(tasks_of(studio, 1, config, version), config, annotator) for _ in range(2)]
    assert [(s.written, s.done, s.failed) for s in summaries] == [(1, 1, 1), (0, 2, 1)]
    assert [len(studio.predictions[i]) for i in (1, 2, 3)] == [2, 0, 1]


def test_a_model_without_object_queries_is_refused_before_any_picture_is_read(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no object queries"):
        Annotator(settings("http://localhost:1", weights, tmp_path), weights)
