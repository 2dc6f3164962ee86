"""Annotations as Label Studio posts them, and what is suggested for them; small made masks."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from backend.corrections.suggestions import PromptAnswer
from backend.label_studio.label_config import LabelConfig
from backend.label_studio.predictions import build_prediction
from backend.records import ProjectKey
from semsam_model.masks.codecs import encode_brush_rle
from semsam_model.masks.geometry import crop_mask
from semsam_model.types import Candidate, Click, Prompt
from tests.paths import BRUSH_WITH_LEVELS

CONFIG = BRUSH_WITH_LEVELS.read_text()
ORIGIN = "http://ls:8080"
KEY = ProjectKey(ORIGIN, 7)
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
SIZE = (40, 60)  #: (H, W)


def square(x0: int, y0: int, side: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[y0 : y0 + side, x0 : x0 + side] = True
    return mask


def at(seconds: float) -> datetime:
    """Seconds after NOON."""
    return NOON + timedelta(seconds=seconds)


def brush_row(region: str, mask: np.ndarray, label: str | None = "object", **more: Any) -> dict[str, Any]:
    return {
        "id": region,
        "type": "brushlabels",
        "from_name": "mask",
        "to_name": "image",
        "origin": "manual",
        "original_width": mask.shape[1],
        "original_height": mask.shape[0],
        "value": {
            "format": "rle",
            "rle": encode_brush_rle(*crop_mask(mask), mask.shape),
            "brushlabels": [] if label is None else [label],
        },
    } | more


def annotation(number: int, rows: list[Any], *, task: int = 1, updated: float = 0, **more: Any) -> dict[str, Any]:
    return {
        "id": number,
        "task": task,
        "project": KEY.project,
        "completed_by": 3,
        "was_cancelled": False,
        "ground_truth": False,
        "created_at": NOON.isoformat(),
        "updated_at": at(updated).isoformat().replace("+00:00", "Z"),
        "result": rows,
    } | more


def event(action: str, **more: Any) -> dict[str, Any]:
    """A webhook's body; for an annotation with its task."""
    project = {
        "id": KEY.project,
        "title": "cars",
        "label_config": CONFIG,
        "token": "secret",
        "created_at": NOON.isoformat(),
    }
    body = {"action": action, "project": project | {"updated_at": NOON.isoformat()}} | more
    if isinstance(one := more.get("annotation"), dict):
        body["task"] = {"id": one["task"], "data": {"image": f"/data/upload/7/{one['task']}.png"}}
    return body


def answered(
    masks: list[np.ndarray], *, task: int = 1, at_s: float = -10, config: str = CONFIG
) -> tuple[PromptAnswer, list[dict[str, Any]]]:
    """What the service suggests for a click, and the geometry rows of the answer, best first."""
    candidates = []
    for rank, mask in enumerate(masks, start=1):
        crop, bbox = crop_mask(mask)
        candidates.append(
            Candidate(rank, rank - 1, rank, 0.9, 0.9, 1.0, mask.shape, bbox, crop, names=(("object", 0.7),))
        )
    prediction = build_prediction(
        candidates, config=LabelConfig.parse(config), prompt_id=uuid.uuid4().hex, model_version="mobile-1"
    )
    prompt = Prompt((Click(10.5, 11.5), Click(1.0, 1.0, False)))
    answer = PromptAnswer(KEY, task, "ab" * 32, SIZE, prompt, None, candidates, prediction, 42.0, at(at_s))
    rows = sorted((row for row in prediction["result"] if "meta" in row), key=lambda row: row["meta"]["candidate"])
    return answer, rows
