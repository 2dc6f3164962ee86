"""Many pictures: what lacks a prediction gets the service's, once; a run that was cut off is resumed."""

import contextlib
import json
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from label_studio_sdk.label_interface import LabelInterface

from backend.batch import Summary, in_process, processes, read_config, run
from backend.batch_output import TaskLines
from backend.batch_sources import Item, Reader, in_folder, missing, tasks_of
from backend.labelstudio import LabelStudio
from backend.metrics import Metrics
from backend.preannotation import UNFINISHED
from backend.service import build_service
from backend.settings import Settings
from semsam_model.errors import ConfigError
from semsam_model.header import read_header
from tests.backend.test_preannotation import everything_weights, settings
from tests.backend.test_service import CONFIG, Files, body, picture, png, serving

__all__ = ["everything_weights"]


def rows(out: Path) -> list[dict[str, Any]]:
    """Of every picture its line, in the order of their names: which was done first is by chance."""
    return sorted((json.loads(line) for line in out.read_text().splitlines()), key=lambda row: str(row["data"]))


@contextlib.contextmanager
def pictures_of(folder: Path, out: Path, chosen: Settings, weights: Path) -> Iterator[Iterator[Item | None]]:
    """What of a folder is not done."""
    with contextlib.closing(TaskLines(out, read_config(CONFIG), read_header(weights).version.version)) as lines:
        yield missing(in_folder(folder, Reader(chosen)), lines)


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
    out, told = tmp_path / "out.jsonl", list[str]()

    def go() -> Summary:
        items = pictures_of(photos, out, chosen, everything_weights)
        with in_process(chosen, everything_weights, read_config(CONFIG)) as annotate, items as missing:
            return run(missing, annotate, tell=told.append)

    first = go()
    assert (first.written, first.failed) == (2, 1)
    assert rows(out) == [
        {"data": {"image": n}, "predictions": [p]} for n, p in zip(("a.png", "deeper/b.png"), expected, strict=True)
    ]
    assert first.regions > 0
    for task in rows(out):
        assert not LabelInterface(CONFIG).validate_prediction(task["predictions"][0], return_errors=True)
    assert told[0].startswith("broken.png: ")
    whole = out.read_bytes()
    assert (go().written, out.read_bytes()) == (0, whole)
    out.write_bytes(whole[:-50])
    assert go().written == 1
    assert out.read_bytes() == whole


def test_worker_processes_say_the_same(photos: Path, everything_weights: Path, tmp_path: Path) -> None:
    chosen = settings("http://localhost:1", everything_weights, tmp_path)
    here = in_process(chosen, everything_weights, read_config(CONFIG))
    pool = processes(chosen, everything_weights, read_config(CONFIG), 1)
    alone, together = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    for out, executor in ((alone, here), (together, pool)):
        with executor as annotate, pictures_of(photos, out, chosen, everything_weights) as items:
            assert run(items, annotate, tell=lambda line: None).failed == 1
    assert rows(alone) == rows(together)


def test_a_slow_picture_holds_up_no_other_and_few_are_held_at_a_time(everything_weights: Path, tmp_path: Path) -> None:
    chosen = settings("http://localhost:1", everything_weights, tmp_path)
    written, held, ninth = list[int](), list[int](), threading.Event()

    def items() -> Iterator[Item]:
        def read(number: int) -> bytes:
            assert number or ninth.wait(60)
            return png(picture(number % 2))

        def write(prediction: dict[str, Any], number: int) -> None:
            written.append(number)
            if len(written) == 9:
                ninth.set()

        for number in range(20):
            held.append(number - len(written))
            yield Item(str(number), partial(read, number), partial(write, number=number))

    with in_process(chosen, everything_weights, read_config(CONFIG)) as annotate:
        assert run(items(), annotate).written == 20
    assert sorted(written) == list(range(20)) and written.index(0) >= 9
    assert max(held) < 8


@pytest.mark.parametrize("problem", [ConnectionError("server is gone"), KeyboardInterrupt()])
def test_nothing_goes_on_after_a_prediction_cannot_be_written(
    problem: BaseException, everything_weights: Path, tmp_path: Path
) -> None:
    taken = list[int]()

    def write(prediction: dict[str, Any]) -> None:
        raise problem

    def items() -> Iterator[Item]:
        for number in range(50):
            taken.append(number)
            yield Item(str(number), lambda: png(picture(0)), write)

    chosen = settings("http://localhost:1", everything_weights, tmp_path)
    with in_process(chosen, everything_weights, read_config(CONFIG)) as annotate, pytest.raises(type(problem)):
        run(items(), annotate)
    assert len(taken) < 8


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
        studio, version = Studio(chosen), read_header(everything_weights).version.version
        studio.predictions = {1: [{"model_version": version + UNFINISHED}], 2: [], 3: [{"model_version": version}]}
        config = read_config(CONFIG)
        with in_process(chosen, everything_weights, config) as annotate:
            summaries = [run(tasks_of(studio, 1, config, version), annotate) for _ in range(2)]
    assert [(s.written, s.done, s.failed) for s in summaries] == [(1, 1, 1), (0, 2, 1)]
    assert [len(studio.predictions[i]) for i in (1, 2, 3)] == [2, 0, 1]


def test_a_model_without_object_queries_is_refused_before_any_picture_is_read(weights: Path, tmp_path: Path) -> None:
    chosen, config = settings("http://localhost:1", weights, tmp_path), read_config(CONFIG)
    for executor in (in_process(chosen, weights, config), processes(chosen, weights, config, 1)):
        with pytest.raises(ConfigError, match="no object queries"), executor:
            pass
