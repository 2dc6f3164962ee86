"""Regions that were there before any click: what annotators make of them is told from what they make of a click's."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import update

from backend.adaptation.lessons import training_regions
from backend.corrections.prediction_outcomes import judge_preannotated
from backend.corrections.queries import count, stream_regions
from backend.errors import FetchTimeout, NotFound
from backend.export.writer import provenance
from backend.inference.preannotation import as_prediction
from backend.label_studio.client import LabelStudio
from backend.label_studio.events import parse_webhook
from backend.label_studio.label_config import LabelConfig
from backend.records import Preannotated
from backend.service.status import read_status
from backend.settings import Settings
from backend.store.database import Store
from backend.store.tables import regions
from semsam_model.inference.preannotate import Region
from semsam_model.masks.geometry import crop_mask
from semsam_model.types import Candidate
from tests.backend.annotations import CONFIG, KEY, NOON, ORIGIN, annotation, answered, brush_row, event, square
from tests.backend.corrections.test_inbox import everything, receive, suggest

WHOLE, PART, OTHER = square(5, 5, 20), square(8, 8, 8), square(35, 5, 10)


def prediction(number: int = 31) -> dict[str, Any]:
    """Three regions as `semsam batch` writes them, and as Label Studio's API gives them back."""
    regions = []
    for rank, mask in enumerate((WHOLE, PART, OTHER), start=1):
        crop, bbox = crop_mask(mask)
        candidate = Candidate(rank, rank - 1, None, 0.9, 0.9, 1.0, mask.shape, bbox, crop)
        regions.append(Region(candidate, "part" if rank == 2 else "object"))
    made = as_prediction(regions, LabelConfig.parse(CONFIG), "ab" * 32, "mobile-1")
    times = dict.fromkeys(("created_at", "updated_at"), NOON.isoformat())
    return made | {"id": number, "task": 1, "project": KEY.project} | times


def geometry(made: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows with masks, by rank."""
    return sorted((row for row in made["result"] if "meta" in row), key=lambda row: row["meta"]["candidate"])


class Studio(LabelStudio):
    """Predictions are kept here; `asked` for which."""

    def __init__(self, *made: dict[str, Any]) -> None:
        super().__init__(Settings(label_studio_url=ORIGIN, label_studio_api_key="t"))
        self.made = {each["id"]: each for each in made}
        self.asked: list[int] = []
        self.slow = False

    def get_prediction(self, number: int, *, project: str | None = None) -> dict[str, Any]:
        self.asked.append(number)
        if self.slow:
            raise FetchTimeout("too slow")
        if number not in self.made:
            raise NotFound(f"prediction {number}")
        return self.made[number]


def edited(row: dict[str, Any], mask: np.ndarray) -> dict[str, Any]:
    value = row["value"] | {"rle": brush_row("", mask)["value"]["rle"]}
    return row | {"origin": "prediction-changed", "value": value}


def renamed(row: dict[str, Any], label: str) -> dict[str, Any]:
    return row | {"value": row["value"] | {"brushlabels": [label]}}


def begun(number: int, rows: list[Any], parent: int | None = 31, **more: Any) -> dict[str, Any]:
    return event("ANNOTATION_CREATED", annotation=annotation(number, rows, parent_prediction=parent, **more))


def test_each_way_to_treat_a_preannotated_region_is_told_from_the_others_and_from_a_clicks(store: Store) -> None:
    made = prediction()
    whole, part, other = geometry(made)
    click, (clicked,) = answered([square(40, 25, 8)], at_s=-4)
    suggest(store, click)
    smaller = PART & ~square(8, 8, 4)
    rows = [whole, edited(part, smaller), clicked, brush_row("by-hand", square(50, 30, 5))]
    receive(store, begun(5, rows), begun(6, [renamed(whole, "another"), part, other]))

    studio = Studio(made)
    assert judge_preannotated(store, studio, KEY) == (5, 0)
    of = {(r.key.annotation, r.key.region): r for r in stream_regions(store, KEY)}
    assert (of[5, whole["id"]].outcome, of[5, whole["id"]].iou_with_offer) == ("accepted", 1)
    assert of[5, part["id"]].outcome == "corrected"
    assert of[5, part["id"]].iou_with_offer == pytest.approx(48 / 64)
    assert of[6, whole["id"]].outcome == "relabelled"
    for region in of.values():
        assert region.preannotated == (region.key.region in {row["id"] for row in (whole, part, other)})
        if region.preannotated:
            assert region.click is None and region.seconds is None
            assert provenance(region)["preannotated"] is True
    assert (of[5, clicked["id"]].outcome, of[5, clicked["id"]].seconds) == ("accepted", 4)
    assert of[5, "by-hand"].outcome == "drawn"

    counts = count(store, KEY)
    assert counts.preannotated == Preannotated(annotations=2, accepted=3, corrected=1, relabelled=1, deleted=1)
    assert counts.preannotated.regions == 6  # two annotations, three regions each
    assert dict(counts.by_outcome) == {"accepted": 4, "corrected": 1, "relabelled": 1, "drawn": 1}
    assert counts.rejected == 0
    overall = read_status(store).overall
    assert overall is not None
    assert (overall.masks, overall.seconds, overall.level) == (1, 4, 1)  # the click alone

    assert judge_preannotated(store, studio, KEY) == (0, 0)
    assert studio.asked == [31]


def test_a_later_version_of_the_annotation_is_judged_anew_and_remembers_what_it_was_begun_from(store: Store) -> None:
    made = prediction()
    whole, part, other = geometry(made)
    studio = Studio(made)
    receive(store, begun(5, [whole, part, other], updated=1))
    judge_preannotated(store, studio, KEY)
    assert count(store, KEY).preannotated == Preannotated(annotations=1, accepted=3)
    receive(store, begun(5, [edited(whole, OTHER), renamed(part, "x")], parent=None, updated=2))
    assert judge_preannotated(store, studio, KEY) == (2, 0)
    assert count(store, KEY).preannotated == Preannotated(annotations=1, corrected=1, relabelled=1, deleted=1)
    assert everything(store)[whole["id"]].iou_with_offer == 0
    skipped = annotation(5, [], parent_prediction=31, updated=3, was_cancelled=True)
    receive(store, event("ANNOTATION_UPDATED", annotation=skipped))
    assert count(store, KEY).preannotated == Preannotated()


def test_without_its_prediction_a_region_counts_as_the_editor_says_and_a_slow_server_is_asked_again(
    store: Store,
) -> None:
    made = prediction()
    whole, part, _ = geometry(made)
    receive(store, begun(5, [whole, edited(part, WHOLE)]), begun(6, [whole], parent=32))
    studio = Studio(made)
    studio.slow = True
    assert judge_preannotated(store, studio, KEY) == (0, 2)
    assert count(store, KEY).preannotated == Preannotated(accepted=2, corrected=1, unread=2)
    assert judge_preannotated(store, studio, KEY) == (0, 0), "not tried again at once"
    studio.slow = False
    assert judge_preannotated(store, studio, KEY, retry=True) == (2, 1)  # 32 is gone
    assert count(store, KEY).preannotated == Preannotated(1, accepted=2, corrected=1, deleted=1, unread=1)
    assert judge_preannotated(store, studio, KEY, retry=True) == (0, 0), "what is gone is not asked for again"


def test_a_copy_of_a_preannotated_region_is_drawn_and_anothers_prediction_suggests_nothing_of_ours(
    store: Store,
) -> None:
    made = prediction()
    whole, *_ = geometry(made)
    foreign = made | {"id": 40, "result": [brush_row("f", WHOLE, origin="prediction")]}
    receive(store, begun(5, [whole, whole | {"id": str(uuid.uuid4()), "origin": "manual"}]))
    receive(store, begun(6, foreign["result"], parent=40))
    assert judge_preannotated(store, Studio(made, foreign), KEY) == (2, 0)
    found = sorted((region.outcome, region.preannotated) for region in stream_regions(store, KEY))
    assert found == [("accepted", True), ("drawn", False), ("drawn", False)]
    assert count(store, KEY).preannotated == Preannotated(annotations=1, accepted=1, deleted=2)


def test_what_was_suggested_without_a_click_teaches_once_it_was_submitted(store: Store) -> None:
    whole, part, _ = geometry(prediction())
    receive(store, begun(5, [whole, part]))
    with store.write() as connection:
        connection.execute(update(regions).values(image_sha256="ab" * 32))
    assert {each.key.region for each in training_regions(store, KEY)} == {whole["id"], part["id"]}


def test_corrections_of_an_older_database_stay_and_were_all_of_clicks(store: Store) -> None:
    receive(store, begun(5, [brush_row("by-hand", WHOLE)]))
    with store.write() as connection:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", "backend.store:migrations")
        command.downgrade(config, "0005")
        command.upgrade(config, "head")
    ((name, region),) = everything(store).items()
    assert (name, region.outcome, region.preannotated) == ("by-hand", "drawn", False)
    assert count(store, KEY).preannotated == Preannotated()


def test_the_copy_of_a_prediction_in_a_webhook_is_not_kept() -> None:
    made = prediction()
    body = begun(5, [brush_row("by-hand", OTHER)], prediction=made)
    received = parse_webhook(body).to_event(ORIGIN)
    assert made["result"][0]["id"] not in received.to_json()
    assert [each["parent_prediction"] for each in received.annotations] == [31]
