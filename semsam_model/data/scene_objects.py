"""What synthetic scenes show: named objects, their parts and the parts of those, as outlines in unit squares."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np


@dataclass(frozen=True)
class SceneObject:
    """A named shape with a place, x0, y0, x1, y1, in the unit square of what it is part of; y runs down."""

    name: str
    shape: str
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    parts: tuple[SceneObject, ...] = ()


def _circle(count: int) -> np.ndarray:
    turns = 2 * np.pi * np.arange(count) / count
    return 0.5 + 0.5 * np.column_stack([np.cos(turns), np.sin(turns)])


def _outline(points: str) -> np.ndarray:
    return np.array([point.split() for point in points.split(", ")], float)


#: Outlines in the unit square, float (n, 2): "x y, x y, ..."
SHAPES = {
    "rectangle": _outline("0 0, 1 0, 1 1, 0 1"),
    "ellipse": _circle(40),
    "triangle": _outline("0.5 0, 1 1, 0 1"),
    "gable": _outline("0.5 0, 1 0.4, 1 1, 0 1, 0 0.4"),
    "saloon": _outline("0 0.85, 0 0.5, 0.2 0.4, 0.35 0.05, 0.75 0.05, 0.9 0.42, 1 0.55, 1 0.85"),
    "cup": _outline("0 0, 1 0, 0.85 1, 0.15 1"),
    "fish": _outline("0 0.5, 0.2 0.12, 0.5 0.05, 0.75 0.4, 1 0.05, 1 0.95, 0.75 0.6, 0.5 0.95, 0.2 0.9"),
    "fan": _outline("0 0.5, 1 0, 1 1"),
    "tree": _outline("0.6 1, 0.4 1, 0.4 0.6, 0.1 0.55, 0 0.3, 0.2 0.08, 0.5 0, 0.8 0.08, 1 0.3, 0.9 0.55, 0.6 0.6"),
}

#: Lines "name: shape x0 y0 x1 y1". Parts are indented, with their place in the unit square of what they are part of;
#: an object of its own fills its square.
_TREE = """
house: gable
    roof: triangle 0 0 1 0.4
    door: rectangle 0.4 0.62 0.6 1
        door handle: ellipse 0.68 0.42 0.92 0.56
    window: rectangle 0.08 0.5 0.32 0.75
        pane: rectangle 0.1 0.1 0.45 0.9
        pane: rectangle 0.55 0.1 0.9 0.9
    window: rectangle 0.68 0.5 0.92 0.75
        pane: rectangle 0.1 0.1 0.45 0.9
        pane: rectangle 0.55 0.1 0.9 0.9
car: saloon
    wheel: ellipse 0.1 0.55 0.32 1
        hub cap: ellipse 0.25 0.25 0.75 0.75
    wheel: ellipse 0.68 0.55 0.9 1
        hub cap: ellipse 0.25 0.25 0.75 0.75
    car door: rectangle 0.36 0.1 0.64 0.8
        car window: rectangle 0.1 0.08 0.9 0.45
        door handle: rectangle 0.62 0.55 0.9 0.65
    headlight: ellipse 0.9 0.52 0.99 0.68
fish: fish
    tail: fan 0.72 0 1 1
    fin: triangle 0.35 0.4 0.6 0.75
    eye: ellipse 0.1 0.28 0.24 0.5
        pupil: ellipse 0.25 0.25 0.75 0.75
tree: tree
    crown: rectangle 0 0 1 0.6
        apple: ellipse 0.2 0.3 0.36 0.56
        apple: ellipse 0.6 0.5 0.76 0.76
    trunk: rectangle 0.38 0.6 0.62 1
        knothole: ellipse 0.3 0.3 0.7 0.55
robot: rectangle
    head: rectangle 0.15 0.03 0.85 0.38
        eye: ellipse 0.12 0.2 0.42 0.7
            pupil: ellipse 0.25 0.25 0.75 0.75
        eye: ellipse 0.58 0.2 0.88 0.7
            pupil: ellipse 0.25 0.25 0.75 0.75
    control panel: rectangle 0.12 0.45 0.88 0.95
        button: ellipse 0.1 0.15 0.35 0.5
        button: ellipse 0.4 0.15 0.65 0.5
        screen: rectangle 0.1 0.6 0.9 0.9
flower: ellipse
    petal: ellipse 0.31 0.01 0.69 0.39
    petal: ellipse 0.61 0.23 0.99 0.61
    petal: ellipse 0.49 0.59 0.87 0.97
    petal: ellipse 0.13 0.59 0.51 0.97
    petal: ellipse 0.01 0.23 0.39 0.61
    flower head: ellipse 0.34 0.34 0.66 0.66
        seed: ellipse 0.35 0.35 0.65 0.65
cup: cup
    rim: rectangle 0 0 1 0.14
    label: ellipse 0.28 0.32 0.72 0.8
        logo: triangle 0.3 0.25 0.7 0.7
"""


@cache
def scene_objects() -> tuple[SceneObject, ...]:
    """Every object that a scene may show."""
    return _parse(_TREE.strip().splitlines())


def _parse(lines: list[str]) -> tuple[SceneObject, ...]:
    """The objects of a block of lines, with what is indented under each as its parts."""
    starts = [number for number, line in enumerate(lines) if not line.startswith(" ")]
    found = []
    for start, end in zip(starts, [*starts, len(lines)][1:], strict=True):
        name, _, described = lines[start].partition(": ")
        shape, *box = described.split()
        x0, y0, x1, y1 = map(float, box or (0, 0, 1, 1))
        parts = _parse([line.removeprefix("    ") for line in lines[start + 1 : end]])
        found.append(SceneObject(name, shape, (x0, y0, x1, y1), parts))
    return tuple(found)
