"""The status page: what the store holds, counted rightly, legible in a browser, harmless whatever labels say."""

from __future__ import annotations

import base64
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Page, Request, sync_playwright
from werkzeug.serving import make_server

from backend.finetuning import jobs
from backend.metrics import Metrics
from backend.records import Preannotated, ProjectKey, StoredRegion
from backend.service.status import POINTS, GateReport, Point, Status, StatusReader, read_status
from backend.settings import Settings
from backend.store.database import Store
from backend.web.app import create_app
from backend.web.pages import CHART, ago, charts, render
from backend.web.routes import Service
from tests.backend.stored import BEGAN, ORIGIN, begin, box, fill, project, region
from tests.paths import ROOT

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
on_both = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
READY = {"status": "UP", "model_version": "mobile-1", "model_state": "ready"}


def preannotated(annotations: int, number: int = 1) -> list[StoredRegion]:
    """What is left of annotations that were begun with ten regions each."""
    outcomes = ["accepted"] * 6 + ["corrected"] * 2 + ["relabelled"]
    made = [
        region(
            box(2, 2, 12, 12),
            task=1000 + k,
            annotation=1000 + k,
            name=f"p{place}",
            outcome=outcome,
            rank=place + 1,
            preannotated=True,
        )
        for k in range(annotations)
        for place, outcome in enumerate(outcomes)
    ]
    return [replace(each, key=replace(each.key, project=number)) for each in made]


def history(count: int, number: int = 1) -> list[StoredRegion]:
    """Masks one a minute, of which ever more are right: level, label, outline."""
    found = []
    for k in range(count):
        right, named = (k * 7) % 100 < 40 + 50 * k / count, (k * 13) % 100 < 50 + 45 * k / count
        outcome = "accepted" if named else "relabelled"
        outcome = "corrected" if k % 9 == 0 else "drawn" if k % 17 == 0 else outcome
        offered: dict[str, Any] = {"rank": 1 if right else 3, "seconds": 9 - 6 * k / count + k % 3, "score": 0.8}
        found.append(
            region(
                box(2, 2, 12, 12),
                task=k // 4 + 1,
                annotation=k // 4 + 1,
                name=f"r{k}",
                outcome=outcome,
                updated_at=BEGAN + timedelta(minutes=k),
                **({} if outcome == "drawn" else offered),
            )
        )
    return [replace(each, key=replace(each.key, project=number)) for each in found]


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    opened = Store.open(database)
    yield opened
    opened.close()


@on_both
def test_the_status_counts_what_was_taken_of_what_was_offered(store: Store) -> None:
    regions = history(200)
    fill(store, project(), regions)
    status = read_status(store)
    (mine,) = status.projects
    outcomes = [each.outcome for each in regions]
    assert mine.counts.by_outcome == {name: outcomes.count(name) for name in mine.counts.by_outcome}
    assert mine.accepted == outcomes.count("accepted") / 200
    offered = [each for each in regions if each.rank]
    kept = [each for each in offered if each.outcome in ("accepted", "relabelled")]
    assert status.overall is not None
    assert status.overall.masks == len(offered)
    assert status.overall.level == sum(each.rank == 1 for each in offered) / len(offered)
    assert status.overall.label == sum(each.outcome == "accepted" for each in kept) / len(kept)
    assert sum(point.masks for point in status.curve) == len(offered) and len(status.curve) <= POINTS
    assert all(a.until <= b.since for a, b in zip(status.curve, status.curve[1:], strict=False))
    first, last = status.curve[0], status.curve[-1]
    assert (first.level or 1) < (last.level or 0) and (first.seconds or 0) > (last.seconds or 9)


@on_both
def test_what_was_there_before_any_click_is_told_apart(store: Store) -> None:
    fill(store, project(), [*history(40), *preannotated(3)])
    begin(store, project().key, range(1000, 1003), regions=10)
    status = read_status(store)
    assert status.projects[0].counts.regions == 40 + 27
    assert status.projects[0].counts.preannotated == Preannotated(3, accepted=18, corrected=6, relabelled=3, deleted=3)
    clicked = [each for each in history(40) if each.rank]
    assert status.overall is not None and status.overall.masks == len(clicked)
    assert 'id="preannotated"' in page_of(status)
    with store.write() as connection:
        connection.exec_driver_sql("DELETE FROM annotations")
        connection.exec_driver_sql("DELETE FROM regions WHERE preannotated")
    assert 'id="preannotated"' not in page_of(read_status(store))


def test_an_empty_store_has_an_empty_status(store: Store) -> None:
    assert read_status(store) == Status()


def test_marked_deletions_and_deleted_projects_do_not_count(store: Store) -> None:
    from sqlalchemy import update

    from backend.store.tables import projects, regions

    fill(store, project(), history(20))
    with store.write() as connection:
        connection.execute(update(regions).where(regions.c.task == 1).values(deleted_at=NOW))
    status = read_status(store)
    assert status.projects[0].counts.regions == 16
    assert sum(point.masks for point in status.curve) == len([e for e in history(20) if e.rank and e.key.task > 1])
    with store.write() as connection:
        connection.execute(update(projects).values(deleted_at=NOW))
    assert read_status(store).projects == ()


def judged(store: Store, number: int, *, promoted: bool, now: datetime = NOW) -> None:
    """A job that the gate has judged, with made figures."""

    def row(masks: int, *pairs: tuple[float, float]) -> dict[str, Any]:
        return {"masks": masks} | dict(zip(("oracle", "first", "max", "label_top1"), map(list, pairs), strict=False))

    after = (72.3, 84.6, 57.0, 88.2) if promoted else (63.9, 70.4, 43.0, 49.1)
    before = (63.7, 70.1, 43.9, 47.2)
    verdict = {
        "promoted": promoted,
        "reasons": [] if promoted else ["no clear gain on the held-out corrections: +0.3 points"],
        "gain": {"mean": 11.6, "low": 7.2, "high": 16.4} if promoted else {"mean": 0.3, "low": -1.9, "high": 2.4},
        "guard_gain": 0.4,
        "held_out": row(57, *zip(before, after, strict=True)),
        "guard": row(96, (52.9, 53.1), (62.3, 62.9), (41.0, 40.7), (70.8, 70.8)),
        "by_level": {
            "1": row(31, (69.0, 80.2), (75.9, 90.4), (50.2, 66.1), (51.6, 90.3)),
            "2": row(18, (60.1, 66.8), (66.0, 81.0), (38.4, 49.5), (44.4, 88.9)),
            "4": row(8, (51.2, 54.1), (56.8, 70.2), (31.9, 38.6), (37.5, 75.0)),
        },
    }
    job, _ = jobs.request(store, ProjectKey(ORIGIN, number), "corrections", at=now - timedelta(hours=2))
    held = jobs.claim(store, "w1", timedelta(minutes=5), only=job.id, at=now - timedelta(hours=1))
    assert held is not None
    version = "mobile-81b2c44d90fe" if promoted else "mobile-40c19ab7755d"
    state: jobs.State = "promoted" if promoted else "refused"
    result = {"verdict": verdict, "version": version, "regions": 285, "message": "; ".join(verdict["reasons"])}
    assert jobs.finish(store, held, "w1", state, at=now - timedelta(minutes=40), **result)


def test_the_queue_and_the_newest_judgement_are_told(store: Store) -> None:
    assert read_status(store).last_gate is None
    judged(store, 1, promoted=False)
    judged(store, 1, promoted=True)
    jobs.request(store, ProjectKey(ORIGIN, 1), "button", at=NOW)
    status = read_status(store)
    assert [(job.state, job.trigger) for job in status.jobs][:2] == [("queued", "button"), ("promoted", "corrections")]
    assert status.last_gate == status.jobs[1]
    assert 'href="gate/2"' in page_of(status)


# ----------------------------------------------------------------------------------------------------------------- page


def page_of(status: Status, **versions: Any) -> str:
    return render(status, READY, {"live": "mobile-1"} | versions, "http://localhost:9090", NOW)


def test_a_title_with_markup_in_it_stays_text(store: Store) -> None:
    fill(store, project(title="<script>alert(1)</script>"), history(20))
    html = page_of(
        read_status(store),
        details=[dict.fromkeys(("number", "version", "parent", "created_at", "pruned_at"), "<i>v</i>")],
    )
    assert "<script" not in html and "<i>v" not in html
    assert "&lt;script&gt;" in html


def test_jobs_and_what_the_gate_said_are_on_the_page_as_text(store: Store) -> None:
    mine = project()
    fill(store, mine, history(20))
    assert 'id="jobs"' not in page_of(read_status(store))
    jobs.request(store, mine.key, "button", at=NOW)
    assert "queued" in page_of(read_status(store))
    taken = jobs.claim(store, "w", timedelta(minutes=1), at=NOW)
    assert taken is not None
    jobs.finish(store, taken, "w", "refused", at=NOW, message="no gain: 0.2 <b>points</b>")
    html = page_of(read_status(store))
    assert "refused" in html and "no gain: 0.2 &lt;b&gt;points" in html


@given(
    st.lists(
        st.tuples(
            st.none() | st.floats(0, 1),
            st.none() | st.floats(0, 1),
            st.none() | st.floats(0, 1e5),
        ),
        min_size=1,
        max_size=POINTS,
    )
)
def test_curves_stay_inside_their_chart_and_go_from_left_to_right(values: list[tuple[Any, Any, Any]]) -> None:
    points = [
        Point(10, BEGAN + timedelta(hours=k), BEGAN + timedelta(hours=k + 1), *value) for k, value in enumerate(values)
    ]
    for chart in charts(points):
        for curve in chart.curves:
            assert curve.points
            places = [x for x, _, _ in curve.points]
            assert places == sorted(places) and len(set(places)) == len(places)
            assert all(0 <= x <= CHART[0] + 1e-6 and -1e-6 <= y <= CHART[1] for x, y, _ in curve.points)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "just now"), (61, "1 minute ago"), (7300, "2 hours ago"), (2 * 86400 + 5, "2 days ago"), (-5, "just now")],
)
def test_a_time_is_told_in_its_largest_unit(seconds: float, said: str) -> None:
    assert ago(NOW - timedelta(seconds=seconds), NOW) == said


class Told:
    """A service that has a store."""

    def __init__(self, store: Store, data_dir: Path = Path("nowhere")) -> None:
        self._reader = StatusReader(store, data_dir, keep_s=0)

    def health(self) -> dict[str, Any]:
        return READY

    def setup(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    def predict_request(self, body: Any, request_id: str) -> list[dict[str, Any]]:
        return []

    def event(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    def versions(self) -> dict[str, Any]:
        made = {"created_at": "2026-03-01T21:04:11+00:00", "parent": "mobile-3f0a9d2c6e17", "pruned_at": None}
        old = {"number": 0, "version": "mobile-3f0a9d2c6e17", "parent": None, "created_at": None, "pruned_at": None}
        new = {"number": 1, "version": "mobile-81b2c44d90fe"} | made
        return {"versions": [old["version"], new["version"]], "live": new["version"], "details": [old, new]}

    def gate_report(self, job: int) -> GateReport:
        return self._reader.gate_report(job)

    def status(self) -> Status:
        return self._reader.status()


@contextmanager
def served(service: Service, **settings: Any) -> Iterator[str]:
    """The application itself on a port of this machine."""
    server = make_server("127.0.0.1", 0, create_app(Settings(**settings), service, Metrics()), threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def browser_page(**context: Any) -> Iterator[Page]:
    from tests.journeys.conftest import CHROMIUM_FLAGS

    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("Chromium is not installed: `make test` installs it where it can")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=CHROMIUM_FLAGS)
        yield browser.new_page(viewport={"width": 1240, "height": 900}, **context)
        browser.close()


@pytest.mark.browser
def test_in_a_browser_the_page_fetches_nothing_runs_nothing_and_fits_the_window(store: Store, tmp_path: Path) -> None:
    fill(store, project(), history(400) + preannotated(12))
    begin(store, project().key, range(1000, 1012), regions=10)
    fill(store, project(number=2, title="Blood cells <i>2</i>"), history(37, number=2))
    fill(store, project(number=3, title="New"), [])
    now = datetime.now(UTC)
    judged(store, 2, promoted=False, now=now - timedelta(days=1))
    judged(store, 1, promoted=True, now=now)
    jobs.request(store, ProjectKey(ORIGIN, 2), "button", at=now)
    running = jobs.claim(store, "w1", timedelta(minutes=5), at=now)
    assert running is not None
    jobs.renew(store, running, "w1", timedelta(minutes=5), stage="fine-tuning", step=120, steps=400, regions=37)
    jobs.request(store, ProjectKey(ORIGIN, 1), "schedule", at=now)
    errors: list[str] = []
    asked: list[Request] = []
    with (
        served(Told(store), basic_auth_user="ann", basic_auth_pass="secret") as url,
        browser_page(http_credentials={"username": "ann", "password": "secret"}, java_script_enabled=False) as page,
    ):
        page.on("console", lambda message: errors.append(message.text))
        page.on("request", lambda request: asked.append(request))
        answer = page.goto(url)
        assert answer is not None and answer.status == 200
        assert page.locator("#live").inner_text() == "mobile-81b2c44d90fe"
        rows = page.locator("#projects tr").all_inner_texts()
        assert len(rows) == 4 and "508" in rows[1] and "Blood cells <i>2</i>" in rows[2]
        assert page.locator("polyline").count() == 3
        assert page.locator("#jobs tr").count() == 5 and "fine-tuning 120/400" in page.locator("#jobs").inner_text()
        assert page.locator("#gate tr").count() == 6
        begun = page.locator("#preannotated td").all_inner_texts()
        assert begun == ["Cars", "12", "120", "", "60 %", "20 %", "10 %", "10 %", ""]
        for line in page.locator("svg[role=img]").all():
            place = line.bounding_box()
            assert place is not None and place["width"] > 100 and place["x"] + place["width"] <= 1240
        assert {request.url.rstrip("/") for request in asked} == {url}
        assert errors == []
        pictures = ROOT / "out" / "journeys"
        pictures.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=pictures / "status.png", full_page=True)
        page.set_viewport_size({"width": 390, "height": 800})
        page.emulate_media(color_scheme="dark")
        page.screenshot(path=pictures / "status-narrow.png", full_page=True)
        wide = page.locator("main").bounding_box()
        assert wide is not None and wide["width"] <= 390


def test_the_page_wants_the_same_credentials_as_the_rest_and_says_when_the_database_is_gone(store: Store) -> None:
    class Gone(Told):
        def status(self) -> Status:
            return Status(problem="database: no such file")

    http = create_app(Settings(basic_auth_user="ann", basic_auth_pass="secret"), Gone(store), Metrics()).test_client()
    assert http.get("/").status_code == 401
    credentials = base64.b64encode(b"ann:secret").decode()
    answer = http.get("/", headers={"Authorization": f"Basic {credentials}"})
    assert answer.status_code == 200 and "database: no such file" in answer.text
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


def test_the_status_is_kept_for_a_while_and_without_the_database_it_says_why_it_is_not_known(tmp_path: Path) -> None:
    opened = Store.open(f"sqlite:///{tmp_path}/gone.db")
    fill(opened, project(), history(20))
    reader, hasty = StatusReader(opened, tmp_path, keep_s=60), StatusReader(opened, tmp_path, keep_s=0)
    assert reader.status() == hasty.status() == read_status(opened)
    opened.close()
    for file in tmp_path.glob("gone.db*"):
        file.unlink()
    (tmp_path / "gone.db").write_bytes(b"not a database" * 100)
    assert "gone.db" in hasty.status().problem
    assert reader.status().projects  # kept
    opened.close()
