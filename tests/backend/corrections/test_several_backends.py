"""Several backends on one store: each piece of work is one's, and what one hears all know."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backend.corrections import inbox
from backend.corrections.archive import PhotoArchive
from backend.corrections.inbox import enqueue, process_inbox
from backend.corrections.introductions import Introductions
from backend.corrections.queries import count, count_waiting
from backend.corrections.sync_thread import SyncThread
from backend.corrections.writer import StoreWriter
from backend.label_studio.client import LabelStudio
from backend.label_studio.events import parse_webhook
from backend.metrics import Metrics
from backend.records import ProjectKey
from backend.settings import Settings
from backend.store.database import Store
from tests.backend import postgres
from tests.backend.annotations import KEY, ORIGIN, annotation, brush_row, event, square
from tests.backend.studio import FakeStudio, labelled, serving
from tests.backend.studio_http import TOKEN
from tests.waiting import eventually


@pytest.fixture
def stores(postgres_server: str) -> Iterator[tuple[Store, Store]]:
    """One database, opened by two."""
    url = postgres.new_database(postgres_server)
    both = Store.open(url), Store.open(url)
    yield both
    for store in both:
        store.close()


def test_a_piece_of_work_is_one_backend_s_until_it_ends_or_dies(stores: tuple[Store, Store]) -> None:
    one, other = stores
    with one.claim("a") as mine, other.claim("a") as theirs, other.claim("b") as another:
        assert (mine, theirs, another) == (True, False, True)
    with other.claim("a") as theirs:
        assert theirs
    with pytest.raises(ZeroDivisionError), one.claim("a"):
        _ = 1 / 0
    with other.claim("a") as theirs:
        assert theirs


def test_every_event_is_worked_in_by_one_backend_alone(
    stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 41):
        body = event("ANNOTATION_CREATED", annotation=annotation(number, [brush_row("a", square(1, 1, 5))]))
        enqueue(stores[0], parse_webhook(body).to_event(ORIGIN))
    worked: Counter[int] = Counter()
    process = inbox._process
    both_begun = threading.Barrier(2, timeout=20)

    def counting(store: Store, number: int, *rest: object) -> None:
        if not worked[number] and len(worked) <= 2:
            both_begun.wait()  # each has one in hand before either goes on
        worked[number] += 1
        process(store, number, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(inbox, "_process", counting)
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(process_inbox, stores))
    assert sum(done) == 40 and min(done) > 0
    assert set(worked.values()) == {1}
    assert count_waiting(stores[0]) == 0
    assert count(stores[1], KEY).regions == 40


def test_a_project_is_compared_by_one_backend_at_a_time_and_whoever_was_asked_tries_again(
    stores: tuple[Store, Store], tmp_path: Path
) -> None:
    with serving(FakeStudio()) as studio:
        studio.task(1, labelled(5, brush_row("a", square(1, 1, 5)), task=1))
        key = ProjectKey(studio.url, 7)
        label_studio = LabelStudio(Settings(label_studio_url=studio.url, label_studio_api_key=TOKEN))
        thread = SyncThread(stores[1], label_studio, PhotoArchive(tmp_path), 0, retry_s=0.2)
        with stores[0].claim(f"compare {key}"):
            thread.start()
            thread.request_sync(key)
            time.sleep(0.6)
            assert studio.asked == []
        eventually(lambda: count(stores[0], key).images == 1)
        thread.stop()


def test_what_one_backend_heard_of_a_project_s_server_the_others_know_within_seconds(
    stores: tuple[Store, Store],
) -> None:
    told: list[tuple[str, str]] = []
    hears = StoreWriter(stores[0], Metrics(), on_introduced=lambda *news: pytest.fail(f"{news} is no news here"))
    listens = StoreWriter(stores[1], Metrics(), on_introduced=lambda *news: told.append(news))
    for each in (hears, listens):
        each.start()
    hears.add_introduction("7.1", "http://labels.example")
    hears.add_introduction("8.1", "http://labels.example")
    eventually(lambda: len(told) == 2)
    hears.add_introduction("7.1", "http://labels.example")
    hears.add_introduction("8.1", "http://elsewhere.example")
    eventually(lambda: len(told) == 3)
    for each in (hears, listens):
        each.stop()
    assert sorted(told[:2]) == [("7.1", "http://labels.example"), ("8.1", "http://labels.example")]
    assert told[2] == ("8.1", "http://elsewhere.example")


def test_a_backend_that_starts_later_hears_what_was_said_before(store: Store) -> None:
    first, later = Introductions(store), Introductions(store)
    first.save({"7.1": "http://labels.example"})
    assert first.news() == {}
    assert later.news() == {"7.1": "http://labels.example"}
    assert later.news() == {}
