"""What annotators do, as Label Studio reports it, in any order, on both databases."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy.event import listen

from backend.corrections.archive import PhotoArchive
from backend.corrections.inbox import Arrivals, enqueue, process_inbox
from backend.corrections.photos import fetch_photos
from backend.corrections.queries import count, count_waiting, find_project, problems, stream_regions
from backend.corrections.suggestions import PromptAnswer, save_suggestions
from backend.errors import StoreUnavailable
from backend.label_studio.events import WebhookEvent, parse_webhook
from backend.records import StoredRegion
from backend.store import database
from backend.store.database import Store
from semsam_model.masks.codecs import decode_coco_rle
from tests.backend.annotations import KEY, ORIGIN, SIZE, annotation, answered, at, brush_row, event, square
from tests.backend.stored import find_suggestion, photo
from tests.waiting import eventually


def receive(store: Store, *bodies: dict[str, Any]) -> None:
    for body in bodies:
        enqueue(store, parse_webhook(body).to_event(ORIGIN))
    process_inbox(store)


def suggest(store: Store, answer: PromptAnswer) -> None:
    made = answer.suggestion()
    assert made is not None
    with store.write() as connection:
        save_suggestions(connection, [made])


def everything(store: Store) -> dict[str, StoredRegion]:
    return {region.key.region: region for region in stream_regions(store, KEY)}


def test_each_outcome_of_a_suggestion_is_told_from_the_others(store: Store) -> None:
    answer, (whole, part, third) = answered([square(5, 5, 20), square(8, 8, 8), square(10, 10, 4)])
    ignored, _ = answered([square(30, 5, 5)], at_s=-4)
    suggest(store, answer)
    suggest(store, ignored)
    smaller = square(8, 8, 8) & ~square(8, 8, 4)
    corrected = part | {"origin": "prediction-changed", "value": brush_row("", smaller, "part")["value"]}
    relabelled = third | {"value": third["value"] | {"brushlabels": ["another"]}}
    drawn = brush_row("by-hand", square(40, 20, 9))
    receive(store, event("ANNOTATION_CREATED", annotation=annotation(5, [whole, corrected, relabelled, drawn])))

    stored = everything(store)
    assert [stored[row["id"]].outcome for row in (whole, part, third, drawn)] == [
        "accepted",
        "corrected",
        "relabelled",
        "drawn",
    ]
    assert stored[whole["id"]].iou_with_offer == 1
    assert stored[part["id"]].iou_with_offer == pytest.approx(48 / 64)
    np.testing.assert_array_equal(decode_coco_rle(dict(stored[part["id"]].mask)), smaller)
    assert (stored[whole["id"]].rank, stored[part["id"]].rank) == (1, 2)
    assert stored[whole["id"]].click == (10.5, 11.5)
    assert stored[whole["id"]].seconds == 6  # until the next prompt on the task
    assert stored[whole["id"]].image_sha256 == "ab" * 32
    assert stored["by-hand"].prompt_id is None
    counts = count(store, KEY)
    assert dict(counts.by_outcome) == {"accepted": 1, "corrected": 1, "relabelled": 1, "drawn": 1}
    assert counts.rejected == 1  # the prompt of which nothing was taken


def test_a_suggestion_is_read_as_it_was_stored(store: Store) -> None:
    answer, rows = answered([square(5, 5, 20), square(8, 8, 8)])
    suggest(store, answer)
    suggest(store, answer)
    made = answer.suggestion()
    assert made is not None
    assert sorted(map(str, find_suggestion(store, made.prompt_id).candidates)) == sorted(map(str, made.candidates))  # type: ignore[union-attr]
    assert find_suggestion(store, made.prompt_id) == made
    assert {candidate.region for candidate in made.candidates} == {row["id"] for row in rows}


def test_an_accepted_region_whose_suggestion_was_lost_is_kept_with_what_it_carries_itself(store: Store) -> None:
    _, (row,) = answered([square(5, 5, 20)])
    receive(store, event("ANNOTATION_CREATED", annotation=annotation(5, [row])))
    region = everything(store)[row["id"]]
    assert (region.outcome, region.rank, region.level, region.model_version) == ("accepted", 1, 1, "mobile-1")
    assert region.iou_with_offer is None


FIRST = event("ANNOTATION_CREATED", annotation=annotation(5, [brush_row("a", square(1, 1, 5))], updated=1))
SECOND = event(
    "ANNOTATION_UPDATED",
    annotation=annotation(5, [brush_row("a", square(1, 1, 7)), brush_row("b", square(20, 1, 5))], updated=2),
)
THIRD = event("ANNOTATION_UPDATED", annotation=annotation(5, [brush_row("b", square(20, 1, 6))], updated=3))
GONE = event("ANNOTATIONS_DELETED", annotations=[{"id": 5}])


def test_events_in_any_order_and_any_number_end_in_the_same_state(store: Store) -> None:
    for order in itertools.permutations([FIRST, SECOND, THIRD]):
        number = order.index(FIRST) * 100 + order.index(SECOND) * 10 + order.index(THIRD) + 1000
        moved = [body | {"annotation": body["annotation"] | {"id": number}} for body in order]
        receive(store, *moved, *reversed(moved), moved[1])
    regions = list(stream_regions(store, KEY))
    assert len(regions) == 6
    assert {region.key.region for region in regions} == {"b"}
    assert {region.updated_at for region in regions} == {at(3)}
    assert count(store, KEY).deleted == 4  # "a", wherever the newest event was not the first


@pytest.mark.parametrize("order", [(FIRST, GONE), (GONE, FIRST), (GONE, SECOND, FIRST, GONE)])
def test_a_deletion_is_final_even_before_the_creation_and_leaves_a_mark(store: Store, order: Any) -> None:
    receive(store, *order)
    assert everything(store) == {}
    if order[0] is FIRST:
        assert count(store, KEY).deleted == 1


def test_deleted_tasks_take_their_annotations_along(store: Store) -> None:
    other = event("ANNOTATION_CREATED", annotation=annotation(6, [brush_row("c", square(1, 1, 5))], task=2))
    receive(store, FIRST, other, event("TASKS_DELETED", tasks=[{"id": 1}]))
    assert set(everything(store)) == {"c"}


def test_a_skipped_task_takes_back_what_was_submitted(store: Store) -> None:
    skipped = annotation(5, [brush_row("a", square(1, 1, 5))], updated=2, was_cancelled=True)
    receive(store, FIRST, event("ANNOTATION_UPDATED", annotation=skipped))
    assert everything(store) == {}


BROKEN = {
    "not an object": "nonsense",
    "too short": brush_row("x", square(1, 1, 5)) | {"value": {"rle": [0, 0, 1]}},
    "half a size": brush_row("x", square(1, 1, 5)) | {"original_width": None},
    "half a letter": brush_row("\ud800\0", square(1, 1, 5)) | {"value": {"rle": [1]}},
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_malformed_region_is_kept_with_its_reason_and_costs_the_others_nothing(store: Store, name: str) -> None:
    rows = [brush_row("a", square(1, 1, 5)), BROKEN[name], brush_row("b", square(9, 9, 5))]
    receive(store, event("ANNOTATION_CREATED", annotation=annotation(5, rows)))
    assert set(everything(store)) == {"a", "b"}
    (reason,) = problems(store, KEY).values()
    assert "expected" in reason
    assert count(store, KEY).malformed == 1


OUTLINE = {"points": [[25, 25], [75, 25], [75, 75], [25, 75]], "polygonlabels": ["object"]}
OVAL = {"x": 50, "y": 50, "radiusX": 25, "radiusY": 25, "rotation": 0, "ellipselabels": ["object"]}


def test_regions_lie_over_their_photo_whatever_size_they_say(store: Store, tmp_path: Path) -> None:
    """Their percent do; a brush mask that was drawn on another size cannot, and says both."""
    half = {"original_width": SIZE[1] // 2, "original_height": SIZE[0] // 2}
    sizeless = {"original_width": None, "original_height": None}
    outline = brush_row("outline", square(1, 1, 5)) | {"type": "polygonlabels", "value": OUTLINE}
    brush = brush_row("brush", square(1, 1, 5))
    rows = [
        outline | half,
        outline | sizeless | {"id": "sizeless"},
        outline | half | {"id": "oval", "type": "ellipselabels", "value": OVAL},
        brush,
        brush | sizeless | {"id": "brush without size"},
        brush_row("brush of another size", np.ones((20, 30), bool)),
    ]
    receive(store, event("ANNOTATION_CREATED", annotation=annotation(5, rows)))
    photos = PhotoArchive(tmp_path / "photos")
    assert fetch_photos(store, OnePhoto(), photos, KEY) == (1, 0)  # type: ignore[arg-type]
    stored = everything(store)
    assert {(region.height, region.width) for region in stored.values()} == {SIZE}
    assert set(stored) == {"outline", "sizeless", "oval", "brush", "brush without size"}
    quarter = np.zeros(SIZE, bool)
    quarter[10:30, 15:45] = True
    masks = {name: decode_coco_rle(dict(region.mask)) for name, region in stored.items()}
    np.testing.assert_array_equal(masks["outline"], quarter)
    np.testing.assert_array_equal(masks["sizeless"], quarter)
    np.testing.assert_array_equal(masks["brush without size"], square(1, 1, 5))
    assert 0 < (quarter & ~masks["oval"]).sum() < quarter.sum() / 4 and not (masks["oval"] & ~quarter).any()
    (problem,) = problems(store, KEY).values()
    assert "30x20" in problem and "60x40" in problem
    # a region that comes later is compared with the photo that is there
    receive(store, event("ANNOTATION_CREATED", annotation=annotation(6, [outline | half])))
    assert fetch_photos(store, OnePhoto(), photos, KEY) == (0, 0)  # type: ignore[arg-type]
    assert all((region.height, region.width) == SIZE for region in stream_regions(store, KEY))


class OnePhoto:
    """A Label Studio as far as photos go."""

    def project_on(self, origin: str, project: int) -> str:
        return str(project)

    def fetch_image(self, value: str, **task: Any) -> bytes:
        return photo(1, SIZE)


def test_an_event_that_makes_no_sense_is_put_aside_and_the_next_one_is_processed(store: Store) -> None:
    strange = event("ANNOTATION_CREATED", annotation=annotation(5, []) | {"updated_at": "yesterday"})
    receive(store, strange, event("ANNOTATION_CREATED", annotation=annotation(6, [brush_row("a", square(1, 1, 5))])))
    assert set(everything(store)) == {"a"}
    assert process_inbox(store) == 0


def test_the_project_is_known_by_its_newest_title_and_its_token_is_nowhere(store: Store) -> None:
    body = event("ANNOTATION_CREATED", annotation=annotation(5, []))
    newer = body | {"project": body["project"] | {"title": "new", "updated_at": at(9).isoformat()}}
    receive(store, newer, body)
    assert find_project(store, 7).title == "new"
    assert "secret" not in parse_webhook(body).to_event(ORIGIN).to_json()


def test_regions_come_in_the_order_of_their_keys_whatever_the_page(store: Store) -> None:
    names = ["b", "a", "B", "é", "Z", "_"]
    rows = [brush_row(name, square(1, 1, 5)) for name in names]
    receive(
        store,
        event("ANNOTATION_CREATED", annotation=annotation(12, rows, task=2)),
        event("ANNOTATION_CREATED", annotation=annotation(5, rows, task=10)),
        event("ANNOTATION_CREATED", annotation=annotation(11, rows, task=2)),
    )
    for page in (1, 4, 6, 100):
        keys = [region.key for region in stream_regions(store, KEY, page)]
        assert keys == sorted(keys)
        assert len(keys) == 18


def test_whoever_follows_the_projects_is_told_once_all_that_waited_is_worked_in(store: Store) -> None:
    for number in range(3):
        made = annotation(number, [brush_row("a", square(1, 1, 9))], task=number)
        enqueue(store, parse_webhook(event("ANNOTATION_CREATED", annotation=made)).to_event(ORIGIN))
    told = []
    process_inbox(store, lambda key: told.append((key, count(store, key).regions)))
    assert told == [(KEY, 3)]


def test_whoever_follows_the_projects_does_not_wait_for_a_long_queue(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.corrections.inbox.TELL_S", 0.0)
    for number in range(3):
        made = annotation(number, [brush_row("a", square(1, 1, 9))], task=number)
        enqueue(store, parse_webhook(event("ANNOTATION_CREATED", annotation=made)).to_event(ORIGIN))
    told = []
    process_inbox(store, lambda key: told.append(count(store, key).regions))
    assert told == [1, 2, 3]


# -------------------------------------------------------------------------------------- requests at the same time


def created(number: int) -> WebhookEvent:
    rows = [brush_row("a", square(1, 1, 5))]
    body = event("ANNOTATION_CREATED", annotation=annotation(number, rows, task=number))
    return parse_webhook(body).to_event(ORIGIN)


def test_events_that_come_while_another_writes_go_into_the_inbox_in_one_transaction(tmp_path: Path) -> None:
    store, commits = Store.open(f"sqlite:///{tmp_path}/semsam.db"), list[object]()
    arrivals = Arrivals(store)
    with ThreadPoolExecutor(20) as pool:
        with store.write():
            answers = [pool.submit(arrivals.enqueue, created(number)) for number in range(1, 21)]
            eventually(lambda: len(arrivals._waiting) == 20)
            assert count_waiting(store) == 0
            assert not any(each.done() for each in answers), "none is acknowledged before it is on disk"
            listen(store._engine, "commit", commits.append)
        assert [each.result() for each in answers] == [None] * 20
    assert len(commits) == 2, "the other's and theirs"
    assert count_waiting(store) == 20
    store.close()


def test_each_of_many_events_at_once_is_there_once(store: Store) -> None:
    arrivals = Arrivals(store)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(arrivals.enqueue, map(created, range(1, 41))))
    assert process_inbox(store) == 40
    assert count(store, KEY).regions == 40


def test_none_of_them_is_acknowledged_where_the_database_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_S", 0.2)
    store = Store.open(f"sqlite:///{tmp_path}/semsam.db")
    arrivals = Arrivals(store)
    with ThreadPoolExecutor(4) as pool, store.write():
        answers = [pool.submit(arrivals.enqueue, created(number)) for number in range(1, 5)]
        assert all(isinstance(each.exception(30), StoreUnavailable) for each in answers)
    assert count_waiting(store) == 0
    arrivals.enqueue(created(5))
    assert count_waiting(store) == 1
    store.close()
