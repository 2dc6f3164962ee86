"""The training loop on a network of a few thousand parameters and photos of squares."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pycocotools import mask as coco_mask
from rich.console import Console
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from semsam_model.config import config_root, read_model_config
from semsam_model.data.folder import read_samples
from semsam_model.errors import CheckpointError, ConfigError, TrainingError
from semsam_model.network.model import build_model
from semsam_model.training.config import LossConfig, SamplingConfig, Stage, TrainConfig, read_train_config
from semsam_model.training.loop import train, train_from_config
from semsam_model.training.optimiser import learning_rate_factor, parameter_groups
from semsam_model.training.probe import innermost, pick_probes, quick_oracle
from semsam_model.training.state import optimiser_settings
from tests.paths import CONFIGS

CONFIG = TrainConfig(
    model="tiny",
    stages=(Stage(4, 64, 2), Stage(2, 96, 1)),
    sampling=SamplingConfig(prompts=4),
    loss=LossConfig(points=64, match_points=64),
    accumulate=2,
    warmup=2,
    bfloat16=False,
    threads=1,
    workers=0,
    log_every=2,
    save_every=100,
    probe_every=100,
    probe_per_source=1,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("squares")
    for split, photos in (("train", 4), ("val", 2)):
        (root / split).mkdir()
        images, annotations = [], []
        for number in range(photos):
            mask = np.zeros((64, 64), bool)
            mask[8 + number : 40, 10 : 50 - number] = True
            pixels = np.where(mask[..., None], np.uint8(220), np.uint8(30)).repeat(3, 2)
            Image.fromarray(pixels).save(root / split / f"{number}.png")
            code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 64})
            annotations.append(
                {
                    "id": number,
                    "image_id": number,
                    "category_id": 1,
                    "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
                }
            )
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]}
        (root / split / "squares.json").write_text(json.dumps(content))
    return root


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.slow
def test_a_resumed_run_repeats_an_unbroken_one_exactly(data: Path, tmp_path: Path) -> None:
    samples = read_samples(data / "train").samples
    whole = train(CONFIG, samples, tmp_path / "whole", console=quiet())
    assert (whole.stopped, whole.steps) == ("finished", 6)

    class StopAfterThree(Console):
        """Asks the run to stop, as a user would, when step 2 is reported; the step after it still ends."""

        def print(self, *objects: object, **_: object) -> None:
            if str(objects[0]).startswith("step 2"):
                os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    part = train(CONFIG, samples, tmp_path / "parts", console=StopAfterThree(file=io.StringIO()))
    assert part.stopped == "interrupted"
    assert 0 < part.steps < 6
    assert signal.getsignal(signal.SIGTERM) is before
    rest = train(CONFIG, samples, tmp_path / "parts", resume=True, console=quiet())
    assert (rest.stopped, rest.steps) == ("finished", 6)
    for name, value in load_file(whole.weights).items():
        assert torch.equal(value, load_file(rest.weights)[name]), name


def test_without_tensorboard_a_run_that_asks_for_it_stops_before_its_first_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # an import of it then fails, as if not installed
    config = dataclasses.replace(CONFIG, tensorboard=True)
    with pytest.raises(TrainingError, match=r"pip install 'semsam\[tensorboard\]'"):
        train(config, read_samples(data / "train").samples, tmp_path / "run", console=quiet())


@pytest.mark.slow
def test_loss_falls_and_the_folder_holds_weights_log_and_pictures(data: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(
        CONFIG, stages=(Stage(40, 96, 2),), accumulate=1, lr=2e-3, probe_every=20, tensorboard=True
    )
    result = train(
        config,
        read_samples(data / "train").samples,
        tmp_path / "run",
        val=read_samples(data / "val").samples,
        console=quiet(),
    )
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    assert result.oracle is not None
    assert 0 <= result.oracle.first <= result.oracle.best <= 1
    assert set(result.oracle.by_source) == {"squares"}
    with Image.open(tmp_path / "run" / "preview" / "step_000020.png") as picture:
        assert picture.height >= 192
    board = EventAccumulator(str(tmp_path / "run"))
    board.Reload()
    assert [event.step for event in board.Images("preview")] == [20, 40, 40]
    assert {"loss", "mask_dice", "oracle"} <= set(board.Tags()["scalars"])
    build_model(read_model_config("tiny")).load_state_dict(load_file(result.weights))


def test_a_yaml_file_trains_with_a_worker_and_a_time_limit(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "model: tiny\nstages: [{steps: 100000, size: 96, batch: 1}]\nsampling: {prompts: 2}\n"
        "loss: {points: 16, match_points: 16}\ntime_limit_minutes: 0.01\nanneal: time\nworkers: 1\nthreads: 1\n"
    )
    console = quiet()
    result = train_from_config(path, data=data, out=tmp_path / "run", console=console)
    assert result.stopped == "time"
    assert 0 < result.steps < 100000
    with pytest.raises(ConfigError, match="already holds a run"):
        train_from_config(path, data=data, out=tmp_path / "run", console=console)
    again = train_from_config(path, data=data, out=tmp_path / "run", resume=True, console=console)
    assert again.steps == result.steps
    assert f"resumed at step {result.steps}" in written(console)


def test_a_mixture_trains_many_to_one_in_pieces(data: Path, tmp_path: Path) -> None:
    """Three tokens, each held to the drawn mask; a source that feeds boxes alone beside one that feeds all."""
    tiny = yaml.safe_load((config_root() / "model" / "tiny.yaml").read_text())
    (tmp_path / "three.yaml").write_text(yaml.safe_dump(tiny | {"tokens": 3}))
    path, mixture = tmp_path / "run.yaml", tmp_path / "mixture.yaml"
    path.write_text(
        f"model: {tmp_path / 'three.yaml'}\nstages: [{{steps: 3, size: 96, batch: 2}}]\nsampling: {{prompts: 2}}\n"
        "loss: {mode: many_to_one, points: 16, match_points: 16}\nworkers: 0\nthreads: 1\nbfloat16: false\n"
        "log_every: 1\nprobe_per_source: 1\n"
    )
    squares = {"name": "squares", "kind": "coco", "path": "train/squares.json", "feeds": ["boxes"]}
    made = {"name": "made", "kind": "synthetic", "count": 3, "size": 64, "feeds": ["masks", "boxes", "iou"]}
    mixture.write_text(yaml.safe_dump({"sources": [squares, made]}))
    console = quiet()
    paused = train_from_config(path, data=data, mixture=mixture, out=tmp_path / "run", minutes=0, console=console)
    assert (paused.stopped, paused.steps, paused.oracle) == ("paused", 0, None)
    result = train_from_config(path, data=data, mixture=mixture, out=tmp_path / "run", resume=True, console=console)
    assert (result.stopped, result.steps) == ("finished", 3)
    assert result.oracle is not None and set(result.oracle.by_source) == {"squares"}
    assert "{'squares': 4, 'made': 3}; 2 for validation" in written(console)
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all(row["box_l1"] > 0 for row in rows if "box_l1" in row)


def test_a_loss_that_is_no_number_stops_the_run_and_names_step_and_photos(data: Path, tmp_path: Path) -> None:
    weights = {name: value.clone() for name, value in build_model(read_model_config("tiny")).state_dict().items()}
    weights["decoder.content"][:] = torch.nan
    save_file(weights, tmp_path / "broken.safetensors")
    config = dataclasses.replace(CONFIG, init=str(tmp_path / "broken.safetensors"))
    with pytest.raises(TrainingError, match=r"step 0: .*nan.*squares/\d\.png"):
        train(config, read_samples(data / "train").samples, tmp_path / "run", console=quiet())
    kept = torch.load(tmp_path / "run" / "not_finite.pt", weights_only=True)
    assert kept["step"] == 0
    assert kept["images"].shape == (2, 3, 64, 64)


def test_resuming_what_is_no_run_and_wrong_weights_are_refused_by_name(data: Path, tmp_path: Path) -> None:
    samples = read_samples(data / "train").samples
    with pytest.raises(CheckpointError, match=r"state\.pt"):
        train(CONFIG, samples, tmp_path / "none", resume=True, console=quiet())
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "state.pt").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"state\.pt"):
        train(CONFIG, samples, tmp_path / "torn", resume=True, console=quiet())
    with pytest.raises(CheckpointError, match=r"absent\.safetensors"):
        train(dataclasses.replace(CONFIG, init="absent.safetensors"), samples, tmp_path / "x", console=quiet())
    with pytest.raises(CheckpointError, match=r"absent\.safetensors"):
        train(dataclasses.replace(CONFIG, init_backbone="absent.safetensors"), samples, tmp_path / "x", console=quiet())


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


def test_every_parameter_is_trained_once_and_only_matrices_decay() -> None:
    model = build_model(read_model_config("tiny"))
    groups = parameter_groups(model, optimiser_settings(CONFIG))
    in_groups = [id(p) for group in groups for p in group["params"]]
    assert sorted(in_groups) == sorted({id(p) for p in model.parameters()})
    decays = {id(p): group["weight_decay"] > 0 for group in groups for p in group["params"]}
    rates = {id(p): group["base_lr"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        bare = parameter.ndim < 2 or not name.endswith("weight")
        assert decays[id(parameter)] is not bare, name
        assert rates[id(parameter)] == (CONFIG.lr_backbone if name.startswith("backbone") else CONFIG.lr), name
    assert not decays[id(model.decoder.level_tokens)]
    assert not decays[id(model.decoder.norm.weight)]


def test_the_logit_of_none_of_these_learns_fast_enough_to_get_anywhere() -> None:
    model = build_model(dataclasses.replace(read_model_config("tiny"), generic_queries=4))
    assert model.generic is not None
    rates = {
        id(p): group["base_lr"]
        for group in parameter_groups(model, optimiser_settings(CONFIG))
        for p in group["params"]
    }
    assert rates[id(model.generic.none)] == pytest.approx(30 * CONFIG.lr)
    assert rates[id(model.generic.level_embed)] == CONFIG.lr


def test_the_learning_rate_warms_up_and_falls_to_its_last_share() -> None:
    factors = [learning_rate_factor(step, step / 100, CONFIG.warmup, CONFIG.lr_final) for step in range(101)]
    assert factors[0] < factors[1] < factors[2]
    assert factors[2] == pytest.approx(1, abs=0.01)
    assert factors[2:] == sorted(factors[2:], reverse=True)
    assert factors[-1] == pytest.approx(CONFIG.lr_final)


def test_the_probe_clicks_the_innermost_pixel_inside_every_mask(data: Path) -> None:
    mask = np.zeros((20, 30), bool)
    mask[:9, 4:13] = True
    mask[15, :] = True
    click = innermost(mask)
    assert (click.x, click.y) == (8.5, 4.5)
    probes = pick_probes(read_samples(data / "val").samples, per_source=5)
    assert len(probes) == 2
    for probe in probes:
        for one, click in zip(probe.masks, probe.clicks, strict=True):
            assert one[int(click.y), int(click.x)]


def test_the_probe_figure_is_that_of_the_masks(data: Path) -> None:
    """A network whose every logit is positive marks the whole photo, so its IoU is the share of the wanted mask."""
    model = build_model(read_model_config("tiny")).eval()
    probes = pick_probes(read_samples(data / "val").samples, per_source=5)
    with torch.no_grad():
        for last, value in ((model.decoder.mask_head.layers[-1], 1.0), (model.pixel_decoder.mask_features, 1.0)):
            last.weight.zero_()
            last.bias.fill_(value)
    oracle = quick_oracle(model, probes, 96)
    assert oracle.best == pytest.approx(np.mean([p.masks[0].mean() for p in probes]), abs=1e-6)
    assert oracle.first == pytest.approx(oracle.best)


def test_a_run_started_outside_the_main_thread_trains(data: Path, tmp_path: Path) -> None:
    results = []
    samples = read_samples(data / "train").samples
    config = dataclasses.replace(CONFIG, stages=(Stage(1, 96, 1),))
    thread = threading.Thread(target=lambda: results.append(train(config, samples, tmp_path / "run", console=quiet())))
    thread.start()
    thread.join()
    assert results[0].steps == 1
