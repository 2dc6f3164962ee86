"""Old suggestions lose what became no region; what became one is judged as before."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import select, text
from typer.testing import CliRunner

from backend.cli.main import app
from backend.corrections.inbox import enqueue, process_inbox
from backend.corrections.queries import count, stream_regions
from backend.corrections.settling import BATCH, settle
from backend.corrections.suggestions import PromptAnswer, save_suggestions
from backend.label_studio.events import parse_webhook
from backend.records import StoredRegion
from backend.store.database import Store
from backend.store.tables import offers
from tests.backend.annotations import KEY, NOON, annotation, answered, at, event, square
from tests.backend.stored import find_suggestion, query_plans

MASKS = [square(1, 1, 20), square(3, 3, 9), square(25, 5, 8)]
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


def test_what_became_a_region_is_judged_as_before_and_the_rest_is_gone(store: Store) -> None:
    answer, rows = answered(MASKS)
    taken, rejected = save(store, answer), save(store, answered(MASKS)[0])
    edited = rows[1] | {"origin": "prediction-changed", "value": rows[2]["value"]}
    before = submit(store, edited)
    assert settle(store, at(-10)) == 0, "none is older than that"
    assert count(store, KEY).rejected == 1
    assert settle(store, LATER) == 2
    assert count(store, KEY).rejected == 1
    assert prompts(store) == {taken} != {rejected}
    left = find_suggestion(store, taken)
    assert left is not None
    assert [each.rank for each in left.candidates] == [2]
    again = submit(store, edited, updated=60)
    for name, region in before.items():
        assert (again[name].outcome, again[name].iou_with_offer) == (region.outcome, region.iou_with_offer)
        assert (again[name].click, again[name].seconds) == (region.click, region.seconds)
    assert settle(store, LATER) == 0


def test_a_deleted_annotation_that_comes_back_finds_its_suggestion(store: Store) -> None:
    answer, rows = answered(MASKS)
    taken = save(store, answer)
    submit(store, rows[0])
    enqueue(store, parse_webhook(event("ANNOTATIONS_DELETED", annotations=[{"id": 5}])).to_event(KEY.origin))
    process_inbox(store)
    settle(store, LATER)
    assert prompts(store) == {taken}


def test_many_are_settled_batch_by_batch_oldest_first(store: Store) -> None:
    for number in range(BATCH + 5):
        save(store, answered(MASKS[:1], at_s=number)[0])
    new = save(store, answered(MASKS[:1], at_s=10**6)[0])
    assert [settle(store, at(10**5)) for _ in range(3)] == [BATCH, 5, 0]
    assert prompts(store) == {new}


def test_old_suggestions_are_found_by_an_index(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/semsam.db")
    save(store, answered(MASKS[:1])[0])
    with query_plans(store) as plans:
        settle(store, LATER)
    store.close()
    assert "offers_unsettled" in plans[0]
    assert "project=? AND task=?" in plans[1]


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


def test_suggestions_of_an_older_database_stay_what_they_were(store: Store) -> None:
    answer, rows = answered(MASKS)
    prompt_id = save(store, answer)
    before = find_suggestion(store, prompt_id)
    with store.write() as connection:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", "backend.store:migrations")
        command.downgrade(config, "0008")
        old = connection.scalar(text("SELECT candidates FROM offers"))
        old = json.loads(old) if isinstance(old, str) else old
        assert [each["names"] for each in old] == [[], [], []], "as they were: plain JSON"
        command.upgrade(config, "head")
    assert find_suggestion(store, prompt_id) == before
    (region,) = submit(store, rows[0]).values()
    assert (region.outcome, region.iou_with_offer) == ("accepted", 1.0)
    assert count(store, KEY).rejected == 0
