"""Many photos: what lacks a prediction gets the service's, once; a run that was cut off is resumed."""

import contextlib
import json
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from label_studio_sdk.label_interface import LabelInterface

from backend.batch.local import in_this_process
from backend.batch.run import Summary, read_config, run
from backend.batch.sources import Item, PhotoReader, in_folder, photo_items, task_items
from backend.batch.task_lines import TaskLines
from backend.errors import LabelStudioError, TaskRefused
from backend.inference.preannotation import UNFINISHED
from backend.label_studio.client import LabelStudio
from backend.settings import Settings
from semsam_model.checkpoints.header import read_header
from tests.backend.batch.studio_with_photos import Studio, at_work
from tests.backend.photo_studio import CONFIG, NAMED, Files, body, photo, png, serving
from tests.backend.preannotating import built, settings


def rows(out: Path) -> list[dict[str, Any]]:
    """Of every picture its line, in the order of their names: which was done first is by chance."""
    return sorted((json.loads(line) for line in out.read_text().splitlines()), key=lambda row: str(row["data"]))


@contextlib.contextmanager
def photos_of(folder: Path, out: Path, chosen: Settings, weights: Path) -> Iterator[Iterator[Item | None]]:
    """What of a folder is not done."""
    with contextlib.closing(TaskLines(out, read_config(CONFIG), read_header(weights).version.version)) as lines:
        yield photo_items(in_folder(folder, PhotoReader(chosen)), lines)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    (folder / "a.png").write_bytes(png(photo(0)))
    (folder / "broken.png").write_bytes(png(photo(0))[:40])
    (folder / "deeper" / "b.png").write_bytes(png(photo(1)))
    return folder


@pytest.mark.slow
def test_a_folder_gets_what_the_service_says_and_a_killed_run_goes_on(
    photos: Path, region_weights: Path, tmp_path: Path
) -> None:
    with serving(Files()) as url:
        chosen = settings(url, region_weights, tmp_path)
        with built(chosen) as service:
            expected = service.predict_request(body(None, "a.png", "b.png", config=NAMED), "r")
    out, told = tmp_path / "out.jsonl", list[str]()

    def go() -> Summary:
        items = photos_of(photos, out, chosen, region_weights)
        with in_this_process(chosen, region_weights, read_config(NAMED)) as annotate, items as missing:
            return run(missing, annotate, on_failure=told.append)

    first = go()
    assert (first.written, first.failed) == (2, 1)
    assert rows(out) == [
        {"data": {"image": n}, "predictions": [p]} for n, p in zip(("a.png", "deeper/b.png"), expected, strict=True)
    ]
    assert first.regions > 0
    regions = [row for task in rows(out) for row in task["predictions"][0]["result"] if "meta" in row]
    assert any(row["value"]["brushlabels"] == ["sky"] for row in regions)  # named: by the rule it would be a house
    for task in rows(out):
        assert not LabelInterface(NAMED).validate_prediction(task["predictions"][0], return_errors=True)
    assert told[0].startswith("broken.png: ")
    whole = out.read_bytes()
    assert (go().written, out.read_bytes()) == (0, whole)
    out.write_bytes(whole[:-50])
    assert go().written == 1
    assert out.read_bytes() == whole


def test_a_slow_photo_holds_up_no_other_and_few_are_held_at_a_time(region_weights: Path, tmp_path: Path) -> None:
    chosen = settings("http://localhost:1", region_weights, tmp_path)
    written, held, ninth = list[int](), list[int](), threading.Event()

    def items() -> Iterator[Item]:
        def read(number: int) -> bytes:
            assert number or ninth.wait(60)
            return png(photo(number % 2))

        def write(prediction: dict[str, Any], number: int) -> None:
            written.append(number)
            if len(written) == 9:
                ninth.set()

        for number in range(20):
            held.append(number - len(written))
            yield Item(str(number), partial(read, number), partial(write, number=number))

    with in_this_process(chosen, region_weights, read_config(CONFIG)) as annotate:
        assert run(items(), annotate).written == 20
    assert sorted(written) == list(range(20)) and written.index(0) >= 9
    assert max(held) < 8


@pytest.mark.parametrize("problem", [ConnectionError("server is gone"), KeyboardInterrupt()])
def test_nothing_goes_on_after_a_prediction_cannot_be_written(
    problem: BaseException, region_weights: Path, tmp_path: Path
) -> None:
    taken = list[int]()

    def write(prediction: dict[str, Any]) -> None:
        raise problem

    def items() -> Iterator[Item]:
        for number in range(50):
            taken.append(number)
            yield Item(str(number), lambda: png(photo(0)), write)

    chosen = settings("http://localhost:1", region_weights, tmp_path)
    with in_this_process(chosen, region_weights, read_config(CONFIG)) as annotate, pytest.raises(type(problem)):
        run(items(), annotate)
    assert len(taken) < 8


def test_tasks_without_a_prediction_of_this_very_version_get_one_once(region_weights: Path, tmp_path: Path) -> None:
    studio, version = Studio("a.png", "missing.png", "b.png"), read_header(region_weights).version.version
    studio.predictions = {1: [{"model_version": version + UNFINISHED}], 2: [], 3: [{"model_version": version}]}
    with at_work(studio) as url:
        chosen, config = settings(url, region_weights, tmp_path), read_config(CONFIG)
        with in_this_process(chosen, region_weights, config) as annotate:
            summaries = [run(task_items(LabelStudio(chosen), 1, config, version), annotate) for _ in range(2)]
    assert [(s.written, s.done, s.failed) for s in summaries] == [(1, 1, 1), (0, 2, 1)]
    assert [len(studio.predictions[i]) for i in (1, 2, 3)] == [2, 0, 1]


def test_a_task_that_goes_or_gets_its_prediction_meanwhile_is_passed_and_the_rest_goes_on(
    region_weights: Path, tmp_path: Path
) -> None:
    """Deleted: 1 before it is asked for, 2 while it is annotated, 3 at the last moment. 4: retrieved meanwhile. 5: its
    prediction is refused. 6: names no picture."""
    version = read_header(region_weights).version.version
    studio = Studio("a.png", "b.png", "turned.png", "4.png", "5.png", "", "a.png")
    studio.files |= {f"/data/upload/1/{number}.png": png(photo(number)) for number in (4, 5)}
    studio.images[6], studio.refused = "", {5}

    def meanwhile(path: str, times: int) -> None:
        if path == "task 1" and times == 1:
            studio.delete(1)
        elif path == "/data/upload/1/b.png":
            studio.delete(2)
        elif path == "/data/upload/1/4.png":
            studio.predictions[4].append({"model_version": version})

    studio.on_get = meanwhile
    take = studio.post

    def post(prediction: dict[str, Any]) -> bool:
        if prediction["task"] == 3:
            studio.delete(3)
        return take(prediction)

    studio.post = post  # type: ignore[method-assign]
    told = list[str]()
    with at_work(studio) as url:
        chosen, config = settings(url, region_weights, tmp_path), read_config(CONFIG)
        with in_this_process(chosen, region_weights, config) as annotate:
            summary = run(task_items(LabelStudio(chosen), 1, config, version), annotate, on_failure=told.append)
    assert (summary.written, summary.done, summary.failed) == (1, 1, 5)
    assert {n: len(found) for n, found in studio.versions().items() if found} == {4: 1, 7: 1}
    reasons = dict(line.split(": ", 1) for line in told)
    assert set(reasons) == {f"task {number}" for number in (1, 2, 3, 5, 6)}
    assert (
        "not in project" in reasons["task 1"] and "not in project" in reasons["task 2"] and "400" in reasons["task 3"]
    )
    assert "400" in reasons["task 5"] and "address of a photo" in reasons["task 6"]


def test_where_label_studio_answers_nothing_the_run_ends(region_weights: Path, tmp_path: Path) -> None:
    studio = Studio("a.png", "b.png")
    with at_work(studio) as url:
        chosen, config = settings(url, region_weights, tmp_path), read_config(CONFIG)
        tasks = task_items(LabelStudio(chosen), 1, config, "tiny-0")
        first = next(tasks)
        assert isinstance(first, Item)
        studio.gone = True
        with pytest.raises(LabelStudioError, match="503") as ended:
            first.write({})
        assert not isinstance(ended.value, TaskRefused)
        with pytest.raises(LabelStudioError, match="503") as ended:
            next(tasks)
        assert not isinstance(ended.value, TaskRefused)
