"""What `make soak` found: lines in out/soak/report.txt, and memory over time as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Report:
    """Lines by test, written when all tests have ended. folder: None for the short form, of which nothing is kept."""

    folder: Path | None
    lines: list[str] = field(default_factory=list)

    def note(self, test: str, line: str) -> None:
        self.lines.append(f"{test}: {line}")
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "report.txt").write_text("\n".join(self.lines) + "\n")

    def plot(self, name: str, title: str, points: Sequence[tuple[float, float]]) -> None:
        """Seconds and megabytes as an SVG."""
        if self.folder is not None and points:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / f"{name}.svg").write_text(line_chart(title, points))


def line_chart(title: str, points: Sequence[tuple[float, float]], size: tuple[int, int] = (720, 260)) -> str:
    """An SVG of megabytes over seconds, both from 0."""
    width, height = size
    left, bottom, top = 60, 40, 30
    last, most = max(x for x, _ in points) or 1, 1.1 * max(y for _, y in points)

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (width - left - 10) * x / last, height - bottom - (height - bottom - top) * y / most

    way = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in points))
    marks = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        x, y = at(last * share, most * share)
        marks.append(f'<text x="{x:.0f}" y="{height - 22}" text-anchor="middle">{last * share:.0f} s</text>')
        marks.append(f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end">{most * share:.0f} MB</text>')
        marks.append(f'<line x1="{left}" x2="{width - 10}" y1="{y:.0f}" y2="{y:.0f}" stroke="#ddd"/>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        f'font-size="11"><rect width="100%" height="100%" fill="white"/><text x="{left}" y="18">{title}</text>'
        f'{"".join(marks)}<polyline points="{way}" fill="none" stroke="#0a66c2" stroke-width="1.5"/></svg>\n'
    )
