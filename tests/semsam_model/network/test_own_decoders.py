"""Object queries with decoders of their own: over the backbone of clicks, and without any say in what clicks answer."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

from semsam_model.checkpoints.checkpoint import load, save
from semsam_model.checkpoints.run_weights import graft, pack
from semsam_model.config import ModelConfig, read_model_config
from semsam_model.data.folder import read_samples
from semsam_model.errors import CheckpointError, ConfigError
from semsam_model.inference.object_queries import predict_object_queries, predict_object_queries_of_resized
from semsam_model.network.model import SemanticSAM
from semsam_model.training.config import LossConfig, ReplayConfig, SamplingConfig, Stage, TrainConfig
from semsam_model.training.distributed import Distributed
from semsam_model.training.loop import train
from semsam_model.training.state import Run
from semsam_model.types import Click
from tests.semsam_model.houses import write_source
from tests.semsam_model.networks import structured

SHARED = dataclasses.replace(read_model_config("tiny"), generic_queries=6, generic_layers=1, name_features=True)
OWN = dataclasses.replace(SHARED, generic_decoder_layers=SHARED.decoder_layers)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    pixels[20:60, 30:90] = (200, 30, 30)
    return pixels


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Weights of a model whose object queries share the decoders of clicks."""
    path = tmp_path / "shared.safetensors"
    save(path, structured(SHARED), SHARED)
    return path


def described(tmp_path: Path, config: ModelConfig) -> str:
    path = tmp_path / f"own{config.generic_decoder_layers}.yaml"
    path.write_text(yaml.safe_dump(config.to_dict()))
    return str(path)


def settings(tmp_path: Path, init: Path, config: ModelConfig = OWN) -> TrainConfig:
    return TrainConfig(
        model=described(tmp_path, config),
        init=str(init),
        learn="generic",
        stages=(Stage(2, 128, 2),),
        sampling=SamplingConfig(prompts=4, scale_min=1, scale_max=1),
        loss=LossConfig(generic=1.0),
        bfloat16=False,
        workers=0,
    )


def grafted(clicks: Path, queries: Path, tmp_path: Path) -> SemanticSAM:
    graft(clicks, queries, OWN, tmp_path / "grafted")
    pack(tmp_path / "grafted", OWN, tmp_path / "packed")
    return load(tmp_path / "packed")[0]


def other(path: Path, tmp_path: Path, prefixes: tuple[str, ...]) -> Path:
    """The same network with other weights where names begin so."""
    model, _ = load(path)
    torch.manual_seed(9)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(prefixes) and parameter.ndim > 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    save(tmp_path / "other.safetensors", model, model.config)
    return tmp_path / "other.safetensors"


def same_queries(one: SemanticSAM, two: SemanticSAM, photo: np.ndarray) -> bool:
    ours, theirs = (predict_object_queries(model, model.encode(photo)) for model in (one, two))
    return ours.logits.shape == theirs.logits.shape and all(
        np.allclose(getattr(ours, name), getattr(theirs, name), atol=2e-2) for name in ("logits", "kinds", "embeddings")
    )


def same_clicks(one: SemanticSAM, two: SemanticSAM, photo: np.ndarray) -> bool:
    ours, theirs = (model.decode(model.encode(photo), [Click(40, 40), Click(100, 20)]) for model in (one, two))
    return all(torch.equal(getattr(ours, name), getattr(theirs, name)) for name in ("logits", "predicted_iou", "boxes"))


def test_decoders_that_start_as_those_of_clicks_give_the_same_queries(
    shared: Path, photo: np.ndarray, tmp_path: Path
) -> None:
    pack(shared, SHARED, tmp_path / "half")
    before = load(tmp_path / "half")[0]
    both = grafted(tmp_path / "half", tmp_path / "half", tmp_path)
    assert same_clicks(before, both, photo) and same_queries(before, both, photo)
    run = Run(settings(tmp_path, tmp_path / "half"), tmp_path, Distributed(torch.device("cpu")))
    assert same_queries(before, run.averaged, photo)
    assert run.fresh == []


def test_a_graft_has_the_clicks_of_one_network_and_the_queries_of_the_other(
    shared: Path, photo: np.ndarray, tmp_path: Path
) -> None:
    pack(shared, SHARED, tmp_path / "one")
    changed = other(tmp_path / "one", tmp_path, ("decoder.", "generic.", "pixel_decoder.layers"))
    pack(changed, SHARED, tmp_path / "two")
    one, two = (load(tmp_path / name)[0] for name in ("one", "two"))
    both = grafted(tmp_path / "one", tmp_path / "two", tmp_path)
    assert same_clicks(both, one, photo) and not same_clicks(both, two, photo)
    assert same_queries(both, two, photo) and not same_queries(both, one, photo)
    again = grafted(tmp_path / "two", tmp_path / "packed", tmp_path)
    assert same_clicks(again, two, photo) and same_queries(again, two, photo)


def test_a_graft_without_the_decoders_that_it_asks_for_is_refused(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected generic_queries and generic_decoder_layers above 0"):
        graft(shared, shared, SHARED, tmp_path / "out")
    more = dataclasses.replace(OWN, generic_decoder_layers=OWN.decoder_layers + 1)
    with pytest.raises(CheckpointError, match=r"generic\.decoder\.layers\.2\..* is missing"):
        graft(shared, shared, more, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layers", [1, 2])
def test_learning_queries_alone_moves_their_own_decoders_and_nothing_of_clicks(
    layers: int, shared: Path, photo: np.ndarray, tmp_path: Path
) -> None:
    write_source(tmp_path / "data", "houses", 3)
    config = dataclasses.replace(OWN, generic_decoder_layers=layers)
    samples = read_samples(tmp_path / "data").samples
    result = train(settings(tmp_path, shared, config), samples, tmp_path / "run", console=Console(file=io.StringIO()))
    before, after = load_file(shared), load_file(result.weights)
    assert {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])} == {"generic"}
    for name in (
        "pixel_decoder.lateral.0.weight",
        "decoder.layers.0.linear1.weight",
        "decoder.mask_head.layers.2.weight",
    ):
        assert not torch.equal(after["generic." + name], before[name])


def test_keeping_what_was_seen_is_refused_where_it_would_change(shared: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(settings(tmp_path, shared), reuse=ReplayConfig(times=2))
    with pytest.raises(ConfigError, match=r"times 2, but object queries of .* have decoders of their own"):
        Run(config, tmp_path, Distributed(torch.device("cpu")))


def test_an_embedding_holds_the_maps_that_queries_start_from_and_only_then(photo: np.ndarray) -> None:
    for config, kept in ((OWN, 4), (SHARED, 2), (dataclasses.replace(SHARED, name_features=False), 0)):
        embedding = structured(config).encode(photo)
        features = embedding.features
        assert len(features.maps) == kept
        assert embedding.nbytes == sum(t.nbytes for t in (features.mask_features, features.memory, *features.maps))


@pytest.mark.parametrize("config", [OWN, SHARED], ids=["own", "shared"])
def test_a_photo_that_nobody_clicks_has_the_queries_of_one_that_is_clicked(
    config: ModelConfig, photo: np.ndarray
) -> None:
    model = structured(config)
    embedding = model.encode(photo)
    clicked, alone = (
        predict_object_queries(model, embedding),
        predict_object_queries_of_resized(model, embedding.frame, embedding.frame.resize(photo)),
    )
    assert len(clicked.logits) > 0
    for field in dataclasses.fields(clicked):
        assert np.array_equal(getattr(clicked, field.name), getattr(alone, field.name)), field.name
