"""Photos annotated in this process and in worker processes: the same answers, whatever a picture or a worker does."""

import contextlib
import multiprocessing
import os
import signal
import threading
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from backend.batch.local import GIVEN_UP, in_this_process, in_worker_processes
from backend.batch.run import Annotate, Summary, read_config, run
from backend.batch.sources import Item, PhotoReader, in_list
from backend.errors import BackendError
from backend.settings import Settings
from semsam_model.errors import ConfigError, TextEncoderError
from tests.backend.photo_studio import CONFIG, NAMED, photo, png
from tests.backend.preannotating import settings

CONFIGURED = read_config(CONFIG)


class Reads:
    """Gives a picture's bytes, or fails; may be pickled."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self) -> bytes:
        if self.number == 3:
            raise RuntimeError("out of something")
        return png(photo(self.number))[: 40 if self.number == 2 else None]


def listed(settings: Settings) -> list[Item]:
    """Eight photos: 2 is cut off, 3 fails as nobody expected, and 8 has a name that no file can have."""
    items = [Item(str(number), Reads(number), print) for number in range(8)]
    (odd,) = in_list(BytesIO(b"\xff\0.png"), PhotoReader(settings))
    return [*items, Item(odd.image, odd.read, print)]


REASONS = {
    "2: photo: expected PNG, JPEG, WEBP, BMP, TIFF, GIF, AVIF, got a PNG file, cut short or damaged",
    "3: RuntimeError: out of something",
    "\\udcff\0.png: ValueError: embedded null byte",
}


def annotated(items: list[Item], annotate: Annotate) -> tuple[Summary, dict[str, Any], list[str]]:
    """Also what was written, by name, and what was told."""
    written, told = dict[str, Any](), list[str]()
    kept = [Item(item.name, item.read, partial(written.__setitem__, item.name)) for item in items]
    return run(iter(kept), annotate, on_failure=told.append), written, told


def kill(count: int | None = None) -> None:
    """Some or all worker processes of this one."""
    for child in multiprocessing.active_children()[:count]:
        assert child.pid is not None
        with contextlib.suppress(ProcessLookupError):  # gone by itself
            os.kill(child.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_photo_that_kills_its_worker_is_given_up_and_a_killed_worker_costs_nothing(
    region_weights: Path, tmp_path: Path
) -> None:
    chosen = settings("http://localhost:1", region_weights, tmp_path)
    first = threading.Event()

    def victim() -> bytes:
        if not first.is_set():
            first.set()
            kill(1)
        return Reads(0)()

    def killer() -> bytes:
        kill()
        return Reads(0)()

    items = listed(chosen)
    with in_this_process(chosen, region_weights, CONFIGURED) as annotate:
        alone = annotated(items, annotate)
    assert (alone[0].written, alone[0].failed) == (6, 3)
    assert set(alone[2]) == REASONS
    items.insert(4, Item("victim", victim, print))
    items.insert(5, Item("killer", killer, print))
    with in_worker_processes(chosen, region_weights, CONFIGURED, 2) as annotate:
        summary, written, told = annotated(items, annotate)
    assert written == {**alone[1], "victim": alone[1]["0"]}
    assert (summary.written, summary.failed) == (7, 4)
    assert set(told) == REASONS | {f"killer: {GIVEN_UP}"} and len(told) == 4
    assert not multiprocessing.active_children()


def test_workers_that_cannot_begin_say_so_and_not_that_one_should_try_again(
    region_weights: Path, tmp_path: Path
) -> None:
    chosen = settings("http://localhost:1", region_weights, tmp_path)
    ended = threading.Event()

    def kill_at_start() -> None:
        while not ended.wait(0.01):
            kill()

    killing = threading.Thread(target=kill_at_start)
    killing.start()
    try:
        executor = in_worker_processes(chosen, region_weights, CONFIGURED, 2)
        with pytest.raises(BackendError, match=r"--workers 2: .* cannot begin: it died while it loaded"), executor:
            pass
    finally:
        ended.set()
        killing.join()
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_without_a_text_encoder_no_batch_begins_that_would_need_it(region_weights: Path, tmp_path: Path) -> None:
    (tmp_path / "encoder").mkdir()
    blind = settings("http://localhost:1", region_weights, tmp_path, text_encoder=str(tmp_path / "encoder"))
    with (
        pytest.raises(TextEncoderError, match=f"without the text encoder.*{tmp_path}"),
        in_this_process(blind, region_weights, read_config(NAMED)),
    ):
        pass
    with in_this_process(blind, region_weights, CONFIGURED) as annotate:  # nothing to tell apart
        assert annotated([Item("0", Reads(0), print)], annotate)[0].written == 1


@pytest.mark.slow
def test_why_a_worker_cannot_begin_is_told(region_weights: Path, tmp_path: Path) -> None:
    altered, content = tmp_path / "altered.safetensors", bytearray(region_weights.read_bytes())
    content[-1] ^= 1
    altered.write_bytes(content)
    executor = in_worker_processes(settings("http://localhost:1", altered, tmp_path), altered, CONFIGURED, 1)
    with pytest.raises(BackendError, match=r"--workers 1: a worker process cannot begin: .*altered"), executor:
        pass


def test_a_model_without_object_queries_is_refused_before_any_photo_is_read(weights: Path, tmp_path: Path) -> None:
    chosen = settings("http://localhost:1", weights, tmp_path)
    for executor in (in_this_process(chosen, weights, CONFIGURED), in_worker_processes(chosen, weights, CONFIGURED, 1)):
        with pytest.raises(ConfigError, match="no object queries"), executor:
            pass
