"""OWLv2, Grounding DINO and MM Grounding DINO: boxes of what words name, as `inference.concepts.ConceptModel`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semsam_model.engines.photo import Preprocessing
from semsam_model.inference.concept_model import Found, Query
from semsam_model.network.frame import Window
from semsam_model.types import Box


@dataclass(frozen=True, eq=False)
class DetectorLook:
    """What a detector keeps of one photo, or of a window of it."""

    window: Window
    seen: Tensor  #: maps, or pixels where the network looks at both photo and words at once

    @property
    def nbytes(self) -> int:
        return self.seen.numel() * self.seen.element_size()


class Owlv2Concepts:
    """OWLv2. It looks at a photo once and compares any words with what it saw."""

    least = 0.1
    takes_examples = False

    def __init__(self, model: Any, preprocessing: Preprocessing, tokenizer: Any) -> None:
        """model: in eval mode, on its device."""
        self._model = model
        self._tokenizer = tokenizer
        # it pads a photo to a square first, with black, and resizes then
        self._side = model.config.vision_config.image_size
        self._preprocessing = replace(preprocessing, longest=self._side, stretched=None, black=True)

    @torch.inference_mode()
    def encode(self, rgb: np.ndarray, window: Window | None = None) -> DetectorLook:
        """uint8 RGB (H, W, 3). Raises ImageError."""
        shown: Window = window or (0, 0, rgb.shape[1], rgb.shape[0])
        pixels = self._preprocessing.pixels(rgb, shown, self._side).to(self._model.device, self._model.dtype)
        return DetectorLook(shown, self._model.image_embedder(pixel_values=pixels)[0])

    @torch.inference_mode()
    def find(self, look: DetectorLook, queries: Sequence[Query], least: float) -> list[list[Found]]:
        """Boxes for each text, by its own score: texts do not compete."""
        text = self._tokenizer(
            [query.words for query in queries],
            return_tensors="pt",
            padding="max_length",
            max_length=self._model.config.text_config.max_position_embeddings,
            truncation=True,
        ).to(self._model.device)
        output = self._model.owlv2.get_text_features(text["input_ids"], attention_mask=text["attention_mask"])
        words = output.pooler_output
        words = words / torch.linalg.norm(words, ord=2, dim=-1, keepdim=True)
        seen = look.seen.flatten(1, 2)
        logits, _ = self._model.class_predictor(seen, words[None], torch.ones(1, len(queries), device=seen.device) > 0)
        boxes = self._model.box_predictor(seen, look.seen)[0]
        side = max(look.window[2] - look.window[0], look.window[3] - look.window[1])
        square = look.window[0], look.window[1], look.window[0] + side, look.window[1] + side
        return _above(logits[0].sigmoid(), boxes, least, square, look.window)


class GroundingDinoConcepts:
    """Grounding DINO and MM Grounding DINO. They look at photo and words together, so each list of words is a run."""

    least = 0.25
    takes_examples = False

    def __init__(self, model: Any, preprocessing: Preprocessing, tokenizer: Any) -> None:
        """model: in eval mode, on its device."""
        self._model = model
        self._preprocessing = preprocessing
        self._tokenizer = tokenizer

    def encode(self, rgb: np.ndarray, window: Window | None = None) -> DetectorLook:
        """uint8 RGB (H, W, 3). Raises ImageError."""
        shown: Window = window or (0, 0, rgb.shape[1], rgb.shape[0])
        return DetectorLook(shown, self._preprocessing.pixels(rgb, shown, padded=0))

    def find(self, look: DetectorLook, queries: Sequence[Query], least: float) -> list[list[Found]]:
        """As many texts in one run as the network reads; a text's score is that of its surest token."""
        found: list[list[Found]] = []
        for words in self._runs([query.words for query in queries]):
            found += self._find(look, words, least)
        return found

    def _runs(self, texts: Sequence[str]) -> Iterator[list[str]]:
        run: list[str] = []
        for words in map(_phrase, texts):
            if run and len(self._tokenizer(_sentence([*run, words]))["input_ids"]) > self._model.config.max_text_len:
                yield run
                run = []
            run.append(words)
        if run:
            yield run

    @torch.inference_mode()
    def _find(self, look: DetectorLook, words: Sequence[str], least: float) -> list[list[Found]]:
        device, most = self._model.device, self._model.config.max_text_len
        text = self._tokenizer(
            _sentence(words), return_tensors="pt", return_offsets_mapping=True, truncation=True, max_length=most
        )
        offsets = text.pop("offset_mapping")[0].tolist()
        output = self._model(
            pixel_values=look.seen.to(device, self._model.dtype),
            **{name: each.to(device) for name, each in text.items()},
        )
        tokens = output.logits[0].float().sigmoid()
        scores = []
        for first, last in _spans(words):
            mine = [i for i, (start, end) in enumerate(offsets) if first <= start < end <= last]
            scores.append(tokens[:, mine].max(1).values if mine else tokens.new_zeros(len(tokens)))
        return _above(torch.stack(scores, 1), output.pred_boxes[0], least, look.window, look.window)


def _phrase(words: str) -> str:
    """Words as these networks were taught: in small letters, without the full stop that ends a phrase."""
    return re.sub(r"[\s.?]+", " ", words).strip().lower()


def _sentence(words: Sequence[str]) -> str:
    return ". ".join(words) + "."


def _spans(words: Sequence[str]) -> Iterator[tuple[int, int]]:
    """First and last character of each in `_sentence`."""
    at = 0
    for each in words:
        yield at, at + len(each)
        at += len(each) + 2


def _above(scores: Tensor, boxes: Tensor, least: float, frame: Window, window: Window) -> list[list[Found]]:
    """scores (Q, n), boxes (Q, 4) cx, cy, w, h as shares of `frame` -> for each of n texts what scores enough."""
    centres, halves = boxes.float().cpu()[:, :2], boxes.float().cpu()[:, 2:] / 2
    corners = torch.cat((centres - halves, centres + halves), 1).tolist()
    found = []
    for column in scores.float().cpu().T:
        pairs = [
            (clipped(corners[at], frame, window), float(column[at])) for at in torch.nonzero(column >= least)[:, 0]
        ]
        found.append([Found(box, score) for box, score in pairs if box is not None])
    return found


def clipped(corners: Sequence[float], frame: Window, window: Window) -> Box | None:
    """x0, y0, x1, y1 as shares of `frame` -> the part in the window, photo pixels; None where there is none."""
    left, top, right, bottom = frame
    x0, x1 = (min(max(left + share * (right - left), window[0]), window[2]) for share in corners[::2])
    y0, y1 = (min(max(top + share * (bottom - top), window[1]), window[3]) for share in corners[1::2])
    return Box(x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None
