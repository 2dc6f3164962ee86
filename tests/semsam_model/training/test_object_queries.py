"""Training of object queries on weights that answer clicks already."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from semsam_model.checkpoints.checkpoint import load, save
from semsam_model.checkpoints.run_weights import pack
from semsam_model.config import ModelConfig, parse_config, read_model_config
from semsam_model.data.folder import read_samples
from semsam_model.data.mixture import Mixture
from semsam_model.errors import CheckpointError, ConfigError
from semsam_model.network.ranker import FEATURES, Ranker
from semsam_model.training.batches import TrainingBatches
from semsam_model.training.config import LossConfig, SamplingConfig, Stage, TrainConfig
from semsam_model.training.loop import train
from tests.semsam_model.houses import write_source
from tests.semsam_model.networks import QUERIES, structured

TINY = read_model_config("tiny")


def test_batches_carry_every_mask_and_what_its_source_annotates(tmp_path: Path) -> None:
    write_source(tmp_path, "houses", 2)
    mixture = Mixture.of(read_samples(tmp_path).samples)
    stages, config = [Stage(1, 64, 2)], SamplingConfig(prompts=1, scale_min=1, scale_max=1)
    made = TrainingBatches(mixture, stages, config, click_box=0.005, fill=(128.0,) * 3, seed=0, object_queries=True)[0]
    assert len(made.object_queries) == 2
    for one in made.object_queries:
        assert one.masks.shape == (3, 16, 16)
        assert one.kinds.tolist() == [0, 1, 1]
        assert one.complete.tolist() == [True, True, False]


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def small(model: str, init: Path, **changes: object) -> TrainConfig:
    config = TrainConfig(
        model=model,
        init=str(init),
        learn="generic",
        stages=(Stage(3, 96, 1),),
        sampling=SamplingConfig(prompts=1, scale_min=1, scale_max=1, flip=False),
        loss=LossConfig(generic=1.0),
        lr=3e-3,
        warmup=0,
        bfloat16=False,
        threads=1,
        workers=0,
        log_every=1,
        ema=0.5,
    )
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


def written(config: ModelConfig, path: Path) -> str:
    import yaml

    path.write_text(yaml.safe_dump(config.to_dict()))
    return str(path)


def test_queries_learn_on_packed_weights_and_clicks_stay_bit_for_bit(tmp_path: Path) -> None:
    write_source(tmp_path / "data", "houses", 2)
    samples = read_samples(tmp_path / "data").samples
    start = tmp_path / "start.safetensors"
    save(start, structured(TINY), TINY, half=True)
    config = small(written(QUERIES, tmp_path / "model.yaml"), start)
    result = train(config, samples, tmp_path / "run", console=quiet())
    before, after = load_file(start), load_file(result.weights)
    assert {name for name in after if name not in before} == {n for n in after if n.startswith("generic.")}
    for name, value in before.items():
        assert torch.equal(value.float(), after[name]), name
    rows = [line for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines() if "generic_tokens" in line]
    assert len(rows) == 3
    ranked = structured(TINY)
    ranked.ranker = Ranker(
        np.ones((len(FEATURES), 2), np.float32),
        np.zeros(2, np.float32),
        np.ones(2, np.float32),
        np.zeros((), np.float32),
    )
    save(tmp_path / "ranked.safetensors", ranked, TINY, half=True)
    pack(result.weights, QUERIES, tmp_path / "packed.safetensors", ranker_of=tmp_path / "ranked.safetensors")
    packed = load_file(tmp_path / "packed.safetensors")
    for name, value in load_file(tmp_path / "ranked.safetensors").items():
        assert torch.equal(value, packed[name]), name
    assert load(tmp_path / "packed.safetensors")[0].ranker is not None
    with pytest.raises(CheckpointError, match="holds no ranker"):
        pack(result.weights, QUERIES, tmp_path / "packed.safetensors", ranker_of=start)


def test_learning_queries_needs_a_model_with_them_and_weights_to_build_on(tmp_path: Path) -> None:
    run = {"model": "tiny", "stages": [{"steps": 1, "size": 64, "batch": 1}], "learn": "generic"}
    with pytest.raises(ConfigError, match="needs init"):
        parse_config(TrainConfig, run, "run.yaml")
    write_source(tmp_path / "data", "houses", 1)
    start = tmp_path / "start.safetensors"
    save(start, structured(TINY), TINY)
    with pytest.raises(ConfigError, match="set generic_queries"):
        train(small("tiny", start), read_samples(tmp_path / "data").samples, tmp_path / "run", console=quiet())
