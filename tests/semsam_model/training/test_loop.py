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
from semsam_model.training.config import LossConfig, SamplingConfig, Stage, TrainConfig
from semsam_model.training.loop import train, train_from_config

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


def test_a_run_started_outside_the_main_thread_trains(data: Path, tmp_path: Path) -> None:
    results = []
    samples = read_samples(data / "train").samples
    config = dataclasses.replace(CONFIG, stages=(Stage(1, 96, 1),))
    thread = threading.Thread(target=lambda: results.append(train(config, samples, tmp_path / "run", console=quiet())))
    thread.start()
    thread.join()
    assert results[0].steps == 1
