from pathlib import Path

import pytest
import torch

from semsam_model.checkpoint import save
from semsam_model.config import read_model_config
from semsam_model.model import build_model


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, untrained, as a weights file."""
    torch.manual_seed(0)
    config = read_model_config("tiny")
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save(path, build_model(config), config)
    return path
