"""Learning from an image several times after looking at it once."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file

from semsam_model.checkpoints.checkpoint import save
from semsam_model.config import parse_config
from semsam_model.data.folder import read_samples
from semsam_model.errors import ConfigError
from semsam_model.network.model import SemanticSAM
from semsam_model.training.config import LossConfig, ReplayConfig, SamplingConfig, Stage, TrainConfig
from semsam_model.training.loop import train
from semsam_model.training.losses.object_queries import ObjectQueryTargets
from semsam_model.training.objective import EncodedImage, ReplayBuffer
from tests.semsam_model.houses import write_source
from tests.semsam_model.networks import QUERIES, structured


@pytest.fixture(scope="module")
def network() -> SemanticSAM:
    return structured(QUERIES)


def looked(network: SemanticSAM, number: int) -> EncodedImage:
    images = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(number))
    with torch.no_grad():
        features = network.features(images)
        assert network.generic is not None
        (seeds,) = network.seed_outputs(features, [network.generic.tokens(features)])
    nothing = torch.zeros(0, dtype=torch.long)
    masks, supervised = torch.zeros(0, 32, 32, dtype=torch.bool), torch.zeros(0, 3, dtype=torch.bool)
    targets = ObjectQueryTargets(masks, torch.zeros(0, 4), nothing, nothing, torch.tensor([number]), supervised)
    return EncodedImage(features, seeds, targets)


@pytest.fixture(scope="module")
def one_image(network: SemanticSAM) -> EncodedImage:
    return looked(network, 0)


def numbered(image: EncodedImage, number: int) -> EncodedImage:
    return dataclasses.replace(image, targets=dataclasses.replace(image.targets, complete=torch.tensor([number])))


def test_an_image_that_comes_again_gives_the_same_queries(network: SemanticSAM) -> None:
    earlier = ReplayBuffer(ReplayConfig(times=2, images=4))
    first, second = looked(network, 1), looked(network, 2)
    assert earlier.with_earlier([first], network, 0) == [first]
    learned = earlier.with_earlier([second], network, 1)
    assert learned[0] is second
    again = learned[1]
    assert again.targets is first.targets
    assert network.generic is not None
    with torch.inference_mode():
        one, other = (network.generic(x.features, network.generic.tokens(x.features), x.seeds) for x in (first, again))
    for name in ("boxes", "scores", "part_embedding", "token_scores"):
        ours, theirs = getattr(one, name), getattr(other, name)
        assert torch.allclose(ours, theirs, atol=5e-3 * float(ours.abs().max())), name
    assert one.chosen.tolist() == other.chosen.tolist()


@given(times=st.integers(1, 5), kept=st.integers(1, 8), new=st.integers(1, 2), seed=st.integers(0, 99))
def test_earlier_images_come_as_often_as_asked_and_none_twice_in_a_step(
    network: SemanticSAM, one_image: EncodedImage, times: int, kept: int, new: int, seed: int
) -> None:
    earlier = ReplayBuffer(ReplayConfig(times, kept))
    for step in range(10):
        images = [numbered(one_image, step * new + i) for i in range(new)]
        learned = earlier.with_earlier(images, network, seed + step)
        numbers = [int(x.targets.complete) for x in learned]
        assert learned[:new] == images
        assert len(numbers) == len(set(numbers)) == new + min((times - 1) * new, kept, step * new)
        assert all(step * new - kept <= n < step * new for n in numbers[new:])


def test_what_is_kept_in_learning_leaves_the_frozen_network_as_it_is(tmp_path: Path) -> None:
    write_source(tmp_path / "data", "houses", 3)
    start = tmp_path / "start.safetensors"
    save(start, structured(QUERIES), QUERIES)
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(QUERIES.to_dict()))
    config = TrainConfig(
        model=str(tmp_path / "model.yaml"),
        init=str(start),
        learn="generic",
        reuse=ReplayConfig(times=3, images=2),
        stages=(Stage(3, 96, 1), Stage(2, 128, 1)),
        sampling=SamplingConfig(prompts=1, scale_min=1, scale_max=1),
        loss=LossConfig(generic=1.0),
        bfloat16=False,
        workers=0,
    )
    console = Console(file=io.StringIO())
    result = train(config, read_samples(tmp_path / "data").samples, tmp_path / "run", console=console)
    before, after = load_file(start), load_file(result.weights)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"generic"}


def test_only_frozen_networks_can_be_kept() -> None:
    run = {"model": "tiny", "stages": [{"steps": 1, "size": 64, "batch": 1}]}
    with pytest.raises(ConfigError, match="reuse: times 3 needs learn: generic"):
        parse_config(TrainConfig, run | {"reuse": {"times": 3}}, "run.yaml")
    with pytest.raises(ConfigError, match="reuse: times: expected at least 1, got 0"):
        parse_config(TrainConfig, run | {"reuse": {"times": 0}}, "run.yaml")
