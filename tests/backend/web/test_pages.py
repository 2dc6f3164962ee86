"""The status page: legible in a browser, harmless whatever labels say."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Request

from backend.doctor.checks import Finding
from backend.finetuning import jobs
from backend.metrics import Metrics
from backend.records import ProjectKey
from backend.service.status import POINTS, Point, Status, read_status
from backend.settings import Settings
from backend.store.database import Store
from backend.web.app import create_app
from backend.web.pages import CHART, ago, charts, render
from tests.backend.status_data import NOW, history, judged, preannotated
from tests.backend.stored import BEGAN, ORIGIN, begin, fill, project
from tests.backend.web.browsing import READY, StoreOnly, browser_page, served
from tests.paths import ROOT


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    opened = Store.open(database)
    yield opened
    opened.close()


def page_of(status: Status, **versions: Any) -> str:
    return render(status, READY, {"live": "mobile-1"} | versions, "http://localhost:9090", NOW)


def test_what_was_there_before_any_click_has_a_table_where_there_is_any(store: Store) -> None:
    fill(store, project(), history(40))
    assert 'id="preannotated"' not in page_of(read_status(store))
    fill(store, project(number=2), preannotated(3, number=2))
    begin(store, project(number=2).key, range(1000, 1003), regions=10)
    assert 'id="preannotated"' in page_of(read_status(store))


TOKEN = Finding("token", "personal access token: accepted")


class Checked(StoreOnly):
    """Two projects that were looked at: one with a labeling config to be put right, one with empty answers."""

    def status(self) -> Status:
        one, two = (ProjectKey(ORIGIN, number) for number in (1, 2))
        warned = Finding("labeling config", '<Image> has no zoom controls: add zoomControl="true"', True)
        found = {one: [TOKEN, warned], two: [TOKEN, Finding("labeling config", "answers go to mask")]}
        refused = {one: ["3 without secret, compared instead; give the webhook the header X-Semsam-Secret"]}
        return super().status().with_paths(found, refused, {two: {"no_mask": 12, "NotFound": 1}})


def test_each_project_shows_its_checks_its_refused_webhooks_and_its_empty_answers_by_reason(store: Store) -> None:
    cars, cells = project(), project(number=2, title="Cells")
    for each in (cars, cells):
        fill(store, each, [])
    status = read_status(store).with_paths(
        {
            cars.key: [TOKEN, Finding("labeling config", "none", True)],
            cells.key: [TOKEN],
        },
        {cars.key: ["3 without secret"], None: ["1 without payload"]},
        {cells.key: {"no_mask": 1200, "busy": 2}, None: {"BadRequest": 4}},
    )
    entries = re.findall(r"<details( open)?><summary>(.*?)</summary>(.*?)</details>", page_of(status), re.DOTALL)
    shown = [
        (bool(opened), *(" ".join(re.sub("<.*?>", " ", text).split()) for text in texts)) for opened, *texts in entries
    ]
    assert shown == [
        (
            True,
            "project 1 Cars: 2 to be set right",
            "token: personal access token: accepted labeling config: none webhooks refused: 3 without secret"
            " empty answers: none",
        ),
        (
            False,
            "project 2 Cells: well connected, 1,202 empty answers",
            "token: personal access token: accepted webhooks refused: none empty answers: no_mask 1,200, busy 2",
        ),
        (
            True,
            "other projects: 1 to be set right , 4 empty answers",
            "webhooks refused: 1 without payload empty answers: BadRequest 4",
        ),
    ]


def test_a_project_that_was_not_looked_at_yet_is_not_called_well_connected(store: Store) -> None:
    fill(store, project(), [])
    assert "not checked" in page_of(read_status(store).with_paths({}, {}, {}))


def test_the_newest_judgement_has_a_link_to_its_page(store: Store) -> None:
    judged(store, 1, promoted=False)
    judged(store, 1, promoted=True)
    assert 'href="gate/2"' in page_of(read_status(store))


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
        served(Checked(store), basic_auth_user="ann", basic_auth_pass="secret") as url,
        browser_page(http_credentials={"username": "ann", "password": "secret"}, java_script_enabled=False) as page,
    ):
        page.on("console", lambda message: errors.append(message.text))
        page.on("request", lambda request: asked.append(request))
        answer = page.goto(url)
        assert answer is not None and answer.status == 200
        assert page.locator("#live").inner_text() == "mobile-81b2c44d90fe"
        summaries = page.locator("#checks summary").all_inner_texts()
        assert summaries == [
            "project 1 Cars: 2 to be set right",
            "project 2 Blood cells <i>2</i>: well connected, 13 empty answers",
            "project 3 New: not checked",
        ]
        assert page.get_by_text("webhooks refused: 3 without secret").is_visible()
        assert not page.get_by_text("empty answers: no_mask").is_visible()
        page.get_by_text("project 2 Blood cells").click()
        assert page.get_by_text("empty answers: no_mask 12, NotFound 1").is_visible()
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
    class Gone(StoreOnly):
        def status(self) -> Status:
            return Status(problem="database: no such file")

    http = create_app(Settings(basic_auth_user="ann", basic_auth_pass="secret"), Gone(store), Metrics()).test_client()
    assert http.get("/").status_code == 401
    credentials = base64.b64encode(b"ann:secret").decode()
    answer = http.get("/", headers={"Authorization": f"Basic {credentials}"})
    assert answer.status_code == 200 and "database: no such file" in answer.text
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
