"""What the status is read from: masks that were taken over time, jobs that the gate has judged."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from backend.finetuning import jobs
from backend.records import ProjectKey, StoredRegion
from backend.store.database import Store
from tests.backend.stored import BEGAN, ORIGIN, box, region

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)


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
