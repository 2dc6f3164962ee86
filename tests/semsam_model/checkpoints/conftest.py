"""A tiny network with the weights file that it is saved to, and a published checkpoint of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from semsam_model.checkpoints.checkpoint import save
from semsam_model.checkpoints.published import published_shapes
from semsam_model.config import read_model_config
from semsam_model.network.model import SemanticSAM, build_model
from tests.semsam_model.checkpoints.conversions import (
    TINY,
    State,
)
from tests.semsam_model.published_rule import rule_weights


@pytest.fixture(scope="module")
def model() -> SemanticSAM:
    torch.manual_seed(0)
    return build_model(read_model_config("tiny"))


@pytest.fixture
def path(model: SemanticSAM, tmp_path: Path) -> Path:
    save(tmp_path / "tiny.safetensors", model, model.config, card={"data": "none"})
    return tmp_path / "tiny.safetensors"


@pytest.fixture
def state() -> State:
    """A checkpoint of the tiny model as the published code would have saved it."""
    return rule_weights(published_shapes(TINY), TINY.swin_window)


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "out" / "tiny.safetensors"
