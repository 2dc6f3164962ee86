"""A refiner in a weights file: optional, and the rest of the file stays as it is."""

from pathlib import Path

import pytest
import torch

from semsam_model.checkpoints.checkpoint import REFINER, load, read_weights, save, with_ranker, with_refiner
from semsam_model.checkpoints.run_weights import read_network, read_refiner
from semsam_model.config import read_model_config
from semsam_model.errors import CheckpointError
from semsam_model.network.model import build_model
from semsam_model.network.ranker import FEATURES, Ranker
from semsam_model.network.refiner import Refiner
from semsam_model.training.state import save_weights

TINY = read_model_config("tiny")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save(tmp_path / "old.safetensors", build_model(TINY), TINY, card={"data": "none"})
    return tmp_path / "old.safetensors"


def refiner_file(folder: Path) -> Path:
    torch.manual_seed(1)
    save_weights(Refiner(), folder / "refiner.safetensors")
    return folder / "refiner.safetensors"


def test_weights_without_a_refiner_load_without_one(path: Path) -> None:
    assert load(path)[0].refiner is None


def test_an_added_refiner_is_loaded_in_half_precision_and_the_network_stays_bit_for_bit(path: Path) -> None:
    new, state = path.with_name("new.safetensors"), read_refiner(refiner_file(path.parent))
    version = with_refiner(path, state, new)
    (before, _), (after, loaded) = load(path), load(new)
    assert loaded == version and after.refiner is not None and not after.refiner.training
    for name, value in after.refiner.state_dict().items():
        assert torch.equal(value, state[name].half().float())
    assert all(torch.equal(after.state_dict()[name], value) for name, value in before.state_dict().items())
    assert read_network(new).keys() == before.state_dict().keys()
    assert read_refiner(new).keys() == state.keys()


def test_saving_and_a_new_ranker_keep_the_refiner(path: Path) -> None:
    new, other = path.with_name("new.safetensors"), path.with_name("other.safetensors")
    with_refiner(path, read_refiner(refiner_file(path.parent)), new)
    zeros = torch.zeros(len(FEATURES), 2).numpy()
    with_ranker(new, Ranker(zeros, zeros[0], zeros[0], zeros[0, 0]), other)
    model, _ = load(other)
    assert model.refiner is not None and model.ranker is not None
    save(path, model, TINY)
    assert any(name.startswith(REFINER) for name in read_weights(path)[1])


def test_what_is_no_refiner_is_refused(path: Path) -> None:
    with pytest.raises(CheckpointError, match="refiner"):
        with_refiner(path, read_refiner(path), path.with_name("new.safetensors"))
