"""configs/finetune.yaml is read strictly."""

from __future__ import annotations

from pathlib import Path

import pytest

from semsam_model.errors import ConfigError
from semsam_model.finetuning.config import FineTuneConfig, read_finetune_config
from semsam_model.gate.config import GateConfig


def test_the_settings_in_the_repository_are_valid_and_wrong_ones_are_named(tmp_path: Path) -> None:
    learning, gate = read_finetune_config(GateConfig)
    # what is measured is what jobs do, with the file or without
    assert learning == FineTuneConfig()
    assert gate == GateConfig()
    for text, named in (
        ("finetune: {lern: heads}", "lern"),
        ("finetune: {learn: encoder}", "learn"),
        ("finetune: {size: 65}", "multiple of 32"),
        ("finetune: {loss: {dice: 1}}", "dice"),
        ("finetune: {rounds: {prompts: -1}}", "rounds"),
        ("train: {}", "sections"),
        ("gate: {margn: 1}", r"wrong\.yaml: gate: unknown key 'margn'"),
    ):
        path = tmp_path / "wrong.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError, match=named):
            read_finetune_config(GateConfig, path)
