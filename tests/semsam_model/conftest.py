from __future__ import annotations

import pytest
import torch

from semsam_model.checkpoints.published import Report, convert, published_shapes
from semsam_model.config import read_model_config
from tests.semsam_model.published_rule import rule_weights


@pytest.fixture(scope="session")
def converted_swin_t(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A whole Swin-T checkpoint, shaped as published with a training run's extras, after conversion."""
    folder = tmp_path_factory.mktemp("published")
    config = read_model_config("swin_t")
    state = rule_weights(published_shapes(config), config.swin_window)
    state["model.criterion.empty_weight"] = torch.tensor([1.0, 0.1])
    pth = folder / "swin_t.pth"
    torch.save({"model": state, "optimizer": {"state": {0: torch.ones(3)}}, "iteration": 368_750}, pth)
    report = convert(pth, "swin_t", folder / "swin_t.safetensors")
    pth.unlink()
    return report
