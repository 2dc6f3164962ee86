"""Training files are read strictly."""

from __future__ import annotations

from pathlib import Path

import pytest

from semsam_model.config import read_model_config
from semsam_model.errors import ConfigError
from semsam_model.training.config import read_train_config
from tests.paths import CONFIGS


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("model: tiny\nstages: [{steps: 1, size: 64, batch: 1}]\nlearning_rate: 1\n", "learning_rate"),
        ("model: tiny\nstages: [{steps: 1, size: 64, batch: 1, sze: 3}]\n", "sze"),
        ("model: tiny\nstages: [{steps: 1, size: 65, batch: 1}]\n", "multiple of 32"),
        ("model: tiny\nstages: [{steps: 1, size: 64, batch: 1}]\nloss: {dice: 3}\n", "dice"),
        ("model: tiny\nstages: [{steps: 1, size: 64, batch: 1}]\nsampling: {box_share: 2}\n", "box_share"),
        ("model: tiny\nstages: [{steps: 1, size: 64, batch: 1}]\nanneal: time\n", "time_limit_minutes"),
        ("model: tiny\nstages: []\n", "stages"),
        ("model: tiny\n", "stages"),
    ],
)
def test_a_wrong_setting_is_named(text: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=named):
        read_train_config(path)


def test_the_training_files_in_the_repository_are_valid() -> None:
    files = sorted((CONFIGS / "train").glob("*.yaml"))
    assert files
    for file in files:
        read_model_config(read_train_config(file).model)
