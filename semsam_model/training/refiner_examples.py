"""Examples for the refiner: a mask to be corrected, what was wanted, the clicks so far, all cut to one square."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from semsam_model.data.mixture import Mixture
from semsam_model.errors import DataError
from semsam_model.masks.clicker import innermost, near_middle, next_click
from semsam_model.network.merge import merge
from semsam_model.network.refiner import MOST_LOGIT, SIDE
from semsam_model.network.refiner_frame import OUTSIDE, Square
from semsam_model.training.refiner_answers import LEAST_AREA, Answers, read_answers
from semsam_model.types import Click

ANSWERED = 0.5  #: share of examples that correct an answer of the network; the others correct a made mask
#: How often an answer is the one ranked first, any other that holds the click, the best one.
STARTS = (0.55, 0.3, 0.15)
#: How often a made mask is that of the whole or of a part, if there is one; a piece of what was wanted; the others are
#: what was wanted with blobs added and taken away.
RELATED, CUT = 0.3, 0.35
ROOMS = (1.25, 1.8)  #: how much larger than mask and clicks the square is, from and to
TRIES = 20  #: draws until one leaves something to correct
TURNED, UPSIDE_DOWN = 0.15, 0.1  #: shares of examples

#: photo uint8 (H, W, 3), wanted bool (H, W), logits float32 (H, W) of the mask to be corrected, the first click
_Drawn = tuple[np.ndarray, np.ndarray, np.ndarray, Click]


@dataclass(frozen=True, eq=False)
class Example:
    """In pixels of the crop."""

    rgb: np.ndarray  #: float32 (SIDE, SIDE, 3), 0..255; NaN outside the photo
    wanted: np.ndarray  #: bool (SIDE, SIDE)
    logits: np.ndarray  #: float32 (SIDE, SIDE), of the mask to be corrected
    clicks: tuple[Click, ...]  #: the newest last, which is where the mask is wrong

    def corrected(self, after: np.ndarray) -> Example:
        """The next example: the merged answer `after`, float32 (SIDE, SIDE), and a click where it is wrong.

        Where nothing is wrong, the clicks stay as they are.
        """
        merged = merge(self.logits, after, self.clicks)
        click = next_click(self.wanted, merged > 0, [c for c in self.clicks if _shown(c)])
        return replace(self, logits=merged, clicks=self.clicks if click is None else (*self.clicks, click))


@dataclass(frozen=True, eq=False)
class Material:
    """What examples are drawn from: answers of the network, and any annotated photo."""

    answers: Sequence[Path]  #: files of `collect_answers`
    mixture: Mixture

    def draw(self, rng: np.random.Generator) -> Example:
        """Raises DataError when nothing that can be corrected was found in many tries."""
        problem = "every mask was right"
        for _ in range(TRIES):
            try:
                drawn = self._answered(rng) if rng.random() < ANSWERED else self._made(rng)
            except DataError as error:
                problem = str(error)
            else:
                if drawn is not None and (example := _example(*drawn, rng)) is not None:
                    return example
        raise DataError(f"refiner: expected masks that can be corrected, found none in {TRIES} draws: {problem}")

    def _answered(self, rng: np.random.Generator) -> _Drawn:
        answers = read_answers(self.answers[int(rng.integers(len(self.answers)))])
        at = int(rng.integers(len(answers.masks)))
        return answers.photo, answers.masks[at], _answer(answers, at, rng), answers.clicks[at]

    def _made(self, rng: np.random.Generator) -> _Drawn | None:
        shares = np.array([self.mixture.shares[name] for name in self.mixture.datasets])
        name = list(self.mixture.datasets)[int(rng.choice(len(shares), p=shares / shares.sum()))]
        samples = self.mixture.datasets[name].samples
        sample = samples[int(rng.integers(len(samples)))]
        at = int(rng.integers(len(sample.regions)))
        wanted = sample.mask(at)
        if sample.regions[at].box_only or not sample.supervision.iou or wanted.mean() < LEAST_AREA:
            return None
        click = near_middle(wanted, rng) if rng.random() < 0.5 else innermost(wanted)
        family = [i for i, r in enumerate(sample.regions) if r.parent == at or i == sample.regions[at].parent]
        kind = rng.random()
        if family and kind < RELATED:
            logits = _blurred(sample.mask(int(rng.choice(family))), rng)
        elif kind < RELATED + CUT:
            logits = _cut(wanted, click, rng)
        else:
            logits = _corrupted(wanted, rng)
        return sample.image(), wanted, logits, click


def _example(
    photo: np.ndarray, wanted: np.ndarray, logits: np.ndarray, first: Click, rng: np.random.Generator
) -> Example | None:
    photo, wanted, logits, first = _turned(photo, wanted, logits, first, rng)
    newest = next_click(wanted, logits > 0, (first,))
    if newest is None:
        return None
    clicks = first, newest
    square = Square.around(logits > 0, clicks, float(rng.uniform(*ROOMS)))
    rgb = _jittered(square.crop(photo, np.nan), rng)
    target = square.crop(wanted.astype(np.float32), 0) > 0.5
    return Example(rgb, target, square.crop(logits, OUTSIDE), tuple(square.click(c) for c in clicks))


def _answer(answers: Answers, at: int, rng: np.random.Generator) -> np.ndarray:
    """float32 (H, W): logits of one proposal for a click."""
    wanted, click = answers.masks[at], answers.clicks[at]
    kind = int(rng.choice(len(STARTS), p=STARTS))
    if kind == 0:
        return answers.start(at, 0)
    if kind == 1:
        for other in rng.permutation(answers.logits.shape[1]):
            logits = answers.start(at, int(other))
            if logits[int(click.y), int(click.x)] > 0:
                return logits
        return answers.start(at, 0)
    small = answers.logits[at]
    cells = cv2.resize(wanted.astype(np.float32), small.shape[:0:-1], interpolation=cv2.INTER_AREA) > 0.5
    shared = (cells & (small > 0)).sum((1, 2)) / np.maximum(1, (cells | (small > 0)).sum((1, 2)))
    return answers.start(at, int(shared.argmax()))


def _cut(wanted: np.ndarray, click: Click, rng: np.random.Generator) -> np.ndarray:
    """What was wanted on the click's side of a line, or near the click: float32 (H, W) logits."""
    rows, columns = (axis + 0.5 for axis in np.ogrid[: wanted.shape[0], : wanted.shape[1]])
    size = float(np.sqrt(wanted.sum()))
    reach = size * float(rng.uniform(0.1, 0.6))
    if rng.random() < 0.5:
        near = np.hypot(rows - click.y, columns - click.x) < reach
    else:
        angle = float(rng.uniform(0, 2 * np.pi))
        near = (rows - click.y) * np.sin(angle) + (columns - click.x) * np.cos(angle) < reach / 2
    return _blurred(wanted & near, rng)


def _corrupted(wanted: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What was wanted, blobs added along its border and taken away, then blurred: float32 (H, W) logits."""
    mask = wanted.astype(np.uint8)
    size = float(np.sqrt(mask.sum()))
    border = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    rows, columns = np.nonzero(border if border.any() else mask)  # a mask of the whole photo has no border
    for _ in range(int(rng.integers(1, 6))):
        place = int(rng.integers(len(rows)))
        axes = tuple(max(1, int(size * r)) for r in rng.uniform(0.05, 0.4, 2))
        centre = int(columns[place]), int(rows[place])
        cv2.ellipse(mask, centre, axes, float(rng.uniform(0, 180)), 0, 360, int(rng.integers(2)), cv2.FILLED)
    return _blurred(mask, rng)


def _blurred(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Logits of a mask as soft as those of a network: float32 (H, W)."""
    width = max(0.5, float(np.sqrt(np.count_nonzero(mask))) * float(rng.uniform(0.005, 0.03)))
    blurred = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), width)
    result: np.ndarray = (2 * blurred - 1) * float(rng.uniform(2, 2 * MOST_LOGIT))
    return result


def _turned(
    photo: np.ndarray, wanted: np.ndarray, logits: np.ndarray, click: Click, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Click]:
    """All of them mirrored half of the time, seldom turned by a right angle or upside down."""
    x, y = click.x, click.y
    planes = [photo, wanted, logits]
    if rng.random() < 0.5:
        planes, x = [p[:, ::-1] for p in planes], wanted.shape[1] - x
    if rng.random() < UPSIDE_DOWN:
        planes, y = [p[::-1] for p in planes], wanted.shape[0] - y
    if rng.random() < TURNED:
        planes, x, y = [p.swapaxes(0, 1) for p in planes], y, x
    return planes[0], np.ascontiguousarray(planes[1]), np.ascontiguousarray(planes[2]), Click(x, y, click.positive)


def _jittered(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast and colour changed; seldom grey, seldom blurred."""
    out = rgb * float(rng.uniform(0.75, 1.25)) + float(rng.uniform(-20, 20))
    grey = out.mean(2, keepdims=True)
    out = grey + (out - grey) * (0.0 if rng.random() < 0.05 else float(rng.uniform(0.6, 1.3)))
    out *= rng.uniform(0.93, 1.07, 3)
    clipped: np.ndarray = np.clip(out, 0, 255).astype(np.float32)
    return clipped


def _shown(click: Click) -> bool:
    return 0 <= click.x < SIDE and 0 <= click.y < SIDE
