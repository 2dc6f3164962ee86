"""Synthetic scenes: objects of parts of subparts, with names. For tests, and to mix into training.

Every pixel belongs to the object or part that was painted last on it, and a mask is all pixels of an object or part and
of its own parts. So two masks of a scene are nested or disjoint, a part lies in its whole to the pixel, and what is
hidden is missing from the masks of all that it is part of. The same seed and number give the same scene.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import cv2
import numpy as np

from semsam_model.data.folder import write_samples
from semsam_model.data.lazy_samples import LazySamples
from semsam_model.data.samples import FULL_SUPERVISION, Annotation, CocoMask, Region, Sample, Supervision
from semsam_model.data.scene_objects import SHAPES, SceneObject, scene_objects
from semsam_model.masks.geometry import Size

#: Smaller masks are left to what encloses them, pixels.
SMALLEST_MASK = 16
_SUBPIXEL = 4  #: bits of fraction that outlines are drawn with


@dataclass(frozen=True, eq=False)
class Scene:
    """A drawn scene; arrays are read-only."""

    image: np.ndarray  #: uint8 RGB (H, W, 3)
    masks: np.ndarray  #: bool (n, H, W), none under SMALLEST_MASK; wholes come before their parts
    names: tuple[str, ...]
    parents: tuple[int | None, ...]


@lru_cache(maxsize=4)  # photo and annotation of a sample are asked for one after another
def draw_scene(seed: int, index: int, size: Size = (256, 256)) -> Scene:
    """Scene number `index` of a seed, (H, W) pixels: one to four objects on a plain or patterned ground."""
    rng = np.random.default_rng([seed, index])
    canvas, objects = _Canvas(size, rng), scene_objects()
    for _ in range(int(rng.integers(1, 5))):
        canvas.paint(objects[int(rng.integers(len(objects)))], _place(size, rng), None)
    return canvas.scene()


def _place(size: Size, rng: np.random.Generator) -> np.ndarray:
    """Where an object's unit square lies: float (2, 3), unit -> pixels, turned, sheared, perhaps mirrored."""
    height, width = size
    side = rng.uniform(0.3, 0.85) * min(size)
    across, down = side * rng.uniform(0.75, 1.25), side * rng.uniform(0.75, 1.25)
    turn, shear = rng.normal(0, 0.2), rng.normal(0, 0.08)
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = turned @ np.array([[across * rng.choice([-1, 1]), shear * down], [0, down]])
    centre = np.array([rng.uniform(0.15, 0.85) * width, rng.uniform(0.2, 0.8) * height])
    return np.column_stack([matrix, centre - matrix @ (0.5, 0.5)])


class _Canvas:
    """A scene being painted: colours, and for every pixel the number of the object or part it belongs to, 0: ground."""

    def __init__(self, size: Size, rng: np.random.Generator) -> None:
        self.size, self.rng = size, rng
        self.owner = np.zeros(size, np.int32)
        self.names, self.parents = ["ground"], [0]
        self.colours = self._texture(rng.uniform(40, 215, 3))

    def paint(self, thing: SceneObject, frame: np.ndarray, within: int | None) -> None:
        """Paint an object and its parts. frame: its unit square -> pixels. within: number of what it is part of."""
        jitter = self.rng.normal(0, 0.012, (len(SHAPES[thing.shape]), 2))
        outline = (SHAPES[thing.shape] + jitter) @ frame[:, :2].T + frame[:, 2]
        drawn = np.zeros(self.size, np.uint8)
        cv2.fillPoly(drawn, [np.round(outline * 2**_SUBPIXEL).astype(np.int32)], 1, shift=_SUBPIXEL)
        covers = drawn > 0
        if within is not None:
            covers &= self._mask(within)
        number = len(self.names)
        self.names.append(thing.name)
        self.parents.append(within or 0)
        self.owner[covers] = number
        texture = self._texture(self.rng.uniform(10, 245, 3))
        self.colours[covers] = texture[covers]
        if self.rng.random() < 0.5:
            edge = covers & (cv2.erode(covers.astype(np.uint8), np.ones((3, 3), np.uint8)) == 0)
            self.colours[edge] *= 0.55
        for part in thing.parts:
            x0, y0, x1, y1 = np.array(part.box) + self.rng.normal(0, 0.01, 4)
            inner = np.array([[x1 - x0, 0, x0], [0, y1 - y0, y0], [0, 0, 1]])
            self.paint(part, frame @ inner, number)

    def scene(self) -> Scene:
        masks = {number: self._mask(number) for number in range(1, len(self.names))}
        kept: list[int] = []
        for number, mask in masks.items():
            area, above = int(mask.sum()), self.parents[number]
            # Where the part covers all of its whole, their masks would be the same.
            if area >= SMALLEST_MASK and (above == 0 or (above in kept and area < int(masks[above].sum()))):
                kept.append(number)
        place = {number: index for index, number in enumerate(kept)}
        noisy = cv2.GaussianBlur(self.colours, (0, 0), float(self.rng.uniform(0.3, 0.9)))
        noisy = noisy + self.rng.normal(0, self.rng.uniform(1, 8), noisy.shape)
        image = np.clip(np.round(noisy), 0, 255).astype(np.uint8)
        stacked = np.stack([masks[number] for number in kept]) if kept else np.zeros((0, *self.size), bool)
        image.flags.writeable = stacked.flags.writeable = False
        parents = tuple(place.get(self.parents[number]) for number in kept)
        return Scene(image, stacked, tuple(self.names[number] for number in kept), parents)

    def _mask(self, number: int) -> np.ndarray:
        """Pixels of an object or part and of all its parts."""
        inside = np.zeros(len(self.names), bool)
        for each in range(number, len(self.names)):
            inside[each] = each == number or inside[self.parents[each]]
        return inside[self.owner]

    def _texture(self, colour: np.ndarray) -> np.ndarray:
        """float32 (H, W, 3): a colour with a soft shade and, by chance, stripes or blotches."""
        height, width = self.size
        y, x = np.mgrid[:height, :width].astype(np.float32)
        slope = self.rng.normal(0, 30, 2)
        shade = slope[0] * (x / width - 0.5) + slope[1] * (y / height - 0.5)
        kind = self.rng.integers(3)
        if kind == 1:
            turn, wave = self.rng.uniform(0, np.pi), self.rng.uniform(4, 18)
            shade += 22 * np.sign(np.sin((np.cos(turn) * x + np.sin(turn) * y) * 2 * np.pi / wave))
        elif kind == 2:
            coarse = self.rng.normal(0, 26, (max(2, height // 9), max(2, width // 9))).astype(np.float32)
            shade += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        return (colour + shade[..., None]).astype(np.float32)


def synthetic_samples(
    count: int,
    *,
    seed: int = 0,
    size: Size = (256, 256),
    source: str = "synthetic",
    supervision: Supervision = FULL_SUPERVISION,
) -> LazySamples:
    """`count` scenes as samples, drawn when asked for. Wholes are objects, what they consist of is parts."""
    return LazySamples(count, partial(_sample, seed, size, source, supervision))


def write_scenes(
    directory: Path, count: int, *, seed: int = 0, size: Size = (256, 256), source: str = "synthetic"
) -> Path:
    """Write `count` scenes as DIR/SOURCE.json and photos; returns the JSON file. `read_samples(DIR)` reads them."""
    return write_samples(synthetic_samples(count, seed=seed, size=size, source=source), directory, source)


@dataclass(frozen=True)
class ScenePhoto:
    """Pixels of a synthetic scene."""

    seed: int
    index: int
    size: Size

    @property
    def path(self) -> Path:
        return Path(self.name)

    @property
    def name(self) -> str:
        return f"scene_{self.seed}_{self.index}.png"

    def pixels(self) -> np.ndarray:
        return draw_scene(self.seed, self.index, self.size).image


def _sample(seed: int, size: Size, source: str, supervision: Supervision, index: int) -> Sample:
    return Sample(ScenePhoto(seed, index, size), source, partial(_annotation, seed, index, size), supervision)


def _annotation(seed: int, index: int, size: Size) -> Annotation:
    scene = draw_scene(seed, index, size)
    regions = tuple(
        Region(CocoMask.of(mask), "object" if parent is None else "part", name, parent)
        for mask, name, parent in zip(scene.masks, scene.names, scene.parents, strict=True)
    )
    return Annotation(size[1], size[0], regions)
