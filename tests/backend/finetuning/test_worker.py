"""The worker with a tiny model: from corrections in the store to a version, whatever dies on the way."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import Connection, insert
from sqlalchemy import update as sql_update
from typer.testing import CliRunner

from backend.cli.main import app
from backend.corrections.archive import PhotoArchive, open_photos
from backend.errors import StoreUnavailable
from backend.finetuning import jobs, snapshot
from backend.finetuning.job_runner import Steps, teaches
from backend.finetuning.worker import Worker
from backend.records import ProjectKey
from backend.settings import Settings
from backend.store.database import Store, open_store
from backend.store.tables import jobs as job_rows
from backend.store.tables import projects, regions
from backend.versions.registry import Registry, open_registry
from backend.versions.version import Activation
from semsam_model.checkpoints.header import find_weights
from semsam_model.data.samples import CocoMask
from semsam_model.data.split import split_of
from semsam_model.data.synthetic import draw_scene
from semsam_model.errors import Stopped
from semsam_model.finetuning.loop import fine_tune
from semsam_model.gate.photo_agreement import PhotoAgreement, measure_agreement
from semsam_model.gate.report import render_report
from semsam_model.gate.verdict import Comparison, compare
from semsam_model.types import ShouldStop
from tests.backend.s3 import serving_s3

KEY = ProjectKey("http://ls:8080", 1)
NOW = datetime.now(UTC)
CONFIG = """
finetune: {steps: STEPS, batch: 1, size: 96, views: 1, scenes: 1, ranker_photos: 0, save_every: 2,
  sampling: {prompts: 2}, loss: {points: 16, match_points: 16}}
gate: {scenes: 1, photos: 2, resamples: 50, min_photos: 1, min_masks: 1, MARGINS}
"""
ANYTHING = "margin: -100.0, tolerance: 100.0, pictures: 0"  #: promotes whatever comes
NOTHING = "margin: 100.0, pictures: 0"


def write_config(folder: Path, margins: str, steps: int = 4) -> Path:
    path = folder / "finetune.yaml"
    path.write_text(CONFIG.replace("STEPS", str(steps)).replace("MARGINS", margins))
    return path


@pytest.fixture
def settings(tmp_path: Path, weights: Path) -> Settings:
    return Settings(
        model="tiny",
        weights=weights,
        data_dir=tmp_path,
        finetune_config=write_config(tmp_path, ANYTHING),
        device="cpu",
    )


def correct(store: Store, photos: PhotoArchive, scenes: range) -> None:
    """Made scenes, labelled: three regions each, one accepted, one corrected, one drawn."""
    with store.write() as connection:
        if 0 in scenes:
            row = {"origin": KEY.origin, "project": 1, "title": "", "label_config": "", "updated_at": NOW}
            connection.execute(insert(projects).values(**row))
        for task in scenes:
            scene = draw_scene(3, task, (96, 96))
            file = io.BytesIO()
            Image.fromarray(scene.image).save(file, "png")
            sha256 = photos.keep(file.getvalue())
            for index, (outcome, iou) in enumerate((("accepted", 1.0), ("corrected", 0.4), ("drawn", None))):
                if index >= len(scene.masks):
                    break
                rle = CocoMask.of(scene.masks[index]).segmentation
                assert isinstance(rle, dict)
                parent = scene.parents[index]
                row = {
                    "origin": KEY.origin,
                    "project": 1,
                    "task": task,
                    "annotation": task,
                    "region": str(index),
                    "image_sha256": sha256,
                    "width": 96,
                    "height": 96,
                    "labels": [scene.names[index]],
                    "parent": None if parent is None else str(parent),
                    "mask": rle["counts"],
                    "outcome": outcome,
                    "iou_with_offer": iou,
                    "ground_truth": False,
                    "updated_at": NOW,
                }
                connection.execute(insert(regions).values(**row))


def make_worker(settings: Settings, store: Store, **steps: Any) -> Worker:
    """A worker whose jobs run these steps in place of the real ones."""
    return Worker(settings, store, open_registry(settings, store), open_photos(settings), steps=Steps(**steps))


def prepared(settings: Settings, scenes: int = 10, **steps: Any) -> tuple[Store, Worker]:
    store = open_store(settings)
    correct(store, open_photos(settings), range(scenes))
    return store, make_worker(settings, store, **steps)


def refused(store: Store, worker: Worker) -> jobs.Job:
    """A job that was asked for, run, and refused."""
    jobs.request(store, KEY, "button")
    job = worker.run_one()
    assert job is not None
    assert job.state == "refused"
    return job


@pytest.mark.slow
def test_a_job_ends_in_a_version_that_is_live_with_its_report_and_figures(settings: Settings) -> None:
    store, worker = prepared(settings)
    base = worker.runner.registry.live().version
    jobs.request(store, KEY, "button")
    job = worker.run_one()
    assert job is not None
    assert (job.state, job.message, job.attempts) == ("promoted", "", 1)
    live = worker.runner.registry.live().version
    assert (live.version, live.parent, live.data_digest) == (job.version, base.version, job.data_digest)
    assert live.figures["gate"] == job.verdict
    assert job.verdict["promoted"]
    assert job.verdict["held_out"]["masks"] > 0
    assert "Promoted" in (live.folder / "gate.html").read_text()
    assert job.report == str(worker.runner.folder(job) / "gate.html")
    assert json.dumps(job.to_dict())
    left = {path.name for path in worker.runner.folder(job).iterdir()}
    assert left == {"snapshot.jsonl", "gate.html", "gate.json"}, "the weights lie beside the version"
    assert worker.run_one() is None
    store.close()


@pytest.mark.slow
def test_photos_in_an_object_store_make_the_same_version_and_their_copies_go(settings: Settings) -> None:
    versions = set()
    with serving_s3():
        for name, photo_store in (("folder", None), ("store", "s3://photos/kept")):
            there = replace(settings, data_dir=settings.data_dir / name, photo_store=photo_store)
            store, worker = prepared(there)
            jobs.request(store, KEY, "button")
            job = worker.run_one()
            assert job is not None and job.state == "promoted"
            versions.add(job.version)
            left = {path.name for path in worker.runner.folder(job).iterdir()}
            assert left == {"snapshot.jsonl", "gate.html", "gate.json"}
            assert (there.data_dir / "photos").exists() == (photo_store is None)
            store.close()
    assert len(versions) == 1


@pytest.mark.slow
def test_a_refused_job_keeps_its_reasons_and_changes_nothing_that_is_live(settings: Settings, tmp_path: Path) -> None:
    write_config(tmp_path, NOTHING)
    store, worker = prepared(settings)
    base = worker.runner.registry.live().version
    job = refused(store, worker)
    assert "no clear gain" in job.message
    assert worker.runner.registry.live().version == base
    registered = [version.version for version in worker.runner.registry.all()]
    assert job.version in registered, "can still be activated by hand"
    store.close()


def test_too_few_photos_are_refused_before_anything_is_trained(settings: Settings) -> None:
    store, worker = prepared(settings, scenes=1)
    job = refused(store, worker)
    assert "too few corrections" in job.message
    assert not (worker.runner.folder(job) / "finetune.pt").exists()
    store.close()


def test_masks_too_small_for_the_gate_are_not_counted_and_nothing_is_trained(settings: Settings) -> None:
    store, worker = prepared(settings, fine_tune=unwanted)

    def draw(mask: np.ndarray) -> None:
        rle = CocoMask.of(mask).segmentation
        assert isinstance(rle, dict)
        with store.write() as connection:
            connection.execute(sql_update(regions).values(mask=rle["counts"]))

    tiny = np.zeros((96, 96), bool)
    tiny[40:47, 40:49] = True  # 63 pixels
    draw(tiny)
    job = refused(store, worker)
    assert "too few corrections" in job.message
    assert "0 photos with 0 regions of at least 64 pixels held out" in job.message
    tiny[47, 40] = True  # one more, and there are enough
    draw(tiny)
    jobs.request(store, KEY, "button")
    job = worker.run_one()
    assert job is not None
    assert job.message == "AssertionError: not wanted"
    store.close()


def test_masks_that_have_nothing_to_do_with_their_photos_are_refused_before_anything_is_trained(
    settings: Settings, tmp_path: Path
) -> None:
    write_config(tmp_path, "margin: -100.0, tolerance: 100.0")
    store, worker = prepared(settings)  # to a model that knows nothing, all masks are such
    job = refused(store, worker)
    assert "do not follow their photos" in job.message
    assert not (worker.runner.folder(job) / "child.safetensors").exists()
    assert len(worker.runner.registry.all()) == 1
    store.close()


@pytest.mark.slow
def test_a_version_made_live_meanwhile_by_hand_is_not_replaced(settings: Settings) -> None:
    store, first = prepared(settings)
    registry = first.runner.registry
    jobs.request(store, KEY, "button")
    earlier = first.run_one()
    assert earlier is not None
    registry.rollback()
    correct(store, open_photos(settings), range(20, 22))  # so that another child comes out
    base = registry.base.version

    def meanwhile(*given: Any, **more: Any) -> Comparison:
        registry.activate(earlier.version or "", reason="by hand")
        return compare(*given, **more)

    job = refused(store, make_worker(settings, store, compare=meanwhile))
    assert job.parent == base
    assert job.version not in (base, earlier.version)
    assert f"compared with {base}, but {earlier.version} has become the live one meanwhile" in job.message
    assert registry.live().version.version == earlier.version
    store.close()


def expire(store: Store) -> None:
    """As if the job's worker had died long ago, and no other one before."""
    with store.write() as connection:
        past = datetime.now(UTC) - timedelta(seconds=1)
        connection.execute(sql_update(job_rows).values(lease_until=past, attempts=1))


def update(key: ProjectKey, should_stop: ShouldStop) -> None:
    if should_stop():
        raise Stopped("asked to stop")


def unwanted(*_: Any, **more: Any) -> Any:
    raise AssertionError("not wanted")


@pytest.mark.slow
def test_a_worker_that_has_lost_its_job_leaves_the_files_to_the_next_one(settings: Settings) -> None:
    store = open_store(settings)

    def meanwhile(*given: Any, **more: Any) -> str:
        expire(store)
        assert jobs.claim(store, "next", timedelta(seconds=60)) is not None
        return render_report(*given, **more)

    correct(store, open_photos(settings), range(10))
    worker = make_worker(settings, store, render_report=meanwhile)
    jobs.request(store, KEY, "button")
    job = worker.run_one()
    assert job is not None
    assert (job.state, job.worker) == ("running", "next")
    assert {"child.safetensors", "finetune.pt"} <= {path.name for path in worker.runner.folder(job).iterdir()}
    assert worker.runner.registry.all() == [worker.runner.registry.base]
    store.close()


class FailingStore(Store):
    """A database that can be away."""

    away = False

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        if self.away:
            raise StoreUnavailable("away")
        with super().write() as connection:
            yield connection


@pytest.mark.slow
@pytest.mark.parametrize("rolled_back", [False, True])
def test_a_database_that_goes_away_after_the_promotion_loses_no_promotion(
    settings: Settings, rolled_back: bool
) -> None:
    store = FailingStore.open(f"sqlite:///{settings.data_dir}/semsam.db")
    assert isinstance(store, FailingStore)
    correct(store, open_photos(settings), range(10))
    jobs.request(store, KEY, "button")
    registry = open_registry(settings, store)

    class AwayOncePromoted(Registry):
        def activate(self, *given: Any, **more: Any) -> Activation:
            activation = registry.activate(*given, **more)
            store.away = True
            return activation

    weights, header = find_weights(settings.model, settings.weights)
    fragile = AwayOncePromoted(store, settings.data_dir / "versions", weights, header)
    with pytest.raises(StoreUnavailable):
        Worker(settings, store, fragile, open_photos(settings)).run_one()
    store.away = False
    promoted = registry.live().version
    assert promoted.number == 1
    if rolled_back:
        registry.rollback()
    expire(store)
    worker = make_worker(settings, store, compare=unwanted)
    job = worker.run_one()
    assert job is not None
    assert (job.state, job.version, job.message) == ("promoted", promoted.version, "")
    assert job.verdict == promoted.figures["gate"]
    assert job.report == str(worker.runner.folder(job) / "gate.html")
    live = registry.live().version
    assert live == (registry.base if rolled_back else promoted), "a rollback is not undone"
    store.close()


@pytest.mark.slow
def test_a_worker_killed_at_any_stage_leaves_a_job_that_ends_as_if_it_had_not_been(
    settings: Settings, tmp_path: Path
) -> None:
    store, worker = prepared(settings)
    asked, _ = jobs.request(store, KEY, "button")
    arguments = [str(tmp_path), str(settings.weights), str(settings.finetune_config)]
    command = [sys.executable, "-m", "tests.backend.finetuning.killed_worker", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    stages = ["compare", "render_report", "register", "activate", "has_been_live"]
    assert json.loads(done.stdout) == [[stage, -signal.SIGKILL] for stage in stages]
    expire(store)
    job = worker.run_one()
    assert job is not None
    assert (job.id, job.state, job.message) == (asked.id, "promoted", "")
    registry = worker.runner.registry
    assert [version.version for version in registry.all()] == [registry.base.version, job.version]
    assert [each.version.number for each in registry.stack()] == [1, 0], "activated once"
    store.close()


def never_refuse(*given: Any, **more: Any) -> PhotoAgreement:
    """A model that knows nothing agrees with no photo; here that is no reason to refuse."""
    return replace(measure_agreement(*given, **more), asked=False)


REAL: dict[str, Callable[..., Any]] = {
    "bring_up_to_date": update,
    "measure_agreement": never_refuse,
    "fine_tune": fine_tune,
    "compare": compare,
    "render_report": render_report,
}


@pytest.mark.slow
def test_a_worker_asked_to_stop_at_any_stage_gives_its_job_back_at_once_and_the_next_goes_on(
    settings: Settings, tmp_path: Path
) -> None:
    path = write_config(tmp_path, ANYTHING.replace("pictures: 0", "pictures: 0.99"), steps=2)
    path.write_text(path.read_text().replace("ranker_photos: 0", "ranker_photos: 2"))
    store, _ = prepared(settings)
    jobs.request(store, KEY, "button")
    finished = []

    def stopped_in(stage: str) -> jobs.Job:
        """The job after a worker was asked to stop as soon as this stage had begun."""

        def begin(*given: Any, **more: Any) -> Any:
            worker.stopping.set()
            done = REAL[stage](*given, **more)
            finished.append(stage)
            return done

        def learn_ranker(*given: Any, should_stop: ShouldStop, **more: Any) -> Any:
            asked = itertools.count(1)

            def stop_late() -> bool:
                if next(asked) > 2:  # before each of the two steps; from then on the ranker is fitted
                    worker.stopping.set()
                return should_stop()

            return fine_tune(*given, should_stop=stop_late, **more)

        steps = {"fine_tune": learn_ranker} if stage == "ranker" else {stage: begin}
        worker = make_worker(settings, store, **REAL | steps)
        job = worker.run_one()
        assert job is not None
        assert worker.stopping.is_set(), stage
        return job

    for stage in ("bring_up_to_date", "measure_agreement", "fine_tune", "ranker", "compare", "render_report"):
        job = stopped_in(stage)
        assert (job.state, job.attempts, job.worker) == ("queued", 0, None), stage
    assert finished == []
    ended = make_worker(settings, store, **REAL).run_one()
    assert ended is not None
    assert (ended.state, ended.attempts, ended.data_digest) == ("promoted", 1, job.data_digest)
    store.close()


@pytest.mark.slow
def test_what_a_killed_worker_had_done_is_gone_on_with_by_the_next(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_config(tmp_path, ANYTHING, steps=24)
    store, worker = prepared(settings)
    job, _ = jobs.request(store, KEY, "button")
    environment = {
        "SEMSAM_MODEL": "tiny",
        "SEMSAM_WEIGHTS": str(settings.weights),
        "SEMSAM_DATA_DIR": str(tmp_path),
        "SEMSAM_FINETUNE_CONFIG": str(settings.finetune_config),
        "SEMSAM_WORKER_THREADS": "1",
        "SEMSAM_WORKER_NICE": "0",
        "SEMSAM_DEVICE": "cpu",
    }
    command = [sys.executable, "-m", "backend.cli.main", "worker"]
    process = subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 240
        while jobs.find(store, job.id).step < 3:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    left = jobs.find(store, job.id)
    assert left.state == "running"
    with store.write() as connection:
        connection.execute(sql_update(job_rows).values(lease_until=datetime.now(UTC) - timedelta(seconds=1)))
    snapshotted = snapshot.read(worker.runner.folder(job))
    correct(store, open_photos(settings), range(20, 22))  # come too late for this job

    caplog.set_level("INFO")
    ended = worker.run_one()
    assert ended is not None
    assert (ended.state, ended.attempts) == ("promoted", 2)
    assert snapshotted is not None
    assert ended.data_digest == snapshotted.digest != snapshot.take(store, KEY, tmp_path / "later").digest
    resumed = [record.args for record in caplog.records if "goes on at step" in record.msg]
    assert resumed
    assert resumed[0][0] >= 2
    store.close()


@pytest.mark.slow
def test_a_worker_yields_to_whoever_answers_clicks() -> None:
    program = """
import os, torch
from backend.settings import Settings
from backend.finetuning.worker import out_of_the_way
before = os.nice(0)
out_of_the_way(Settings(worker_nice=3, worker_threads=3))
print(os.nice(0) - before, torch.get_num_threads())
out_of_the_way(Settings(worker_nice=2))
print(os.nice(0) - before, torch.get_num_threads())
"""
    # a process of its own: a priority that was given up does not come back
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    half = max(1, (os.cpu_count() or 2) // 2)
    assert done.stdout.split() == ["3", "3", "5", str(half)]


@pytest.mark.slow
def test_a_photo_learns_or_is_held_out_and_weights_say_how_wrong_the_model_was(settings: Settings) -> None:
    store, _ = prepared(settings)
    taken = snapshot.take(store, KEY, settings.data_dir)
    train, held_out = (taken.samples(open_photos(settings), split, "project_1") for split in ("train", "val"))
    assert len(train) + len(held_out) == 10
    assert {split_of(sample.path.name) for sample in held_out} == {"val"}
    weights = [region.weight for region in train[0].regions]
    assert weights == [0.25, pytest.approx(0.25 + 0.75 * 0.6), 1.0][: len(weights)]
    scene = train[0].image()
    assert scene.shape == (96, 96, 3)
    store.close()


@pytest.mark.slow
def test_the_command_runs_a_job_here_and_lists_it(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = prepared(settings)
    store.close()
    for name, value in (
        ("MODEL", "tiny"),
        ("WEIGHTS", settings.weights),
        ("DATA_DIR", tmp_path),
        ("FINETUNE_CONFIG", settings.finetune_config),
        ("WORKER_THREADS", "1"),
        ("WORKER_NICE", "0"),
        ("DEVICE", "cpu"),
        ("LABEL_STUDIO_URL", "http://127.0.0.1:9"),
    ):
        monkeypatch.setenv(f"SEMSAM_{name}", str(value))
    runner = CliRunner()
    for said in ("job 1 waits for a worker", "job 1 of this project is queued already"):
        assert said in runner.invoke(app, ["finetune", "--project", "1", "--queue"]).output
    assert not (tmp_path / "jobs").exists(), "it is only asked for"
    result = runner.invoke(app, ["finetune", "--project", "1"])
    assert result.exit_code == 0, result.output
    assert "promoted" in result.output
    (listed,) = json.loads(runner.invoke(app, ["jobs", "--json"]).output)
    assert (listed["project"], listed["trigger"], listed["state"]) == (1, "command", "promoted")


def test_a_job_says_what_of_the_answers_it_can_make_better() -> None:
    assert teaches(Settings()) == "masks, names and order"
    assert teaches(Settings(model="swin_t")).startswith("masks; names are those of the embedded model")
    assert teaches(Settings(engine="transformers:sam")).startswith(
        "names and order; masks are those of transformers:sam"
    )
