"""semsam batch on a real Ray on this machine: the same predictions, each picture once, whoever dies."""

import contextlib
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import ray
from ray import cloudpickle

from backend.batch.local import in_this_process
from backend.batch.ray_cluster import actor_resources, on_ray
from backend.batch.run import Summary, read_config, run
from backend.batch.sources import Item, PhotoFile, PhotoReader, task_items
from backend.errors import BackendError, SettingsError
from backend.label_studio.client import LabelStudio
from semsam_model.checkpoints.header import read_header
from tests.backend.batch.studio_with_photos import Studio, at_work
from tests.backend.batch.test_local import REASONS, annotated, listed
from tests.backend.batch.test_run import photos_of, rows
from tests.backend.photo_studio import CONFIG, NAMED, photo, png
from tests.backend.preannotating import settings
from tests.backend.studio_http import TOKEN
from tests.paths import ROOT

CONFIGURED = read_config(CONFIG)


class Cluster(NamedTuple):
    address: str
    logs: Path


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A small Ray that this process is connected to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("LABEL_STUDIO_API_KEY", TOKEN)
        patch.setenv("PYTHONPATH", str(ROOT))  # workers import what is tested
        patch.setenv("RAY_worker_niceness", "0")  # by 15 lower, workers get no turn where other tests are running
        memory = 80 * 2**20
        context = ray.init(
            "local",
            num_cpus=2,
            object_store_memory=memory,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        yield Cluster(context.address_info["gcs_address"], Path(context.address_info["session_dir"]) / "logs")
        ray.shutdown()


def actors() -> list[int]:
    """The processes of this process's Ray that hold a model."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may have ended
            if (folder / "cmdline").read_bytes().startswith(b"ray::MapWorker(MapBatches(_Worker))"):
                raylet = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                parent = (Path("/proc") / raylet / "stat").read_text().rpartition(")")[2].split()[1]
                found += [int(folder.name)] if int(parent) == os.getpid() else []
    return found


@pytest.mark.slow
def test_whoever_is_killed_every_photo_is_annotated_once_and_as_in_one_process(
    cluster: Cluster, region_weights: Path, tmp_path: Path
) -> None:
    folder, out, alone = tmp_path / "photos", tmp_path / "tasks.jsonl", tmp_path / "alone.jsonl"
    folder.mkdir()
    for number in range(24):
        (folder / f"{number:02}.png").write_bytes(png(photo(number))[: 40 if number == 22 else None])
    (tmp_path / "labeling.xml").write_text(CONFIG)
    chosen = settings("http://localhost:1", region_weights, tmp_path)
    command = [sys.executable, "-c", "from backend.cli.main import main; main()", "batch", "--ray", cluster.address]
    command += ["--folder", "photos", "--labeling", "labeling.xml", "--out", "tasks.jsonl", "--rate", "1000"]
    own = {"SEMSAM_MODEL": "tiny", "SEMSAM_WEIGHTS": str(region_weights), "SEMSAM_PREANNOTATE_THRESHOLD": "0"}
    with (tmp_path / "log").open("w+") as log:
        driver = subprocess.Popen(command, cwd=tmp_path, env=os.environ | own, stdout=log, stderr=log)
        while not out.exists() or not out.stat().st_size:
            assert driver.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        driver.kill()
        driver.wait()
    before = out.read_bytes().count(b"\n")
    assert before < 20

    told, killed = list[str](), list[int]()

    def kill_one(summary: Summary) -> None:
        if summary.written == 1:
            killed.extend(actors())
            os.kill(killed[0], signal.SIGKILL)

    def go(out: Path, executor: Any, on_photo: Any = lambda summary: None) -> Summary:
        with photos_of(folder, out, chosen, region_weights) as items, executor as annotate:
            return run(items, annotate, on_failure=told.append, on_photo=on_photo)

    weights = region_weights
    second = go(out, on_ray(cluster.address, chosen, weights, CONFIGURED, 1), kill_one)
    assert len(killed) == 1
    assert (second.done, second.written, second.failed) == (before, 23 - before, 1)
    assert told == [
        "22.png: photo: expected PNG, JPEG, WEBP, BMP, TIFF, GIF, AVIF, got a PNG file, cut short or damaged"
    ]
    go(alone, in_this_process(chosen, weights, CONFIGURED))
    assert rows(out) == rows(alone)


@pytest.mark.slow
def test_a_photo_that_no_worker_survives_is_reported_the_rest_goes_on_and_no_log_has_the_token(
    cluster: Cluster, region_weights: Path, tmp_path: Path
) -> None:
    def read() -> bytes:
        os.kill(os.getpid(), signal.SIGKILL)
        return b""

    told = list[str]()
    studio = Studio("a.png", "missing.png", "b.png")
    with at_work(studio) as url:
        chosen = settings(url, region_weights, tmp_path)
        tasks = task_items(LabelStudio(chosen), 1, CONFIGURED, read_header(region_weights).version.version)
        items = chain([Item("killer", read, print)], tasks)
        # the third photo is in a dataset of its own
        executor = on_ray(cluster.address, chosen, region_weights, CONFIGURED, 1, first=2, retries=0)
        with executor as annotate:
            summary = run(items, annotate, on_failure=told.append)
    assert (summary.written, summary.failed) == (2, 2)
    assert told[0] == "killer: the worker that had it died each time; see the logs of the cluster"
    assert told[1].startswith("task 2: ") and "missing.png" in told[1]
    assert [len(studio.predictions[number]) for number in (1, 2, 3)] == [1, 0, 1]
    logs = [path for path in cluster.logs.rglob("*") if path.is_file()]
    assert len(logs) > 10 and not [path for path in logs if TOKEN.encode() in path.read_bytes()]


@pytest.mark.slow
def test_what_fails_is_told_as_on_one_machine_and_the_answers_are_the_same(
    cluster: Cluster, region_weights: Path, tmp_path: Path
) -> None:
    chosen, config = settings("http://localhost:1", region_weights, tmp_path), read_config(NAMED)
    with on_ray(cluster.address, chosen, region_weights, config, 1) as annotate:
        there = annotated(listed(chosen), annotate)
    with in_this_process(chosen, region_weights, config) as annotate:
        here = annotated(listed(chosen), annotate)
    assert there[:2] == here[:2]
    assert set(there[2]) == set(here[2]) == REASONS


@pytest.mark.slow
def test_without_a_text_encoder_on_a_worker_the_run_ends_and_says_so(
    cluster: Cluster, region_weights: Path, tmp_path: Path
) -> None:
    (tmp_path / "encoder").mkdir()
    blind = settings("http://localhost:1", region_weights, tmp_path, text_encoder=str(tmp_path / "encoder"))
    written = dict[str, Any]()
    items = [Item(item.name, item.read, partial(written.__setitem__, item.name)) for item in listed(blind)]
    reason = f"a worker on .* cannot begin: .*without the text encoder.*{tmp_path}"
    with (
        on_ray(cluster.address, blind, region_weights, read_config(NAMED), 1) as annotate,
        pytest.raises(BackendError, match=reason),
    ):
        run(iter(items), annotate)
    assert written == {}


def test_tokens_do_not_travel_a_worker_takes_those_of_its_environment(
    region_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with at_work(Studio("a.png")) as url:
        chosen = settings(url, region_weights, tmp_path)
        (item,) = task_items(LabelStudio(chosen), 1, CONFIGURED, "tiny-0")
        assert isinstance(item, Item)
        sent = cloudpickle.dumps(item.read)
        assert TOKEN.encode() not in sent
        monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
        with pytest.raises(SettingsError, match="LABEL_STUDIO_API_KEY"):
            pickle.loads(sent)
        monkeypatch.setenv("LABEL_STUDIO_API_KEY", TOKEN)
        assert pickle.loads(sent)() == png(photo(0))


def test_a_reader_that_travels_reads_the_same_files_and_takes_no_token_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(b"picture")
    monkeypatch.chdir(tmp_path)
    reader = PhotoReader(settings("http://localhost:1", tmp_path, tmp_path))
    sent = cloudpickle.dumps(PhotoFile("a.png", partial(reader.read, "a.png")).read)
    monkeypatch.chdir("/")
    assert TOKEN.encode() not in sent
    assert pickle.loads(sent)() == b"picture"


@pytest.mark.parametrize(
    ("gpus", "device", "workers", "expected"),
    [
        (0, "auto", 3, ("cpu", {"num_cpus": 0.5})),
        (2, "cpu", 3, ("cpu", {"num_cpus": 0.5})),
        (2, "auto", 1, ("cuda", {"num_cpus": 1, "num_gpus": 1})),
        (2, "cuda:1", 2, ("cuda", {"num_cpus": 1, "num_gpus": 1})),
        (2, "auto", 5, ("cuda", {"num_cpus": 1, "num_gpus": 1 / 3})),
    ],
)
def test_workers_share_the_gpus_evenly(gpus: int, device: str, workers: int, expected: tuple[str, Any]) -> None:
    assert actor_resources({"CPU": 8.0} | ({"GPU": float(gpus)} if gpus else {}), device, workers) == expected


def test_a_gpu_that_is_not_there_is_missed_before_the_start() -> None:
    with pytest.raises(BackendError, match="no GPU"):
        actor_resources({"CPU": 8.0}, "cuda", 1)
