"""What synthetic scenes show: named objects, their parts and the parts of those, as outlines in unit squares."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SceneObject:
    """A named shape with a place, x0, y0, x1, y1, in the unit square of what it is part of; y runs down."""

    name: str
    shape: str
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    parts: tuple[SceneObject, ...] = ()


def _circle(count: int) -> list[tuple[float, float]]:
    turns = 2 * np.pi * np.arange(count) / count
    return [(0.5 + 0.5 * float(np.cos(turn)), 0.5 + 0.5 * float(np.sin(turn))) for turn in turns]


#: Outlines in the unit square.
SHAPES: dict[str, list[tuple[float, float]]] = {
    "rectangle": [(0, 0), (1, 0), (1, 1), (0, 1)],
    "ellipse": _circle(40),
    "triangle": [(0.5, 0), (1, 1), (0, 1)],
    "gable": [(0.5, 0), (1, 0.4), (1, 1), (0, 1), (0, 0.4)],
    "saloon": [(0.0, 0.85), (0.0, 0.5), (0.2, 0.4), (0.35, 0.05), (0.75, 0.05), (0.9, 0.42), (1, 0.55), (1, 0.85)],
    "cup": [(0, 0), (1, 0), (0.85, 1), (0.15, 1)],
    "fish": [
        (0, 0.5),
        (0.2, 0.12),
        (0.5, 0.05),
        (0.75, 0.4),
        (1, 0.05),
        (1, 0.95),
        (0.75, 0.6),
        (0.5, 0.95),
        (0.2, 0.9),
    ],
    "fan": [(0, 0.5), (1, 0), (1, 1)],
    "tree": [
        (0.6, 1),
        (0.4, 1),
        (0.4, 0.6),
        (0.1, 0.55),
        (0, 0.3),
        (0.2, 0.08),
        (0.5, 0),
        (0.8, 0.08),
        (1, 0.3),
        (0.9, 0.55),
        (0.6, 0.6),
    ],
}

_PANES = (
    SceneObject("pane", "rectangle", (0.1, 0.1, 0.45, 0.9)),
    SceneObject("pane", "rectangle", (0.55, 0.1, 0.9, 0.9)),
)
_TYRE = (SceneObject("hub cap", "ellipse", (0.25, 0.25, 0.75, 0.75)),)
_APPLES = (
    SceneObject("apple", "ellipse", (0.2, 0.3, 0.36, 0.56)),
    SceneObject("apple", "ellipse", (0.6, 0.5, 0.76, 0.76)),
)
_IRIS = (SceneObject("pupil", "ellipse", (0.25, 0.25, 0.75, 0.75)),)

OBJECTS: tuple[SceneObject, ...] = (
    SceneObject(
        "house",
        "gable",
        parts=(
            SceneObject("roof", "triangle", (0, 0, 1, 0.4)),
            SceneObject(
                "door",
                "rectangle",
                (0.4, 0.62, 0.6, 1),
                (SceneObject("door handle", "ellipse", (0.68, 0.42, 0.92, 0.56)),),
            ),
            SceneObject("window", "rectangle", (0.08, 0.5, 0.32, 0.75), _PANES),
            SceneObject("window", "rectangle", (0.68, 0.5, 0.92, 0.75), _PANES),
        ),
    ),
    SceneObject(
        "car",
        "saloon",
        parts=(
            SceneObject("wheel", "ellipse", (0.1, 0.55, 0.32, 1), _TYRE),
            SceneObject("wheel", "ellipse", (0.68, 0.55, 0.9, 1), _TYRE),
            SceneObject(
                "car door",
                "rectangle",
                (0.36, 0.1, 0.64, 0.8),
                (
                    SceneObject("car window", "rectangle", (0.1, 0.08, 0.9, 0.45)),
                    SceneObject("door handle", "rectangle", (0.62, 0.55, 0.9, 0.65)),
                ),
            ),
            SceneObject("headlight", "ellipse", (0.9, 0.52, 0.99, 0.68)),
        ),
    ),
    SceneObject(
        "fish",
        "fish",
        parts=(
            SceneObject("tail", "fan", (0.72, 0, 1, 1)),
            SceneObject("fin", "triangle", (0.35, 0.4, 0.6, 0.75)),
            SceneObject("eye", "ellipse", (0.1, 0.28, 0.24, 0.5), _IRIS),
        ),
    ),
    SceneObject(
        "tree",
        "tree",
        parts=(
            SceneObject("crown", "rectangle", (0, 0, 1, 0.6), _APPLES),
            SceneObject(
                "trunk", "rectangle", (0.38, 0.6, 0.62, 1), (SceneObject("knothole", "ellipse", (0.3, 0.3, 0.7, 0.55)),)
            ),
        ),
    ),
    SceneObject(
        "robot",
        "rectangle",
        parts=(
            SceneObject(
                "head",
                "rectangle",
                (0.15, 0.03, 0.85, 0.38),
                (
                    SceneObject("eye", "ellipse", (0.12, 0.2, 0.42, 0.7), _IRIS),
                    SceneObject("eye", "ellipse", (0.58, 0.2, 0.88, 0.7), _IRIS),
                ),
            ),
            SceneObject(
                "control panel",
                "rectangle",
                (0.12, 0.45, 0.88, 0.95),
                (
                    SceneObject("button", "ellipse", (0.1, 0.15, 0.35, 0.5)),
                    SceneObject("button", "ellipse", (0.4, 0.15, 0.65, 0.5)),
                    SceneObject("screen", "rectangle", (0.1, 0.6, 0.9, 0.9)),
                ),
            ),
        ),
    ),
    SceneObject(
        "flower",
        "ellipse",
        parts=(
            *(
                SceneObject("petal", "ellipse", (x - 0.19, y - 0.19, x + 0.19, y + 0.19))
                for x, y in ((0.5, 0.2), (0.8, 0.42), (0.68, 0.78), (0.32, 0.78), (0.2, 0.42))
            ),
            SceneObject(
                "flower head",
                "ellipse",
                (0.34, 0.34, 0.66, 0.66),
                (SceneObject("seed", "ellipse", (0.35, 0.35, 0.65, 0.65)),),
            ),
        ),
    ),
    SceneObject(
        "cup",
        "cup",
        parts=(
            SceneObject("rim", "rectangle", (0, 0, 1, 0.14)),
            SceneObject(
                "label", "ellipse", (0.28, 0.32, 0.72, 0.8), (SceneObject("logo", "triangle", (0.3, 0.25, 0.7, 0.7)),)
            ),
        ),
    ),
)
