"""A published checkpoint, converted, learns names and corrections, is packed, and answers a click with names."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file, save_file

from semsam_model.checkpoints.checkpoint import load
from semsam_model.checkpoints.published import convert, published_shapes
from semsam_model.checkpoints.run_weights import pack
from semsam_model.config import read_model_config
from semsam_model.errors import CheckpointError
from semsam_model.inference.naming import name_candidates
from semsam_model.inference.predict import predict_candidates
from semsam_model.text_encoder import TextEncoder
from semsam_model.training.config import read_train_config
from semsam_model.training.distributed import Distributed
from semsam_model.training.loop import train_from_config
from semsam_model.training.state import Run
from semsam_model.types import Click, LabelSet, Prompt
from tests.semsam_model.published_rule import rule_weights

TINY = read_model_config("tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Converted weights of the tiny model, and files to fine-tune them with, as for Swin-T."""
    folder = tmp_path_factory.mktemp("published")
    torch.save({"model": rule_weights(published_shapes(TINY), TINY.swin_window)}, folder / "tiny.pth")
    convert(folder / "tiny.pth", "tiny", folder / "tiny.safetensors")
    model = TINY.to_dict() | {"name": "tiny_names", "text_dim": 384, "name_features": True, "corrections": True}
    (folder / "tiny_names.yaml").write_text(yaml.safe_dump(model))
    made = {"name": "made", "kind": "synthetic", "count": 4, "size": 96}
    feeds = ["masks", "boxes", "iou", "object_names", "part_names"]
    (folder / "mixture.yaml").write_text(yaml.safe_dump({"sources": [made | {"feeds": feeds}]}))
    (folder / "train.yaml").write_text(
        f"model: {folder / 'tiny_names.yaml'}\ninit: {folder / 'tiny.safetensors'}\n"
        "stages: [{steps: 2, size: 96, batch: 1}]\nsampling: {prompts: 4}\nrounds: {prompts: 2}\n"
        "loss: {points: 64, match_points: 64, names: 1.0}\nworkers: 0\nthreads: 1\nbfloat16: false\nema: 0.0\n"
    )
    return folder


def test_everything_published_is_kept_but_projections_of_another_text_encoder(folder: Path, tmp_path: Path) -> None:
    run = Run(read_train_config(folder / "train.yaml"), tmp_path, Distributed(torch.device("cpu")))
    published, ours = load_file(folder / "tiny.safetensors"), run.model.state_dict()
    assert set(published) <= set(ours)
    kept = {name for name, value in published.items() if torch.equal(value, ours[name])}
    assert set(published) - kept == {"decoder.object_projection", "decoder.part_projection"}
    assert set(run.fresh) == set(ours) - kept


@pytest.mark.slow
def test_a_fine_tune_of_published_weights_answers_a_click_with_names(folder: Path, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=300)
    result = train_from_config(
        folder / "train.yaml", data=folder, mixture=folder / "mixture.yaml", out=tmp_path / "run", console=console
    )
    assert isinstance(console.file, io.StringIO)
    assert "decoder.object_projection" in console.file.getvalue() and "made objects" in console.file.getvalue()
    pack(result.weights, read_model_config(folder / "tiny_names.yaml"), tmp_path / "tiny_names.safetensors")
    model, version = load(tmp_path / "tiny_names.safetensors")
    assert version.name == "tiny_names"
    words = ("house", "window", "car")
    labels = LabelSet(words, ("object", "part", None), TextEncoder().embed(words).numpy())
    rgb = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    clicks = (Click(60, 45), Click(20, 20, positive=False))
    named = name_candidates(predict_candidates(model, model.encode(rgb), Prompt(clicks)), labels, 0)
    assert named and all({name for name, _ in c.names} == set(words) and c.label in words for c in named)


def test_weights_of_another_network_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    published = load_file(folder / "tiny.safetensors")
    published["decoder.norm.weight"] = published["decoder.norm.weight"][:8]
    save_file(published, tmp_path / "other.safetensors")
    text = (
        (folder / "train.yaml").read_text().replace(f"{folder / 'tiny.safetensors'}", f"{tmp_path}/other.safetensors")
    )
    (tmp_path / "train.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=r"other\.safetensors.*\n?.*decoder\.norm\.weight"):
        Run(read_train_config(tmp_path / "train.yaml"), tmp_path, Distributed(torch.device("cpu")))
