"""Checkpoints of the tiny model, converted or refused: for the tests of published weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from semsam_model.checkpoints.published import Report, convert
from semsam_model.config import read_model_config
from semsam_model.errors import CheckpointError

TINY = read_model_config("tiny")

PREDICTOR = "model.sem_seg_head.predictor."

LABEL_ENC, MASK_TOKENS = PREDICTOR + "label_enc.weight", PREDICTOR + "mask_tokens.weight"

INDEX = "model.backbone.layers.0.blocks.0.attn.relative_position_index"

State = dict[str, Tensor]


def converted(content: Any, out: Path, name: str = "tiny") -> Report:
    pth = out.parent.parent / "in.pth"
    torch.save(content, pth)
    return convert(pth, name, out)


def refused(content: Any, out: Path, name: str = "tiny") -> str:
    with pytest.raises(CheckpointError) as caught:
        converted(content, out, name)
    assert not out.parent.exists(), "something was written"
    return str(caught.value)


def refused_keeping(state: State, out: Path, name: str) -> str:
    before = out.read_bytes()
    with pytest.raises(CheckpointError) as caught:
        converted({"model": state}, out, name)
    assert out.read_bytes() == before
    return str(caught.value)


def statuses(report: Report) -> dict[str, str]:
    return {entry.key: entry.status for entry in report.entries}


def telling(channels: int, tokens: int) -> State:
    """The two tensors that tell the variants apart."""
    stem = torch.zeros(channels, 3, 4, 4)
    return {"model.backbone.patch_embed.proj.weight": stem, MASK_TOKENS: torch.zeros(tokens, 256)}
