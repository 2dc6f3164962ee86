"""Suggestions lose what became no region; what became one is judged as before."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import select, text, update
from typer.testing import CliRunner

from backend.cli.main import app
from backend.corrections import settling
from backend.corrections.inbox import enqueue, process_inbox
from backend.corrections.queries import count, problems, stream_regions
from backend.corrections.settling import BATCH, TAKEN, settle
from backend.corrections.suggestions import PromptAnswer, save_suggestions
from backend.errors import StoreError
from backend.label_studio.events import parse_webhook
from backend.records import StoredRegion
from backend.store.database import Store
from backend.store.tables import offers, tasks
from tests.backend.annotations import KEY, NOON, annotation, answered, at, brush_row, event, square
from tests.backend.corrections.killed_writer import die_at_step
from tests.backend.stored import find_suggestion, query_plans
from tests.paths import ROOT

MASKS = [square(1, 1, 20), square(3, 3, 9), square(25, 5, 8)]
DAYS = timedelta(days=30)
LATER = NOON + timedelta(days=31)


def save(store: Store, answer: PromptAnswer) -> str:
    suggestion = answer.suggestion()
    assert suggestion is not None
    with store.write() as connection:
        save_suggestions(connection, [suggestion])
    return suggestion.prompt_id


def submit(store: Store, *rows: dict[str, Any], updated: float = 0) -> dict[str, StoredRegion]:
    body = event("ANNOTATION_UPDATED", annotation=annotation(5, list(rows), updated=updated))
    enqueue(store, parse_webhook(body).to_event(KEY.origin))
    process_inbox(store)
    return {each.key.region: each for each in stream_regions(store, KEY)}


def prompts(store: Store) -> set[str]:
    with store.read() as connection:
        return set(connection.scalars(select(offers.c.prompt_id)))


def sizes(store: Store) -> dict[str, int]:
    """Candidates of each prompt."""
    with store.read() as connection:
        rows = connection.execute(select(offers.c.prompt_id, offers.c.candidates)).all()
    return {row.prompt_id: len(row.candidates) for row in rows}


def test_what_became_a_region_is_judged_as_before_and_the_rest_is_gone(store: Store) -> None:
    answer, rows = answered(MASKS)
    taken, rejected = save(store, answer), save(store, answered(MASKS)[0])
    edited = rows[1] | {"origin": "prediction-changed", "value": rows[2]["value"]}
    before = submit(store, edited)
    assert list(settle(store, DAYS, at(-10) + TAKEN)) == [], "none is older than a day"
    assert count(store, KEY).rejected == 1
    assert list(settle(store, DAYS, LATER)) == [2]
    assert count(store, KEY).rejected == 1
    assert prompts(store) == {taken} != {rejected}
    left = find_suggestion(store, taken)
    assert left is not None
    assert [each.rank for each in left.candidates] == [2]
    again = submit(store, edited, updated=60)
    for name, region in before.items():
        assert (again[name].outcome, again[name].iou_with_offer) == (region.outcome, region.iou_with_offer)
        assert (again[name].click, again[name].seconds) == (region.click, region.seconds)
    assert list(settle(store, DAYS, LATER)) == []


def test_after_a_day_a_taken_candidate_is_left_alone_and_what_was_not_taken_may_still_be(store: Store) -> None:
    answer, rows = answered(MASKS)
    taken = save(store, answer)
    other, drafted = answered(MASKS, at_s=1)
    waiting = save(store, other)
    submit(store, rows[1])
    assert list(settle(store, DAYS, at(10) + TAKEN)) == [1]
    assert sizes(store) == {taken: 1, waiting: 3}
    later = {each.key.region: each for each in submit(store, rows[1], drafted[2], updated=10**5).values()}
    assert [(each.outcome, each.iou_with_offer) for each in later.values()] == [("accepted", 1.0)] * 2
    assert list(settle(store, DAYS, at(10**5) + TAKEN)) == [1]
    assert sizes(store) == {taken: 1, waiting: 1}
    assert count(store, KEY).rejected == 0


def test_another_candidate_of_a_settled_prompt_counts_as_the_editor_says(store: Store) -> None:
    answer, rows = answered(MASKS)
    save(store, answer)
    submit(store, rows[0])
    sum(settle(store, DAYS, LATER))
    found = submit(store, rows[0], rows[1] | {"origin": "prediction-changed"}, updated=60)
    judged = {name: (each.outcome, each.iou_with_offer) for name, each in found.items()}
    assert judged == {rows[0]["id"]: ("accepted", 1.0), rows[1]["id"]: ("corrected", None)}


def test_nothing_is_kept_longer_than_the_days_say(store: Store) -> None:
    answer, rows = answered(MASKS)
    taken, untaken = save(store, answer), save(store, answered(MASKS)[0])
    submit(store, rows[0])
    hour = timedelta(hours=1)
    assert list(settle(store, hour, at(-20) + hour)) == []
    assert list(settle(store, hour, at(20) + hour)) == [2]
    assert sizes(store) == {taken: 1}, untaken


def test_a_deleted_annotation_that_comes_back_finds_its_suggestion(store: Store) -> None:
    answer, rows = answered(MASKS)
    taken = save(store, answer)
    submit(store, rows[0])
    enqueue(store, parse_webhook(event("ANNOTATIONS_DELETED", annotations=[{"id": 5}])).to_event(KEY.origin))
    process_inbox(store)
    assert list(settle(store, DAYS, LATER)) == [1]
    assert prompts(store) == {taken}


def test_many_are_settled_batch_by_batch_oldest_first(store: Store) -> None:
    for number in range(BATCH + 5):
        save(store, answered(MASKS[:1], at_s=number)[0])
    new = save(store, answered(MASKS[:1], at_s=10**6)[0])
    look = settle(store, DAYS, at(10**5) + DAYS)
    assert next(look) == BATCH
    assert list(settle(store, DAYS, at(10**5) + DAYS)) == [5], "a look that was cut off is begun again"
    assert list(look) == []
    assert prompts(store) == {new}


def test_those_that_may_still_be_taken_do_not_stand_in_the_way(store: Store) -> None:
    for _ in range(BATCH + 5):
        save(store, answered(MASKS[:1], at_s=-60)[0])  # all at the same time
    answer, rows = answered(MASKS)
    taken = save(store, answer)
    submit(store, rows[0])
    assert list(settle(store, DAYS, at(60) + TAKEN)) == [1]
    assert sizes(store)[taken] == 1


SETTLING = """
import sys
from tests.backend.corrections.test_settling import settle_and_die
settle_and_die(sys.argv[1])
"""


def settle_and_die(url: str) -> None:
    """In a process of its own: children settle, two in a transaction, each killed a step later than the one before,
    until one lives. Prints what each left, as JSON: candidates of each prompt, and how many count as rejected.
    """
    settling.BATCH = 2
    for deadly in itertools.count(1):
        child = os.fork()
        if child == 0:
            store = Store.open(url)
            die_at_step(deadly)
            sum(settle(store, DAYS, LATER))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        store = Store.open(url)
        print(json.dumps([sizes(store), count(store, KEY).rejected]))
        store.close()
        if not os.WIFSIGNALED(status):
            return


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
def test_killed_at_any_step_it_leaves_each_suggestion_whole_or_settled(database: str) -> None:
    store = Store.open(database)
    pairs = [answered(MASKS, at_s=number) for number in range(3)]
    taken = [save(store, answer) for answer, _ in pairs]
    untaken = [save(store, answered(MASKS, at_s=number)[0]) for number in (0.5, 1.5)]
    before = submit(store, *(rows[1] for _, rows in pairs), updated=60)
    whole = dict.fromkeys(taken + untaken, 3)
    assert sizes(store) == whole
    command = [sys.executable, "-c", SETTLING, database]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    left = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(left) > 5
    for found, rejected in left:
        assert rejected == 2
        assert found.items() <= (whole | dict.fromkeys(taken, 1)).items() | whole.items()
        assert {*taken} <= {*found}
    assert left[-1][0] == sizes(store) == dict.fromkeys(taken, 1)
    again = submit(store, *(rows[1] for _, rows in pairs), updated=120)
    judged = [{name: (each.outcome, each.iou_with_offer) for name, each in found.items()} for found in (before, again)]
    assert judged[0] == judged[1] == dict.fromkeys(before, ("accepted", 1.0))
    store.close()


def test_old_suggestions_are_found_by_an_index(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/semsam.db")
    save(store, answered(MASKS[:1])[0])
    with query_plans(store) as plans:
        sum(settle(store, DAYS, LATER))
    store.close()
    assert "offers_unsettled" in plans[0]
    assert "project=? AND task=?" in plans[1]
    assert "prompt_id=?" in plans[2]


@pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
def test_the_command_settles_and_gives_the_room_back(database: str, tmp_path: Path) -> None:
    store = Store.open(database)
    noise = np.random.default_rng(1).random((400, 400)) < 0.5
    for _ in range(20):
        save(store, answered([noise])[0])
    store.close()
    environment = {"SEMSAM_DATABASE_URL": database, "SEMSAM_DATA_DIR": str(tmp_path)}
    size = sum(path.stat().st_size for path in tmp_path.glob("semsam.db*"))
    done = CliRunner().invoke(app, ["settle", "--days", "1", "--compact"], env=environment)
    assert done.output == "20 suggestions settled\n", done.output
    if size:
        assert (tmp_path / "semsam.db").stat().st_size < size / 2
    store = Store.open(database)
    assert prompts(store) == set()
    store.close()


def test_the_command_deletes_nothing_by_a_setting_that_keeps_everything(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/semsam.db"
    with closing(Store.open(database)) as store:
        kept = save(store, answered(MASKS)[0])
    environment = {"SEMSAM_DATABASE_URL": database, "SEMSAM_DATA_DIR": str(tmp_path), "SEMSAM_SUGGESTION_DAYS": "0"}
    done = CliRunner().invoke(app, ["settle"], env=environment)
    assert isinstance(done.exception, StoreError) and "--days" in str(done.exception)
    with closing(Store.open(database)) as store:
        assert prompts(store) == {kept}


def test_suggestions_and_masks_of_an_older_database_stay_what_they_were(store: Store) -> None:
    answer, rows = answered(MASKS)
    prompt_id = save(store, answer)
    before = find_suggestion(store, prompt_id)
    malformed = brush_row("b", square(1, 1, 9)) | {"original_width": 0}
    drawn = submit(store, brush_row("a", square(1, 1, 9), label="x"), malformed, updated=-60)
    unread = problems(store, KEY)
    assert drawn and unread
    with store.write() as connection:
        connection.execute(update(tasks).values(image_sha256=answer.image_sha256))
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", "backend.store:migrations")
        command.downgrade(config, "0008")
        old = connection.scalar(text("SELECT candidates FROM offers"))
        old = json.loads(old) if isinstance(old, str) else old
        assert [each["names"] for each in old] == [[], [], []], "as they were: plain JSON"
        masks = connection.scalars(text("SELECT mask FROM regions ORDER BY region")).all()
        assert masks == [drawn["a"].mask["counts"], None], "plain text"
        for table in ("offers", "tasks"):
            digests = connection.scalars(text(f"SELECT image_sha256 FROM {table}")).all()
            assert digests == [answer.image_sha256], "text, too"
        command.upgrade(config, "head")
        assert connection.scalars(select(tasks.c.image_sha256)).all() == [answer.image_sha256]
    assert {each.key.region: each for each in stream_regions(store, KEY)} == drawn
    assert problems(store, KEY) == unread
    assert find_suggestion(store, prompt_id) == before
    (region,) = submit(store, rows[0]).values()
    assert (region.outcome, region.iou_with_offer) == ("accepted", 1.0)
    assert count(store, KEY).rejected == 0
