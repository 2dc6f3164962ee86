"""SAM, SAM-HQ, SAM 2, EdgeTAM and the tracker of SAM 3, as the `transformers` package has them.

    transformers:FOLDER_OR_HUB_NAME        weights, config.json and preprocessor_config.json

One click gives the network's three masks and a fourth, smaller one: the answer to the click inside half of the smallest
mask's box. Further clicks correct: the network sees the mask so far with all clicks made, as its own demos do. Weights
are the user's; nothing is fetched for a folder, a hub name is fetched by huggingface_hub into its cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semsam_model.engines.hub import read_published
from semsam_model.engines.opened import OpenedEngine
from semsam_model.engines.photo import Preprocessing
from semsam_model.inference.candidates import Proposal
from semsam_model.masks.geometry import tight_bbox
from semsam_model.network.frame import LOGIT_STRIDE, Frame, Window
from semsam_model.types import Box, Click, Prompt

#: `model_type` of a config.json -> the class that answers prompts on photos. Published weights of the video models hold
#: those of photos too.
CLASSES = {
    "sam": "SamModel",
    "sam_hq": "SamHQModel",
    "sam2": "Sam2Model",
    "sam2_video": "Sam2Model",
    "edgetam": "EdgeTamModel",
    "edgetam_video": "EdgeTamModel",
    "sam3_tracker": "Sam3TrackerModel",
    "sam3_tracker_video": "Sam3TrackerModel",
    "sam3_video": "Sam3TrackerModel",
}
SMALLER = 0.5  #: side of the box that asks for a smaller mask, share of the smallest mask's
BOUND = 32.0  #: logits of the previous mask are cut at it, as SAM 2 was trained


@dataclass(frozen=True, eq=False)
class SamEmbedding:
    """The image encoder's maps of one photo, or of a window of it."""

    frame: Frame  #: of the mask logits; `frame.resized` is four times their number, whatever the network looks at
    scale: tuple[float, float]  #: pixels of the input a photo pixel, x and y
    maps: Any  #: a tensor, or a list of them, as the network takes them back
    intermediate: Any = None  #: SAM-HQ's further maps

    @property
    def nbytes(self) -> int:
        every = [*_flat(self.maps), *_flat(self.intermediate)]
        return sum(tensor.numel() * tensor.element_size() for tensor in every)


class TransformersSam:
    """A model of CLASSES as `inference.engine.MaskEngine`."""

    zoom = 0.0  #: its input is large already, and a look at a window costs as much as one at the photo
    corrects = True

    def __init__(self, model: Any, preprocessing: Preprocessing) -> None:
        """model: in eval mode, on its device."""
        self._model = model
        self._preprocessing = preprocessing
        prompts = model.config.prompt_encoder_config
        self._side = _side(prompts.image_size)
        self._cells = 4 * (self._side // _side(prompts.patch_size))  # along each side of the mask logits

    @torch.inference_mode()
    def encode(self, rgb: np.ndarray, window: Window | None = None) -> SamEmbedding:
        """uint8 RGB (H, W, 3). Raises ImageError."""
        photo = rgb.shape[0], rgb.shape[1]
        shown: Window = window or (0, 0, photo[1], photo[0])
        height, width = self._preprocessing.size((shown[3] - shown[1], shown[2] - shown[0]))
        pixels = self._preprocessing.pixels(rgb, shown, self._side).to(self._model.device, self._model.dtype)
        maps = self._model.get_image_embeddings(pixels)
        intermediate = None
        if isinstance(maps, tuple):  # SAM-HQ
            maps, intermediate = maps
        cells = LOGIT_STRIDE * self._cells
        resized = tuple(max(1, round(side * cells / self._side)) for side in (height, width))
        frame = Frame(photo, (resized[0], resized[1]), (cells, cells), shown)
        scale = width / frame.shown[1], height / frame.shown[0]
        return SamEmbedding(frame, scale, maps, intermediate)

    def propose(self, embedding: SamEmbedding, prompts: Sequence[Prompt]) -> Iterator[list[Proposal]]:
        """The corrected mask, if there are further clicks; three masks a box, or of all clicks; and a smaller one."""
        for prompt in prompts:
            boxes = [embedding.frame.clip(box) for box in prompt.boxes]
            alone: list[Box | None] = [*boxes] or [None]
            answers = [self._ask(embedding, prompt.clicks, box) for box in alone]
            found = self._corrected(embedding, prompt, boxes)
            found += [mask for answer in answers for mask in answer]
            if len(prompt.clicks) == 1 and not boxes:
                found += self._smaller(embedding, prompt.clicks, found)
            yield [
                Proposal.of_mask(embedding.frame, _unpadded(mask.logits, embedding.frame), token, mask.quality)
                for token, mask in enumerate(found)
            ]

    def _smaller(self, embedding: SamEmbedding, clicks: Sequence[Click], found: Sequence[_Answer]) -> list[_Answer]:
        """The answer to the click in a box around it, half as large as that of the smallest mask that holds it."""
        frame, (click,) = embedding.frame, clicks
        masks = [_unpadded(mask.logits, frame) > 0 for mask in found]
        held = [mask for mask in masks if mask[frame.cell_of(click.x, click.y)]]
        if not held:
            return []
        x0, y0, x1, y1 = tight_bbox(min(held, key=np.count_nonzero))
        step_x, step_y = frame.shown[1] / frame.resized[1], frame.shown[0] / frame.resized[0]
        half_w, half_h = (SMALLER / 2 * LOGIT_STRIDE * side for side in ((x1 - x0) * step_x, (y1 - y0) * step_y))
        box = frame.clip(Box(click.x - half_w, click.y - half_h, click.x + half_w, click.y + half_h))
        return self._ask(embedding, clicks, box, several=False)

    def _corrected(self, embedding: SamEmbedding, prompt: Prompt, boxes: Sequence[Box]) -> list[_Answer]:
        """The surest mask of the first box or positive click, corrected by the further clicks in turn."""
        box = boxes[0] if boxes else None
        made = [] if boxes else [prompt.positives[0]]
        further = [click for click in prompt.clicks if not any(click is first for first in made)]
        if not further or len(boxes) > 1:
            return []
        best = max(self._ask(embedding, made, box), key=lambda mask: mask.quality)
        for click in further:
            made.append(click)
            (best,) = self._ask(embedding, made, box, several=False, before=best.logits)
        return [best]

    @torch.inference_mode()
    def _ask(
        self,
        embedding: SamEmbedding,
        clicks: Sequence[Click],
        box: Box | None,
        *,
        several: bool = True,
        before: np.ndarray | None = None,
    ) -> list[_Answer]:
        """The network's masks for one prompt; before: float32 (h, w) logits of the mask so far."""
        device, dtype = self._model.device, self._model.dtype
        given: dict[str, Any] = {"image_embeddings": embedding.maps, "multimask_output": several}
        if embedding.intermediate is not None:
            given["intermediate_embeddings"] = embedding.intermediate
        left, top, _, _ = embedding.frame.window
        scale_x, scale_y = embedding.scale

        def placed(x: float, y: float) -> list[float]:
            return [(x - left) * scale_x, (y - top) * scale_y]

        if clicks:
            points = torch.tensor([placed(c.x, c.y) for c in clicks], dtype=torch.float32)
            labels = torch.tensor([int(c.positive) for c in clicks])
            given |= {
                "input_points": points[None, None].to(device, dtype),
                "input_labels": labels[None, None].to(device),
            }
        if box is not None:
            corners = torch.tensor([*placed(box.x0, box.y0), *placed(box.x1, box.y1)], dtype=torch.float32)
            given["input_boxes"] = corners[None, None].to(device, dtype)
        if before is not None:
            mask = torch.from_numpy(np.clip(before, -BOUND, BOUND))
            given["input_masks"] = mask[None, None].to(device, dtype)
        output = self._model(**given)
        logits = output.pred_masks[0, 0].float().cpu().numpy()
        qualities = output.iou_scores[0, 0].float().cpu().tolist()
        return [_Answer(mask, quality) for mask, quality in zip(logits, qualities, strict=True)]


@dataclass(frozen=True, eq=False)
class _Answer:
    logits: np.ndarray  #: float32 (h, w), padding included
    quality: float


def open_engine(argument: str, device: torch.device, dtype: torch.dtype) -> OpenedEngine:
    """A folder, or the name of a repository on the hub. Raises CheckpointError."""

    def side(model: Any) -> int:
        return _side(model.config.prompt_encoder_config.image_size)

    read = read_published("engine", argument, CLASSES, device, dtype, side)
    return OpenedEngine(TransformersSam(read.model, read.preprocessing), read.version, read.nbytes)


def _side(size: int | Sequence[int]) -> int:
    return size if isinstance(size, int) else int(size[0])


def _flat(maps: Any) -> list[Tensor]:
    return [] if maps is None else [maps] if isinstance(maps, Tensor) else list(maps)


def _unpadded(logits: np.ndarray, frame: Frame) -> np.ndarray:
    height, width = frame.logits
    return np.ascontiguousarray(logits[:height, :width])
