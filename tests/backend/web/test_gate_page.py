"""What the gate said, in a browser: the figures of a real job, its report, what is left when files are gone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import update

from backend.finetuning import jobs
from backend.finetuning.jobs import Job
from backend.metrics import Metrics
from backend.records import ProjectKey
from backend.settings import Settings
from backend.store.database import Store
from backend.store.tables import jobs as job_rows
from backend.web.app import create_app
from backend.web.pages import read_gate, render_gate
from tests.backend.finetuning.test_worker import ANYTHING, KEY, prepared, write_config
from tests.backend.web.browsing import StoreOnly, browser_page, served

NOW = datetime.now(UTC)


@dataclass(frozen=True)
class Finished:
    """A job that went all its way, and the service of its data folder."""

    job: Job
    store: Store
    settings: Settings

    def service(self) -> StoreOnly:
        return StoreOnly(self.store, self.settings.data_dir)

    def get(self, path: str) -> Any:
        return create_app(self.settings, self.service(), Metrics()).test_client().get(path)


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Iterator[Finished]:
    folder = tmp_path_factory.mktemp("gate")
    config = write_config(folder, ANYTHING, steps=1)
    of_job = Settings(model="tiny", weights=weights, data_dir=folder, finetune_config=config, device="cpu")
    store, worker = prepared(of_job)
    jobs.request(store, KEY, "button")
    job = worker.run_one()
    assert job is not None
    yield Finished(job, store, of_job)
    store.close()


@pytest.fixture
def finished(once: Finished, tmp_path: Path) -> Finished:
    """With a data folder of its own, to take files away from."""
    shutil.copytree(once.settings.data_dir, tmp_path / "data")
    return replace(once, settings=replace(once.settings, data_dir=tmp_path / "data"))


def told(before: float, after: float) -> str:
    return f"{before:.1f} → {after:.1f}"


@pytest.mark.browser
def test_in_a_browser_the_last_gate_is_a_table_with_a_link_to_its_report(once: Finished) -> None:
    verdict, errors = once.job.verdict, list[str]()
    with (
        served(once.service(), basic_auth_user="ann", basic_auth_pass="secret") as url,
        browser_page(http_credentials={"username": "ann", "password": "secret"}) as page,
    ):
        page.on("console", lambda message: errors.append(message.text))
        page.goto(url)
        gate = page.locator("#gate")
        assert "promoted" in gate.locator("h2").inner_text()
        assert f"{verdict['gain']['mean']:+.1f} points" in gate.locator(".gain").inner_text()
        heads = gate.locator("th").all_inner_texts()
        for name, row in (("held-out corrections", verdict["held_out"]), ("guard set", verdict["guard"])):
            cells = gate.locator("tr", has_text=name).locator("td").all_inner_texts()
            shown = dict(zip(heads, cells, strict=True))
            value = [(o + f) / 2 for o, f in zip(row["oracle"], row["first"], strict=True)]
            assert shown["value"] == told(*value)
            assert shown["best of six"] == told(*row["oracle"])
            assert shown["ranked first"] == told(*row["first"])
            assert shown["highest predicted IoU"] == told(*row["max"])
            assert shown["masks"] == str(row["masks"])
        levels = [text.split("\t")[0] for text in gate.locator("tr.part").all_inner_texts()]
        assert levels == [f"level {level}" for level in verdict["by_level"]]
        gate.get_by_text("Full report").click()
        page.wait_for_url(f"{url}/gate/{once.job.id}")
        assert page.locator("h1").inner_text() == "Promoted"
        loaded = page.locator("img").evaluate_all("all => all.map(each => each.naturalWidth > 0)")
        assert loaded and all(loaded)
        assert errors == []


@pytest.mark.slow
def test_the_report_is_read_beside_the_version_when_the_jobs_folder_is_gone_and_the_figures_when_both_are(
    finished: Finished,
) -> None:
    data, number = finished.settings.data_dir, finished.job.id
    report = (data / "jobs" / str(number) / "gate.html").read_text()
    assert finished.get(f"/gate/{number}").text == report
    shutil.rmtree(data / "jobs")
    assert finished.get(f"/gate/{number}").text == report
    shutil.rmtree(data / "versions")
    figures = finished.get(f"/gate/{number}")
    assert figures.status_code == 200 and figures.text != report
    assert "default-src 'none'" in figures.headers["Content-Security-Policy"]
    held_out = finished.job.verdict["held_out"]["oracle"]
    assert f"{held_out[0]:.1f} &rarr;" in figures.text and "label " in figures.text


@pytest.mark.slow
@pytest.mark.parametrize("path", ["999", str(2**63 - 1), str(2**70), "0", "-1", "x", "..%2f..%2fsemsam.db", "../1"])
def test_what_is_no_job_is_not_found(once: Finished, path: str) -> None:
    answer = once.get(f"/gate/{path}")
    assert answer.status_code == 404 and answer.json["error"]


@pytest.mark.slow
def test_a_job_that_was_not_judged_is_not_found_and_says_why(once: Finished) -> None:
    job, _ = jobs.request(once.store, ProjectKey("http://other", 5), "command")
    held = jobs.claim(once.store, "w", timedelta(seconds=60), only=job.id)
    assert held is not None
    jobs.finish(once.store, held, "w", "refused", message="too few corrections")
    answer = once.get(f"/gate/{job.id}")
    assert answer.status_code == 404 and "too few corrections" in answer.json["error"]


@pytest.mark.slow
def test_a_link_out_of_the_data_folder_is_not_followed(finished: Finished, tmp_path: Path) -> None:
    secret = tmp_path / "secret.html"
    secret.write_text("secret")
    shutil.rmtree(finished.settings.data_dir / "versions")
    file = finished.settings.data_dir / "jobs" / str(finished.job.id) / "gate.html"
    file.unlink()
    file.symlink_to(secret)
    with finished.store.write() as connection:
        mine = job_rows.c.id == finished.job.id
        connection.execute(update(job_rows).where(mine).values(report=str(secret)))
    assert "secret" not in finished.get(f"/gate/{finished.job.id}").text


# -------------------------------------------------------------------------------------------------------------- figures


def job_of(verdict: Any, **fields: Any) -> Job:
    fields = {"state": "refused", "trigger": "button", "finished_at": NOW} | fields
    return Job(id=1, key=ProjectKey("http://ls", 1), requested_at=NOW, verdict=verdict, **fields)


plain = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
names = st.sampled_from(["promoted", "reasons", "gain", "guard_gain", "held_out", "guard", "by_level", "by_label"])


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(names | st.text(max_size=5), plain, max_size=6))
def test_whatever_a_gate_wrote_makes_a_page(verdict: dict[str, Any]) -> None:
    assert "Gate of job" in render_gate(job_of(verdict), NOW)


def test_measures_and_sets_that_are_not_known_are_shown_under_their_names_after_the_known_ones() -> None:
    row = {"masks": 9, "follows_picture": [40, 50.0], "first": [20, 10.0], "oracle": [30, 30]}
    pictures = {"masks": 9, "photos": 4, "iou": [20.5, 61.0], "gain": {"mean": 40.5}, "asked": True}
    job = job_of({"swapped": row, "guard": row, "held_out": row, "swapped_gain": -1.0, "pictures": pictures})
    gate, html = read_gate(job), render_gate(job, NOW)
    assert "61.0 % on their own photos, by 20.5 % on others" in html
    assert [row.name for row in gate.verdict.of_group(None)] == ["held-out corrections", "guard set", "swapped"]
    assert list(gate.verdict.measures.values()) == ["value", "best of six", "ranked first", "follows picture"]
    held_out = gate.verdict.rows[0]
    words = [change.direction for name in gate.verdict.measures if (change := held_out.get(name))]
    assert words == ["down", "same", "down", "up"]


def test_text_of_a_verdict_stays_text_and_why_a_better_model_is_not_live_is_told() -> None:
    row = {"masks": 9, "oracle": [1, 2], "first": [1, 2], "<b>m</b>": [1, 2]}
    verdict = {"reasons": ["<script>1</script>"], "held_out": row, "<i>": row, "by_label": {"<u>": row}}
    html = render_gate(job_of(verdict, version="<s>", parent="<p>", message="<em>"), NOW)
    assert not any(f"{tag}" in html for tag in ("<script", "<b>m", "<i>", "<u>", "<s>", "<em>"))
    assert json.dumps("<u>")[1:-1].replace("<", "&lt;").replace(">", "&gt;") in html
    overtaken = read_gate(job_of({"reasons": [], "held_out": row}, message="another one has become the live one"))
    assert not overtaken.promoted
    assert overtaken.verdict.reasons == ("another one has become the live one",)
