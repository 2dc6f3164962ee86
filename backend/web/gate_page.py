"""A job's verdict, as the store keeps it, laid out: rows of figures before and after. Pure.

Read by form: whatever further measure or set a gate writes is shown under its own name, and what is missing is left
out, so that figures of older and newer gates stand side by side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backend.finetuning.jobs import Job

#: Columns whose names say too little, in the order shown; others follow.
_MEASURES = {
    "value": "value",
    "oracle": "best of six",
    "first": "offered first",
    "max": "said to be best",
    "label_top1": "label top-1",
}
_SETS = {"held_out": "held-out corrections", "guard": "guard set"}
_GROUPS = ("by_level", "by_label")
_ASKED = ("oracle", "first", "max")  #: a set of clicks has at least one of these


@dataclass(frozen=True)
class Change:
    """One figure of parent and child, percent."""

    before: float
    after: float

    @property
    def word(self) -> str:
        """Which way it went, by what is told: tenths."""
        change = round(self.after, 1) - round(self.before, 1)
        return "up" if change > 0 else "down" if change < 0 else "same"


@dataclass(frozen=True)
class Row:
    """A set, or a part of it."""

    name: str
    changes: Mapping[str, Change]  #: by measure
    masks: int | None = None

    def get(self, measure: str) -> Change | None:
        """None where it was not measured."""
        return self.changes.get(measure)


@dataclass(frozen=True)
class Gate:
    """What the gate said about a job. Gains are points of percent; None where they are not told."""

    job: Job
    promoted: bool
    reasons: tuple[str, ...]  #: why not
    gain: float | None
    low: float | None
    high: float | None
    guard_gain: float | None
    pictures: Change | None  #: IoU of the held-out masks with what the model sees: on other photos, on their own
    measures: Mapping[str, str]  #: measure -> what its column is called
    sets: tuple[Row, ...]
    levels: tuple[Row, ...]  #: of the held-out corrections, by the level that was best before
    labels: tuple[Row, ...]


def read_gate(job: Job) -> Gate | None:
    """None for a job that the gate has not judged."""
    verdict = job.verdict
    if not verdict:
        return None
    gain = _object(verdict.get("gain"))
    reasons = tuple(str(reason) for reason in _list(verdict.get("reasons")))
    if not reasons and job.state != "promoted" and job.message:  # judged better, and not activated
        reasons = (job.message,)
    names = [name for name in verdict if name not in _GROUPS and any(m in _changes(verdict[name]) for m in _ASKED)]
    sets = tuple(_row(_SETS.get(name, _words(name)), verdict[name]) for name in _in_order(names, _SETS))
    levels, labels = (_rows(verdict.get(group)) for group in _GROUPS)
    found = dict.fromkeys(measure for row in (*sets, *levels, *labels) for measure in row.changes)
    return Gate(
        job=job,
        promoted=job.state == "promoted",
        reasons=reasons,
        gain=_number(gain.get("mean")),
        low=_number(gain.get("low")),
        high=_number(gain.get("high")),
        guard_gain=_number(verdict.get("guard_gain")),
        pictures=_changes(verdict.get("pictures")).get("iou"),
        measures={name: _MEASURES.get(name, _words(name)) for name in _in_order(found, _MEASURES)},
        sets=sets,
        levels=levels,
        labels=labels,
    )


def _rows(group: Any) -> tuple[Row, ...]:
    return tuple(_row(str(name), row) for name, row in _object(group).items() if _changes(row))


def _row(name: str, row: Any) -> Row:
    masks = row.get("masks")
    return Row(name, _changes(row), masks if isinstance(masks, int) else None)


def _changes(row: Any) -> dict[str, Change]:
    """Every pair of numbers, and the value, which is what the gate compares: the mean of oracle and first."""
    found = {}
    for name, pair in _object(row).items():
        numbers = [_number(value) for value in _list(pair)]
        if len(numbers) == 2 and numbers[0] is not None and numbers[1] is not None:
            found[str(name)] = Change(numbers[0], numbers[1])
    oracle, first = found.get("oracle"), found.get("first")
    if oracle and first and "value" not in found:
        found["value"] = Change((oracle.before + first.before) / 2, (oracle.after + first.after) / 2)
    return found


def _in_order(names: Any, known: Mapping[str, str]) -> list[str]:
    return [*(name for name in known if name in names), *(name for name in names if name not in known)]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _number(value: Any) -> float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()
