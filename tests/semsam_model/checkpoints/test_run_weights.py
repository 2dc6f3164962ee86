"""What a training run writes is packed into a weights file, or averaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from semsam_model.checkpoints.checkpoint import load, save
from semsam_model.checkpoints.header import read_header
from semsam_model.checkpoints.run_weights import average, blend, pack
from semsam_model.config import read_model_config
from semsam_model.errors import CheckpointError, ConfigError
from semsam_model.network.model import SemanticSAM, build_model
from semsam_model.network.ranker import FEATURES, Ranker

TINY = read_model_config("tiny")


def state(path: Path) -> dict[str, Tensor]:
    return dict(load(path)[0].state_dict())


def test_the_weights_of_a_training_run_are_packed_in_half_precision(model: SemanticSAM, tmp_path: Path) -> None:
    run, packed = tmp_path / "run.safetensors", tmp_path / "packed.safetensors"
    save_file(model.state_dict(), run)
    version = pack(run, TINY, packed, card={"data": "none"})
    assert version == load(packed)[1] == save(tmp_path / "saved", model, TINY, half=True)
    assert read_header(packed).card == {"data": "none"}
    with pytest.raises(CheckpointError, match="does not fit its own config"):
        pack(run, replace(TINY, ffn=96), tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"none\.safetensors: cannot be read as safetensors"):
        pack(tmp_path / "none.safetensors", TINY, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_two_runs_are_averaged_weight_by_weight_packed_or_not(model: SemanticSAM, path: Path, tmp_path: Path) -> None:
    other, out = tmp_path / "other.safetensors", tmp_path / "out.safetensors"
    ours, theirs = (dict(m.state_dict()) for m in (load(path)[0], build_model(TINY)))
    save_file(theirs, other)
    for share, only in ((0.0, ""), (0.25, ""), (1.0, ""), (0.5, "decoder.")):
        average(path, other, share, out, only)
        found = load_file(out)
        assert found.keys() == ours.keys()
        for name, value in found.items():
            mine = share if name.startswith(only) else 0.0
            torch.testing.assert_close(value, (1 - mine) * ours[name] + mine * theirs[name])
    pack(out, TINY, tmp_path / "packed")
    with pytest.raises(CheckpointError, match=r"no weights begin with 'generic\.'"):
        average(path, other, 0.5, out, "generic.")
    with pytest.raises(ConfigError, match=r"share 1\.5: expected 0"):
        average(path, other, 1.5, out)
    save_file({name: value for name, value in theirs.items() if name != "decoder.content"}, other)
    with pytest.raises(CheckpointError, match=r"other\.safetensors: does not fit .*: decoder\.content is missing"):
        average(path, other, 0.5, out)


def test_a_blended_file_keeps_what_stands_beside_the_network(model: SemanticSAM, tmp_path: Path) -> None:
    packed, run, out = (tmp_path / f"{name}.safetensors" for name in ("packed", "run", "out"))
    zeros = np.zeros((len(FEATURES), 2), np.float32)
    model.ranker = Ranker(zeros, zeros[0], zeros[0], zeros[0, 0])
    before = save(packed, model, TINY, half=True, card={"data": "none"})
    save_file(build_model(TINY).state_dict(), run)
    assert blend(packed, run, 0.0, out) == before
    assert read_header(out).card == {"data": "none"}
    blend(packed, run, 0.5, out, "decoder.", card={"minutes": 62})
    average(packed, run, 0.5, tmp_path / "average.safetensors", "decoder.")
    wanted, kept, found = (load_file(file) for file in (tmp_path / "average.safetensors", packed, out))
    assert found.keys() == kept.keys()
    for name, value in found.items():
        assert torch.equal(value, wanted[name].half() if name.startswith("decoder.") else kept[name]), name
    assert read_header(out).card == {"data": "none", "minutes": 62}
