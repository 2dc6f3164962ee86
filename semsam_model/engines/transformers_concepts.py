"""SAM 3, OWLv2, Grounding DINO and MM Grounding DINO find what words name, as the `transformers` package has them.

    transformers:FOLDER_OR_HUB_NAME        weights, config.json, preprocessor_config.json and the tokenizer's files

Weights are the user's; nothing is fetched for a folder, a hub name is fetched by huggingface_hub into its cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from semsam_model.engines.hub import read_published, read_tokenizer
from semsam_model.engines.opened import OpenedConcepts
from semsam_model.engines.photo import Preprocessing
from semsam_model.engines.roi_align import provide
from semsam_model.engines.transformers_detectors import GroundingDinoConcepts, Owlv2Concepts, clipped
from semsam_model.inference.concept_model import ConceptModel, Found, Query
from semsam_model.network.frame import LOGIT_STRIDE, Frame, Window
from semsam_model.types import Box

#: `model_type` of a config.json -> the class that finds. Published weights of SAM 3 are of the video model, which holds
#: the one of photos.
CLASSES = {
    "sam3": "Sam3Model",
    "sam3_video": "Sam3Model",
    "owlv2": "Owlv2ForObjectDetection",
    "grounding-dino": "GroundingDinoForObjectDetection",
    "mm-grounding-dino": "MMGroundingDinoForObjectDetection",
}
WORDS = 32  #: tokens of one text, as SAM 3 was trained
SLOPE = 4.0  #: of probabilities as logits: that of the logistic curve in its middle, upside down


@dataclass(frozen=True, eq=False)
class Sam3Look:
    """SAM 3's maps of one photo, or of a window of it."""

    photo: tuple[int, int]  #: (H, W)
    window: Window
    maps: Any  #: as the network takes them back

    @property
    def nbytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.maps.fpn_hidden_states)


class Sam3Concepts:
    """SAM 3 as `inference.concepts.ConceptModel`: it draws masks, and boxes of a thing are examples of it."""

    least = 0.5
    takes_examples = True

    def __init__(self, model: Any, preprocessing: Preprocessing, tokenizer: Any) -> None:
        """model: in eval mode, on its device."""
        from transformers.models.sam3 import modeling_sam3

        provide(modeling_sam3)
        self._model = model
        self._preprocessing = preprocessing
        self._tokenizer = tokenizer
        self._positions: Any = None  # the same for every photo, as each is stretched to one size

    @torch.inference_mode()
    def encode(self, rgb: np.ndarray, window: Window | None = None) -> Sam3Look:
        """uint8 RGB (H, W, 3). Raises ImageError."""
        shown: Window = window or (0, 0, rgb.shape[1], rgb.shape[0])
        pixels = self._preprocessing.pixels(rgb, shown, padded=0).to(self._model.device, self._model.dtype)
        maps = self._model.get_vision_features(pixels)
        self._positions = maps.fpn_position_encoding if self._positions is None else self._positions
        kept = type(maps)(fpn_hidden_states=maps.fpn_hidden_states, fpn_position_encoding=self._positions)
        return Sam3Look((rgb.shape[0], rgb.shape[1]), shown, kept)

    @torch.inference_mode()
    def find(self, look: Sam3Look, queries: Sequence[Query], least: float) -> list[list[Found]]:
        """Each text is a run of the network of its own."""
        return [self._find(look, query, least) for query in queries]

    def _find(self, look: Sam3Look, query: Query, least: float) -> list[Found]:
        device, dtype = self._model.device, self._model.dtype
        text = self._tokenizer(
            query.words, return_tensors="pt", padding="max_length", max_length=WORDS, truncation=True
        )
        given: dict[str, Any] = {name: text[name].to(device) for name in ("input_ids", "attention_mask")}
        boxes = [_as_shares(box, look.window) for box in query.examples]
        shown = [box for box in boxes if box is not None]
        if shown:
            given["input_boxes"] = torch.tensor([shown]).to(device, dtype)
            given["input_boxes_labels"] = torch.ones(1, len(shown), dtype=torch.long, device=device)
        output = self._model(vision_embeds=look.maps, **given)
        scores = (output.pred_logits[0].sigmoid() * output.presence_logits[0].sigmoid()).float().cpu()
        chosen = torch.nonzero(scores >= least)[:, 0]
        if not len(chosen):
            return []
        # its masks are probabilities enlarged, not logits enlarged: as logits that are straight lines of them
        logits = ((output.pred_masks[0, chosen.to(device)].float().sigmoid() - 0.5) * SLOPE).cpu().numpy()
        frame = _frame(look, (logits.shape[1], logits.shape[2]))
        found = []
        for place, mask in zip(chosen.tolist(), logits, strict=True):
            box = clipped(output.pred_boxes[0, place].float().cpu().tolist(), look.window, look.window)
            if box is not None:
                found.append(Found(box, float(scores[place]), mask, frame))
        return found


def _frame(look: Sam3Look, cells: tuple[int, int]) -> Frame:
    """The photo is stretched to the input, and so is what is seen of it to the masks."""
    size = LOGIT_STRIDE * cells[0], LOGIT_STRIDE * cells[1]
    return Frame(look.photo, size, size, look.window)


def _as_shares(box: Box, window: Window) -> tuple[float, float, float, float] | None:
    """Photo pixels -> cx, cy, w, h as shares of the window; None for a box outside it."""
    left, top, right, bottom = window
    width, height = right - left, bottom - top
    x0, x1 = (min(max(x - left, 0), width) / width for x in (box.x0, box.x1))
    y0, y1 = (min(max(y - top, 0), height) / height for y in (box.y0, box.y1))
    return ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0) if x1 > x0 and y1 > y0 else None


_KINDS: dict[str, Callable[[Any, Preprocessing, Any], ConceptModel]] = {
    "Sam3Model": Sam3Concepts,
    "Owlv2ForObjectDetection": Owlv2Concepts,
    "GroundingDinoForObjectDetection": GroundingDinoConcepts,
    "MMGroundingDinoForObjectDetection": GroundingDinoConcepts,
}


def open_concepts(argument: str, device: torch.device, dtype: torch.dtype) -> OpenedConcepts:
    """A folder, or the name of a repository on the hub. Raises CheckpointError."""
    read = read_published("concepts", argument, CLASSES, device, dtype, _side)
    made = _KINDS[CLASSES[read.type]](read.model, read.preprocessing, read_tokenizer("concepts", argument))
    return OpenedConcepts(made, read.version, read.nbytes)


def _side(model: Any) -> int:
    """Of the input, where the files do not say it."""
    size = getattr(getattr(model.config, "vision_config", None), "image_size", 800)
    return int(size) if isinstance(size, int) else int(size[0])
