"""Training of the decoders of clicks alone: what else there is stays bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file

from semsam_model.checkpoints.checkpoint import save
from semsam_model.config import parse_config, read_model_config
from semsam_model.data.folder import read_samples
from semsam_model.errors import ConfigError
from semsam_model.training.config import LossConfig, TrainConfig
from semsam_model.training.loop import train
from tests.semsam_model.houses import write_source
from tests.semsam_model.networks import structured
from tests.semsam_model.training.test_object_queries import quiet, small

TINY = read_model_config("tiny")


@pytest.mark.parametrize("learn", ["decoder", "decoders"])
def test_only_what_clicks_alone_read_changes(tmp_path: Path, learn: Literal["decoder", "decoders"]) -> None:
    write_source(tmp_path / "data", "houses", 2)
    start = tmp_path / "start.safetensors"
    save(start, structured(TINY), TINY, half=True)
    config = small("tiny", start, learn=learn, loss=LossConfig())
    result = train(config, read_samples(tmp_path / "data").samples, tmp_path / "run", console=quiet())
    before, after = load_file(start), load_file(result.weights)
    changed = {name for name in before if not torch.equal(before[name].float(), after[name])}
    own = ("decoder.",) if learn == "decoder" else ("decoder.", "pixel_decoder.")
    assert {next((prefix for prefix in own if name.startswith(prefix)), name) for name in changed} == set(own)
    assert "pixel_decoder.level_embed" in changed or learn == "decoder"
    assert not any(name.startswith("pixel_decoder.input_proj.") for name in changed)  # object queries read it too


@pytest.mark.parametrize("learn", ["decoder", "decoders"])
@pytest.mark.parametrize("extra", [{"loss": {"generic": 1.0}, "init": "start.safetensors"}, {}])
def test_it_needs_weights_to_build_on_and_no_object_queries(extra: dict[str, object], learn: str) -> None:
    run = {"model": "tiny", "stages": [{"steps": 1, "size": 64, "batch": 1}], "learn": learn, **extra}
    with pytest.raises(ConfigError, match=f"{learn} needs init"):
        parse_config(TrainConfig, run, "run.yaml")
