"""The store against Label Studio's own list: what a webhook did not bring is fetched, and what is gone is marked."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, update
from sqlalchemy.event import listen
from typer.testing import CliRunner

from backend.cli.main import app
from backend.corrections import photos as photos_module
from backend.corrections.archive import PhotoArchive
from backend.corrections.inbox import enqueue, process_inbox
from backend.corrections.outcomes import config_or_empty, region_rows
from backend.corrections.photos import fetch_photos
from backend.corrections.queries import count, find_project, list_projects, stream_regions
from backend.corrections.sync import Synced, sync_project
from backend.corrections.sync_thread import MISSED_AGAIN, SyncThread
from backend.corrections.updates import save_annotation
from backend.corrections.writer import StoreWriter
from backend.errors import LabelStudioError, NotFound
from backend.label_studio.annotations import parse_annotation
from backend.label_studio.client import LabelStudio
from backend.label_studio.events import parse_webhook
from backend.metrics import Metrics
from backend.records import ProjectKey
from backend.settings import Settings
from backend.store.database import Store
from backend.store.tables import projects
from tests.backend.annotations import CONFIG, annotation, brush_row, event, square
from tests.backend.studio import FakeStudio, chosen_task, labelled, serving
from tests.backend.studio_http import TOKEN
from tests.waiting import eventually

A, B, C = (brush_row(name, square(x, 1, 5)) for name, x in zip("abc", (1, 9, 20), strict=True))


@pytest.fixture
def studio() -> Iterator[FakeStudio]:
    with serving(FakeStudio()) as studio:
        yield studio


@pytest.fixture
def label_studio(studio: FakeStudio) -> LabelStudio:
    return LabelStudio(Settings(label_studio_url=studio.url, label_studio_api_key=TOKEN))


@pytest.fixture
def key(studio: FakeStudio) -> ProjectKey:
    return ProjectKey(studio.url, 7)


@pytest.fixture
def sync(store: Store, label_studio: LabelStudio, key: ProjectKey) -> Callable[..., Synced]:
    return lambda **more: sync_project(store, label_studio, key, **more)


@pytest.fixture
def statements(store: Store) -> Callable[[], int]:
    """How many statements the store has run."""
    run: list[str] = []
    listen(store._engine, "before_cursor_execute", lambda *args: run.append(args[2]))
    return lambda: len(run)


def regions(store: Store, key: ProjectKey) -> set[str]:
    return {region.key.region for region in stream_regions(store, key)}


def receive(store: Store, key: ProjectKey, body: dict[str, Any], late: float = 0) -> None:
    """A webhook, received now or so many seconds ago, and processed."""
    enqueue(store, parse_webhook(body).to_event(key.origin), datetime.now(UTC) - timedelta(seconds=late))
    process_inbox(store)


# ------------------------------------------------------------------------------------------------------ one comparison


def test_what_is_new_changed_or_gone_is_found_and_only_changed_tasks_are_read(
    studio: FakeStudio, store: Store, key: ProjectKey, sync: Callable[..., Synced]
) -> None:
    studio.task(1, labelled(5, A, task=1), labelled(6, B, task=1))
    studio.task(2, labelled(8, C, task=2))
    assert sync() == Synced(tasks=2, read=2, changed=3, deleted=0)
    assert regions(store, key) == {"a", "b", "c"}
    assert find_project(store, 7).title == "project 7"
    assert studio.read() == [1, 2]
    assert sync() == Synced(tasks=2, read=0, changed=0, deleted=0)
    assert studio.read() == []
    studio.task(1, labelled(5, A, C | {"id": "new"}, task=1, updated=1))
    del studio.tasks[2]
    assert sync() == Synced(tasks=1, read=1, changed=1, deleted=2)
    assert regions(store, key) == {"a", "new"}
    assert sync(everything=True) == Synced(tasks=1, read=1, changed=0, deleted=0)


@pytest.mark.parametrize("number", [0, 1, 3])
def test_every_task_is_seen_and_told(
    studio: FakeStudio, store: Store, key: ProjectKey, sync: Callable[..., Synced], number: int
) -> None:
    studio.projects.add(7)
    for task in range(1, number + 1):
        studio.task(task, labelled(task, brush_row(f"r{task}", square(1, 1, 5)), task=task))
    told: list[tuple[int, int]] = []
    assert sync(on_task=lambda done, total: told.append((done, total))).read == number
    assert regions(store, key) == {f"r{task}" for task in range(1, number + 1)}
    assert told == [(done, number) for done in range(1, number + 1)]


def test_an_event_that_comes_while_a_task_is_read_outlives_the_older_answer(
    studio: FakeStudio, store: Store, key: ProjectKey, sync: Callable[..., Synced]
) -> None:
    studio.task(1, labelled(5, A, task=1), labelled(6, B, task=1))

    def meanwhile(path: str) -> None:
        if chosen_task(path) == 1:  # its answer is made, and says nothing of these
            studio.before = lambda path: None
            receive(store, key, event("ANNOTATION_CREATED", annotation=labelled(9, C, task=1)))
            receive(store, key, event("ANNOTATIONS_DELETED", annotations=[{"id": 6}]))

    studio.before = meanwhile
    sync()
    assert regions(store, key) == {"a", "c"}
    studio.task(1, labelled(5, A, task=1), labelled(9, C, task=1))
    assert sync().changed == 0
    assert regions(store, key) == {"a", "c"}


def test_a_comparison_that_is_cut_off_keeps_what_it_had_done_and_the_next_one_goes_on(
    studio: FakeStudio, store: Store, key: ProjectKey, sync: Callable[..., Synced]
) -> None:
    for task, row in enumerate((A, B, C), start=1):
        studio.task(task, labelled(task, row, task=task))
    studio.status["task 2"] = 500
    with pytest.raises(LabelStudioError):
        sync()
    assert regions(store, key) == {"a"}
    assert find_project(store, 7).synced_at is None
    studio.status.clear()
    studio.read()
    sync()
    assert studio.read() == [2, 3]
    assert regions(store, key) == {"a", "b", "c"}


def test_unchanged_tasks_cost_the_store_a_query_a_page_not_one_each(
    studio: FakeStudio, store: Store, key: ProjectKey, sync: Callable[..., Synced], statements: Callable[[], int]
) -> None:
    studio.task(1, labelled(1, A, task=1))
    sync()
    before = statements()
    sync()
    of_one = statements() - before
    for task in range(2, 32):
        studio.task(task)
    sync()
    before = statements()
    assert sync() == Synced(tasks=31, read=0)
    assert statements() - before == of_one


# -------------------------------------------------------------------------------------------------------- not found


@pytest.mark.parametrize("everything", [False, True])
def test_a_task_that_was_not_to_be_seen_for_a_while_comes_back_with_its_corrections(
    studio: FakeStudio, store: Store, key: ProjectKey, sync: Callable[..., Synced], everything: bool
) -> None:
    studio.task(1, labelled(5, A, task=1))
    studio.task(2, labelled(6, B, task=2))
    sync()
    studio.status["task 1"] = 404
    assert sync(everything=True).deleted == 1
    assert regions(store, key) == {"b"}
    studio.status.clear()
    assert sync(everything=everything).changed == 1
    assert regions(store, key) == {"a", "b"}
    assert count(store, key).deleted == 0


def missed(store: Store, sync: Callable[..., Synced], studio: FakeStudio) -> None:
    """Compare once while Label Studio does not show the project."""
    studio.status["/api/projects/7/"] = 404
    with pytest.raises(NotFound):
        sync()
    studio.status.clear()
    found = find_project(store, 7)
    assert found.deleted_at is not None and not found.is_final


def test_hints_however_many_bring_few_comparisons_and_the_last_change_is_seen(
    studio: FakeStudio, store: Store, key: ProjectKey, start: Callable[[float], SyncThread]
) -> None:
    studio.task(1, labelled(5, A, task=1))
    thread = start(0)
    for _ in range(50):
        thread.request_sync_soon(key)
    eventually(lambda: regions(store, key) == {"a"})
    studio.task(1, labelled(5, A, task=1), labelled(6, B, task=1))
    for _ in range(50):
        thread.request_sync_soon(key)
    eventually(lambda: regions(store, key) == {"a", "b"})
    assert studio.asked.count("/api/projects/7/") <= 3


def test_a_project_that_was_not_found_is_marked_and_what_was_learned_from_it_stays(
    studio: FakeStudio, store: Store, key: ProjectKey, sync: Callable[..., Synced]
) -> None:
    studio.task(1, labelled(5, A, task=1))
    sync()
    missed(store, sync, studio)
    first = find_project(store, 7)
    assert regions(store, key) == {"a"}
    missed(store, sync, studio)
    again = find_project(store, 7)
    assert again.deleted_at == first.deleted_at
    assert again.missed_at is not None and first.missed_at is not None and again.missed_at > first.missed_at
    sync()
    assert find_project(store, 7).deleted_at is None


EVENTS = {
    "created": event("ANNOTATION_CREATED", annotation=annotation(5, [A])),
    "deleted": event("ANNOTATIONS_DELETED", annotations=[{"id": 4}]),
    "task deleted": event("TASKS_DELETED", tasks=[{"id": 3}]),
}


@pytest.mark.parametrize("name", EVENTS)
def test_any_event_takes_the_mark_off_unless_it_was_made_before(
    studio: FakeStudio, store: Store, key: ProjectKey, sync: Callable[..., Synced], name: str
) -> None:
    studio.projects.add(7)
    sync()
    missed(store, sync, studio)
    receive(store, key, EVENTS[name], late=60)
    assert find_project(store, 7).deleted_at is not None
    receive(store, key, EVENTS[name])
    assert find_project(store, 7).deleted_at is None


@pytest.mark.parametrize("after_a_miss", [False, True])
def test_a_deletion_that_was_told_is_final_for_events_and_misses(
    studio: FakeStudio, store: Store, key: ProjectKey, sync: Callable[..., Synced], after_a_miss: bool
) -> None:
    studio.projects.add(7)
    sync()
    if after_a_miss:
        missed(store, sync, studio)
    receive(store, key, event("PROJECT_DELETED"))
    assert find_project(store, 7).is_final
    receive(store, key, EVENTS["created"])
    studio.projects.clear()
    with pytest.raises(NotFound):
        sync()
    assert find_project(store, 7).is_final


def test_a_deletion_that_is_told_during_a_comparison_stands(
    studio: FakeStudio, store: Store, key: ProjectKey, sync: Callable[..., Synced]
) -> None:
    studio.task(1, labelled(5, A, task=1))
    sync()
    for path in ("/api/projects/7/", "/api/tasks/"):

        def meanwhile(asked: str, path: str = path) -> None:
            if asked.split("?")[0] == path:
                studio.before = lambda asked: None
                receive(store, key, event("PROJECT_DELETED"))

        studio.before = meanwhile
        sync()
        assert find_project(store, 7).is_final, path
        sync()  # it is there after all
        assert not find_project(store, 7).is_final


def test_an_introduction_takes_the_mark_off_though_the_labeling_config_is_known(
    studio: FakeStudio, store: Store, key: ProjectKey, sync: Callable[..., Synced]
) -> None:
    studio.projects.add(7)
    store_writer = StoreWriter(store, Metrics())
    store_writer.start()
    try:
        store_writer.add_project(key, CONFIG)
        eventually(lambda: list_projects(store) != [])
        missed(store, sync, studio)
        store_writer.add_project(key, CONFIG)
        eventually(lambda: find_project(store, 7).deleted_at is None)
    finally:
        store_writer.stop()


# -------------------------------------------------------------------------------------------------------- the thread


@pytest.fixture
def start(store: Store, label_studio: LabelStudio, tmp_path: Path) -> Iterator[Callable[..., SyncThread]]:
    """Starts a sync thread that tries again at once; it is stopped at the end."""
    with contextlib.ExitStack() as made:

        def begin(every_s: float, after: Future[Any] | None = None) -> SyncThread:
            sync_thread = SyncThread(
                store, label_studio, PhotoArchive(tmp_path / "photos"), every_s, retry_s=0.02, apart_s=0.5
            )
            sync_thread.start(after)
            made.callback(sync_thread.stop)
            return sync_thread

        yield begin


def test_what_was_missed_is_fetched_at_the_start_with_its_picture(
    studio: FakeStudio, store: Store, key: ProjectKey, sync: Callable[..., Synced], start: Callable[[float], Any]
) -> None:
    studio.projects.add(7)
    sync()
    studio.task(1, labelled(5, A, task=1))
    start(0)
    eventually(lambda: [region.image_sha256 is not None for region in stream_regions(store, key)] == [True])


def test_the_first_comparison_waits_for_what_annotators_wait_for_even_if_that_fails(
    studio: FakeStudio, store: Store, key: ProjectKey, sync: Callable[..., Synced], start: Callable[..., Any]
) -> None:
    studio.projects.add(7)
    sync()
    studio.task(1, labelled(5, A, task=1))
    loading: Future[None] = Future()
    thread = start(0, after=loading)
    thread.request_photos(key)
    time.sleep(0.2)
    assert regions(store, key) == set()
    loading.set_exception(ValueError("no text encoder"))
    eventually(lambda: regions(store, key) == {"a"})


def test_a_comparison_that_failed_is_tried_again_soon(
    studio: FakeStudio, store: Store, key: ProjectKey, sync: Callable[..., Synced], start: Callable[[float], Any]
) -> None:
    studio.projects.add(7)
    sync()
    studio.task(1, labelled(5, A, task=1))
    studio.status["/api/projects/7/"] = 500
    studio.asked.clear()
    start(0)
    eventually(lambda: studio.asked.count("/api/projects/7/") >= 3)
    assert regions(store, key) == set()
    studio.status.clear()
    eventually(lambda: regions(store, key) == {"a"})


def test_later_changes_are_found_by_the_timer(
    studio: FakeStudio, store: Store, key: ProjectKey, sync: Callable[..., Synced], start: Callable[[float], Any]
) -> None:
    studio.task(1, labelled(5, A, task=1))
    sync()
    start(0.05)
    studio.task(1, labelled(5, A, task=1), labelled(6, B, task=1))
    eventually(lambda: regions(store, key) == {"a", "b"})


def test_a_project_that_is_wanted_is_compared_though_the_store_has_not_heard_of_it_and_again_if_that_fails(
    studio: FakeStudio, store: Store, key: ProjectKey, start: Callable[[float], SyncThread]
) -> None:
    studio.task(1, labelled(5, A, task=1))
    studio.status["/api/projects/7/"] = 500
    start(0).request_sync(key)
    eventually(lambda: studio.asked.count("/api/projects/7/") >= 3)
    studio.status.clear()
    eventually(lambda: regions(store, key) == {"a"})


def test_a_project_that_was_not_found_is_asked_for_again_rarely_and_one_whose_deletion_was_told_never(
    studio: FakeStudio, store: Store, key: ProjectKey, sync: Callable[..., Synced], start: Callable[[float], Any]
) -> None:
    studio.task(1, labelled(5, A, task=1))
    sync()
    missed(store, sync, studio)
    with store.write() as connection:
        for number, deleted_at in ((8, datetime.now(UTC)), (9, None)):
            row = {"project": number, "title": "", "label_config": "", "updated_at": datetime.now(UTC)}
            connection.execute(insert(projects).values(origin=key.origin, deleted_at=deleted_at, **row))
    studio.projects |= {8, 9}
    studio.asked.clear()
    start(0.02)
    eventually(lambda: studio.asked.count("/api/projects/9/") >= 3)
    assert "/api/projects/7/" not in studio.asked, "an hour has not passed"
    with store.write() as connection:
        long_ago = datetime.now(UTC) - 2 * MISSED_AGAIN
        connection.execute(update(projects).where(projects.c.project == 7).values(missed_at=long_ago))
    eventually(lambda: find_project(store, 7).deleted_at is None)
    assert "/api/projects/8/" not in studio.asked


# ---------------------------------------------------------------------------------------------------------- pictures


def test_a_region_that_comes_while_its_picture_is_kept_is_fitted_to_it_too(
    studio: FakeStudio,
    store: Store,
    label_studio: LabelStudio,
    key: ProjectKey,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    photos = PhotoArchive(tmp_path / "photos")
    studio.task(1, labelled(5, A, task=1))
    sync_project(store, label_studio, key)
    late = parse_annotation(labelled(6, B, task=1), project=7, task=1)
    rows = region_rows(store, key, late, config_or_empty(CONFIG))
    fitted, fits = photos_module._fitted, list[int]()

    def and_then_comes_another(*arguments: Any) -> Any:
        found = fitted(*arguments)
        fits.append(len(found))
        if len(fits) == 1:
            with store.write() as connection:
                save_annotation(connection, key, late, rows, datetime.now(UTC))
        return found

    monkeypatch.setattr(photos_module, "_fitted", and_then_comes_another)
    assert fetch_photos(store, label_studio, photos, key) == (1, 0)
    assert fits == [1, 1]
    (sha256,) = {region.image_sha256 for region in stream_regions(store, key)}
    assert sha256 is not None and photos.has(sha256)
    assert len([path for path in studio.asked if path.startswith("/data/")]) == 1


# ----------------------------------------------------------------------------------------------------------- command


@pytest.fixture
def semsam_sync(studio: FakeStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    environment = {
        "LABEL_STUDIO_URL": studio.url,
        "LABEL_STUDIO_API_KEY": TOKEN,
        "SEMSAM_DATA_DIR": str(tmp_path),
    }
    return lambda *arguments: CliRunner().invoke(app, ["sync", *arguments], env=environment)


def test_the_command_compares_one_project_or_all_and_keeps_their_pictures(
    studio: FakeStudio, key: ProjectKey, tmp_path: Path, semsam_sync: Callable[..., Any]
) -> None:
    assert "name one with --project" in str(semsam_sync().exception)
    studio.task(1, labelled(5, A, task=1))
    done = semsam_sync("--project", "7")
    assert done.exit_code == 0
    assert f"project 7 of {studio.url}: 1 tasks, 1 of them changed: 1 annotations new or newer, 0 gone" in done.stdout
    assert "1 photos fetched" in done.stdout
    assert "1 tasks, 0 of them changed" in semsam_sync().stdout
    assert "1 tasks, 1 of them changed" in semsam_sync("--all").stdout
    with contextlib.closing(Store.open(f"sqlite:///{tmp_path}/semsam.db")) as store:
        assert regions(store, key) == {"a"}


@pytest.mark.slow
def test_a_project_that_fails_costs_the_others_nothing_and_the_command_says_so(
    studio: FakeStudio, tmp_path: Path, semsam_sync: Callable[..., Any]
) -> None:
    for project, row in ((7, A), (8, B), (9, C)):
        studio.task(project, labelled(project, row, task=project, project=project), project=project)
        assert semsam_sync("--project", str(project)).exit_code == 0
    studio.status |= {"/api/projects/7/": 404, "/api/projects/8/": 500}
    done = semsam_sync()
    assert done.exit_code == 1
    assert f"project 9 of {studio.url}: 1 tasks" in done.stdout
    assert [f"project {number} of {studio.url}: failed" in done.stderr for number in (7, 8, 9)] == [True, True, False]
    assert "2 of 3 projects failed" in done.stderr
    del studio.status["/api/projects/8/"]
    done = semsam_sync()
    assert done.exit_code == 0, "that it is gone has been told"
    assert f"project 7 of {studio.url}: still not there" in done.stderr
    assert semsam_sync("--project", "7").exit_code == 1, "it was asked for by name"
    studio.status.clear()
    assert f"project 7 of {studio.url}: 1 tasks" in semsam_sync().stdout
