"""A verdict as it is stored (plain JSON values), laid out: rows of figures before and after. Knows no model.

Read by form: whatever further measure or set a gate writes is shown under its own name, and what is missing is left
out, so that figures of older and newer gates stand side by side. `verdict.html` has the macros that draw it; the gate's
report and the backend's pages use them both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Len
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import AllowInfNan, Strict

from semsam_model.validation import JsonModel, Lenient, lenient

CLICK_MEASURES = ("oracle", "first", "max")  #: those of `evaluation.one_click`; a set of clicks has one at least

#: Titles of measures and sets whose names say too little, in the order shown; others follow under their own names.
_MEASURES = {
    "value": "value",
    "oracle": "best of six",
    "first": "ranked first",
    "max": "highest predicted IoU",
    "label_top1": "label top-1",
}
_SETS = {"held_out": "held-out corrections", "guard": "guard set"}
_GROUPS = {"by_level": "level", "by_label": "label"}

_Figure = Annotated[float, Strict(), AllowInfNan(False)]
_Pair = Annotated[list[_Figure], Len(2, 2)]


@dataclass(frozen=True)
class Change:
    """One figure of parent and child, percent."""

    before: float
    after: float

    @property
    def direction(self) -> str:
        """up, down or same, by the tenths that are shown."""
        change = round(self.after, 1) - round(self.before, 1)
        return "up" if change > 0 else "down" if change < 0 else "same"


@dataclass(frozen=True)
class Row:
    """A set of clicks, or those of a set with one level or label."""

    name: str
    changes: Mapping[str, Change]  #: by measure
    masks: int | None = None
    group: str | None = None  #: "level" or "label" for a part of the row above that has none

    def get(self, measure: str) -> Change | None:
        """None where it was not measured."""
        return self.changes.get(measure)


class Gain(JsonModel):
    """A mean with its interval, points of percent; None where it was not written."""

    mean: Lenient[_Figure] = None
    low: Lenient[_Figure] = None
    high: Lenient[_Figure] = None


@dataclass(frozen=True)
class VerdictTable:
    """The figures of a verdict."""

    reasons: tuple[str, ...]  #: why it was refused
    gain: Gain  #: on the held-out corrections
    guard_gain: float | None  #: points of percent
    agreement: Change | None  #: IoU of the corrected masks with the model's: on other photos (before), on their own
    agreement_gain: Gain | None
    measures: Mapping[str, str]  #: measure -> title of its column
    rows: tuple[Row, ...]  #: sets; after the first of them its parts, by level and then by label

    def of_group(self, group: str | None) -> tuple[Row, ...]:
        """The parts by "level" or by "label"; the sets for None."""
        return tuple(row for row in self.rows if row.group == group)


def read_verdict(verdict: Mapping[str, Any]) -> VerdictTable:
    """From plain JSON values, whatever they are."""
    names = [n for n in verdict if n not in _GROUPS and any(m in _changes(verdict[n]) for m in CLICK_MEASURES)]
    sets = [_row(_SETS.get(name, _words(name)), verdict[name]) for name in _in_order(names, _SETS)]
    parts = [
        _row(str(name), row, group)
        for key, group in _GROUPS.items()
        for name, row in _object(verdict.get(key)).items()
        if _changes(row)
    ]
    rows = (*sets[:1], *parts, *sets[1:])
    measures = dict.fromkeys(measure for row in (*sets, *parts) for measure in row.changes)
    pictures = _object(verdict.get("pictures"))
    return VerdictTable(
        reasons=tuple(str(reason) for reason in lenient(list[Any], verdict.get("reasons")) or ()),
        gain=lenient(Gain, verdict.get("gain")) or Gain(),
        guard_gain=lenient(_Figure, verdict.get("guard_gain")),
        agreement=_changes(pictures).get("iou"),
        agreement_gain=lenient(Gain, pictures.get("gain")) if pictures.get("asked") is True else None,
        measures={name: _MEASURES.get(name, _words(name)) for name in _in_order(measures, _MEASURES)},
        rows=rows,
    )


def page_environment(*folders: Path) -> Environment:
    """Templates of these folders and of this one, with everything escaped and no name left undefined."""
    environment = Environment(
        loader=FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["signed"] = signed
    return environment


def signed(value: float | None) -> str:
    """7.62 -> +7.6."""
    return "–" if value is None else f"{value:+.1f}"


def _row(name: str, row: Any, group: str | None = None) -> Row:
    masks = row.get("masks")
    return Row(name, _changes(row), masks if isinstance(masks, int) else None, group)


def _changes(row: Any) -> dict[str, Change]:
    """Every pair of numbers, and the value, which is what the gate compares: the mean of oracle and first."""
    pairs = {str(name): lenient(_Pair, value) for name, value in _object(row).items()}
    found = {name: Change(*pair) for name, pair in pairs.items() if pair is not None}
    oracle, first = found.get("oracle"), found.get("first")
    if oracle and first and "value" not in found:
        found["value"] = Change((oracle.before + first.before) / 2, (oracle.after + first.after) / 2)
    return found


def _in_order(names: Iterable[str], known: Mapping[str, str]) -> list[str]:
    names = list(names)
    return [*(name for name in known if name in names), *(name for name in names if name not in known)]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _object(value: Any) -> dict[Any, Any]:
    return lenient(dict[Any, Any], value) or {}
