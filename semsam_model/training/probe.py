"""Validation of a model in training: one click on each of a few fixed masks, as figures and as a preview."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from semsam_model.data.folder import evenly, evenly_spaced
from semsam_model.data.samples import Sample
from semsam_model.errors import DataError
from semsam_model.masks.clicker import innermost
from semsam_model.masks.drawing import GOT, WANTED, draw_mask, draw_prompt, resize_mask, scaled
from semsam_model.network.frame import LOGIT_STRIDE, Frame
from semsam_model.network.model import ImageEmbedding, SemanticSAM
from semsam_model.types import Click, Prompt


@dataclass(frozen=True, eq=False)
class Probe:
    """One photo with the masks to click on."""

    source: str
    name: str
    image: np.ndarray  #: uint8 RGB (H, W, 3)
    masks: np.ndarray  #: bool (n, H, W), n >= 1
    clicks: tuple[Click, ...]


@dataclass(frozen=True)
class Oracle:
    """Mean IoU, 0..1, over sources that count alike: of the best of the levels, and of the one with the best score."""

    best: float
    first: float
    by_source: dict[str, float]  #: best


def pick_probes(
    samples: Sequence[Sample], per_source: int = 3, masks: int = 3, min_share: float = 0.002
) -> list[Probe]:
    """The same photos and masks for the same samples: evenly spaced in each source, and in a photo from large to small.

    Masks below `min_share` of the photo are passed over, and photos that cannot be read.
    """
    probes = []
    for sample in sorted(evenly(samples, per_source), key=lambda sample: sample.source):
        try:
            image, found = sample.image(), sample.masks()
        except DataError:
            continue
        found = sorted((m for m in found if m.mean() >= min_share), key=np.count_nonzero, reverse=True)
        if found:
            chosen = evenly_spaced(found, masks)
            clicks = tuple(innermost(mask) for mask in chosen)
            probes.append(Probe(sample.source, sample.name, image, np.stack(chosen), clicks))
    return probes


@torch.inference_mode()
def _answer(model: SemanticSAM, probe: Probe, pixels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """IoU (n, T) with the wanted masks, predicted IoU (n, T), masks bool (n, T, H, W), at photo size."""
    config = replace(model.config, resize_side="long", resize_pixels=pixels)
    height, width = probe.masks.shape[1:]
    frame = Frame.of((height, width), config)
    device = model.decoder.content.device
    features = model.features(frame.image(probe.image, config).to(device))
    output = model.decode(ImageEmbedding(frame, features), probe.clicks)
    logits = F.interpolate(output.logits, scale_factor=LOGIT_STRIDE, mode="bilinear", align_corners=False)
    logits = logits[..., : frame.resized[0], : frame.resized[1]]
    got = F.interpolate(logits, (height, width), mode="bilinear", align_corners=False) > 0
    wanted = torch.from_numpy(probe.masks)[:, None].to(device)
    iou = (got & wanted).sum((2, 3)) / (got | wanted).sum((2, 3)).clamp(min=1)
    return iou.cpu().numpy(), output.predicted_iou.cpu().numpy(), got.cpu().numpy()


def quick_oracle(model: SemanticSAM, probes: Sequence[Probe], pixels: int) -> Oracle:
    """One click a mask, at `pixels` for the longer side. Raises DataError without probes."""
    if not probes:
        raise DataError("quick_oracle: expected at least one probe, got none")
    best: dict[str, list[float]] = {}
    first: dict[str, list[float]] = {}
    for probe in probes:
        iou, predicted, _ = _answer(model, probe, pixels)
        best.setdefault(probe.source, []).extend(iou.max(1).tolist())
        first.setdefault(probe.source, []).extend(
            np.take_along_axis(iou, predicted.argmax(1)[:, None], 1)[:, 0].tolist()
        )
    by_source = {source: float(np.mean(values)) for source, values in best.items()}
    return Oracle(
        float(np.mean(list(by_source.values()))), float(np.mean([np.mean(v) for v in first.values()])), by_source
    )


def save_preview(model: SemanticSAM, probes: Sequence[Probe], pixels: int, path: Path, height: int = 192) -> np.ndarray:
    """One row a probe, for its first mask: photo with the click, wanted mask, best of the levels; uint8 RGB (H, W, 3).

    Also written to `path`.
    """
    rows = []
    for probe in probes:
        iou, _, got = _answer(model, probe, pixels)
        scale = height / probe.image.shape[0]
        photo = scaled(probe.image, scale)
        wanted, best = photo.copy(), photo.copy()
        draw_mask(wanted, resize_mask(probe.masks[0], photo), WANTED, 0.55)
        draw_mask(best, resize_mask(got[0, iou[0].argmax()], photo), GOT, 0.55)
        draw_prompt(photo, Prompt(probe.clicks[:1]), scale)
        rows.append(np.concatenate((photo, wanted, best), 1))
    width = max(row.shape[1] for row in rows)
    sheet = np.concatenate([np.pad(row, ((0, 4), (0, width - row.shape[1]), (0, 0))) for row in rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(path)
    return sheet
