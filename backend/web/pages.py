"""The status page, and a gate's page, as HTML: one document each, nothing fetched, no script.

What they show comes from `service.status`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment

from backend.finetuning.jobs import Job
from backend.service.status import Point, Status
from semsam_model.gate.verdict_table import VerdictTable, page_environment, read_verdict

REFRESH_S = 30  #: the browser loads the page again
CHART = (560, 190)  #: width, height of a curve's drawing area, SVG units

#: The pages may load nothing and run nothing; images lie inside of them.
SECURITY = "; ".join(
    [
        *("default-src 'none'", "img-src data:", "style-src 'unsafe-inline'"),
        *("base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"),
    ]
)


@dataclass(frozen=True)
class Curve:
    """One line of a chart."""

    name: str
    colour: str  #: a CSS class
    points: Sequence[tuple[float, float, str]]  #: x, y, what it says when pointed at
    last: str  #: the newest value, in words


@dataclass(frozen=True)
class Chart:
    """Lines over the same masks, oldest left; `ticks` are (y, text)."""

    title: str
    explanation: str
    curves: Sequence[Curve]
    ticks: Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Gate:
    """A job that the gate has judged."""

    job: Job
    verdict: VerdictTable

    @property
    def promoted(self) -> bool:
        return self.job.state == "promoted"


def render(status: Status, health: Mapping[str, Any], versions: Mapping[str, Any], address: str, now: datetime) -> str:
    """The page. `health`, `versions`: as the service gives them; `address`: of this backend, as the caller sees it."""
    details = [row for row in versions.get("details", ()) if isinstance(row, dict)]
    return (
        _environment()
        .get_template("status.html")
        .render(
            status=status,
            health=health,
            live=versions.get("live", health.get("model_version", "?")),
            versions=sorted(details, key=lambda row: row["number"], reverse=True),
            address=address,
            now=now,
            charts=charts(status.curve),
            span=_span(status.curve),
            gate=read_gate(status.last_gate) if status.last_gate else None,
            titles={each.project.key: each.project.title for each in status.projects if each.project.title},
            size=CHART,
            refresh=REFRESH_S,
        )
    )


def render_gate(job: Job, now: datetime) -> str:
    """The page about what the gate said of a job that it has judged, without images."""
    return _environment().get_template("gate.html").render(gate=read_gate(job), now=now)


def read_gate(job: Job) -> Gate:
    """What the gate decided about a job that it has judged."""
    verdict = read_verdict(job.verdict)
    if not verdict.reasons and job.state != "promoted" and job.message:  # better than its parent, and not activated
        verdict = replace(verdict, reasons=(job.message,))
    return Gate(job, verdict)


def charts(points: Sequence[Point]) -> list[Chart]:
    """The curves over time, in SVG units; none where there is nothing to draw."""
    if not points:
        return []
    shares = [
        _curve("right level first", "a", points, [point.level for point in points], 1.0, percent),
        _curve("right label", "b", points, [point.label for point in points], 1.0, percent),
    ]
    found = [Chart(_RIGHT[0], _RIGHT[1], [c for c in shares if c.points], _ticks(1.0, percent))]
    times = [point.seconds for point in points]
    most = _round_up(max((value for value in times if value is not None), default=0.0))
    slow = _curve("median", "a", points, times, most, in_seconds)
    if slow.points:
        found.append(Chart(_TIME[0], _TIME[1], [slow], _ticks(most, in_seconds)))
    return found


_RIGHT = (
    "How often the model is right",
    "Right level first: of the masks taken from a suggestion, those ranked first. "
    "Right label: of those whose outline stayed, those that kept the label offered.",
)
_TIME = (
    "Seconds from click to accept",
    "Median time from the suggestions until the annotator went on; Label Studio does not tell the moment of accepting, "
    "so it is at most this.",
)


def percent(share: float | None) -> str:
    """0.256 -> 26 %."""
    return "–" if share is None else f"{100 * share:.0f} %"


def in_seconds(value: float | None) -> str:
    """Two significant digits."""
    return "–" if value is None else f"{value:.1f} s" if value < 10 else f"{value:.0f} s"


def ago(then: datetime | None, now: datetime) -> str:
    """How long ago, in the largest unit that fits."""
    if then is None:
        return "never"
    seconds = max((now - then).total_seconds(), 0.0)
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        number = int(seconds // size)
        if number:
            return f"{number} {unit}{'s' if number > 1 else ''} ago"
    return "just now"


def _span(points: Sequence[Point]) -> tuple[str, str]:
    """When the curves begin and end, with the time of day where that is needed."""
    if not points:
        return "", ""
    begin, end = points[0].since, points[-1].until
    form = "%d %b %Y, %H:%M" if begin.date() == end.date() else "%d %b %Y"
    return begin.strftime(form), end.strftime(form)


def _curve(
    name: str,
    colour: str,
    points: Sequence[Point],
    values: Sequence[float | None],
    most: float,
    in_words: Callable[[float], str],
) -> Curve:
    """most: the value at the top of the chart."""
    width, height = CHART
    step = width / max(len(points) - 1, 1)
    known = [(k, value) for k, value in enumerate(values) if value is not None]
    drawn = [
        (
            width / 2 if len(points) == 1 else k * step,
            height * (1 - value / most) if most else float(height),
            f"{name} {in_words(value)}: {points[k].masks} masks until {points[k].until:%d %b %Y, %H:%M}",
        )
        for k, value in known
    ]
    return Curve(name, colour, drawn, in_words(known[-1][1]) if known else "")


def _ticks(most: float, in_words: Callable[[float], str]) -> list[tuple[float, str]]:
    return [(CHART[1] * (1 - share), in_words(most * share)) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]


def _round_up(value: float) -> float:
    """The next 1, 2, 4 or 8 times a power of ten: quarters of it have few digits."""
    size = 1.0
    while size < value:
        size *= 10
    while size > max(value, 1.0) * 10:
        size /= 10
    return next((size * part for part in (0.1, 0.2, 0.4, 0.8) if size * part >= value), size)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = page_environment(Path(__file__).parent)
    environment.filters |= {"percent": percent, "in_seconds": in_seconds, "ago": ago}
    return environment
