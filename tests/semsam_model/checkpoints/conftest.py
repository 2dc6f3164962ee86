"""A tiny network, and the weights file that it is saved to."""

from pathlib import Path

import pytest
import torch

from semsam_model.checkpoints.checkpoint import save
from semsam_model.config import read_model_config
from semsam_model.network.model import SemanticSAM, build_model


@pytest.fixture(scope="module")
def model() -> SemanticSAM:
    torch.manual_seed(0)
    return build_model(read_model_config("tiny"))


@pytest.fixture
def path(model: SemanticSAM, tmp_path: Path) -> Path:
    save(tmp_path / "tiny.safetensors", model, model.config, card={"data": "none"})
    return tmp_path / "tiny.safetensors"
