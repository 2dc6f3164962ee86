"""From the command line: training data are made and checked, ranker and borders are learned, weights converted."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from semsam_model.checkpoints.checkpoint import BORDERS, load, read_weights
from semsam_model.checkpoints.header import EMBEDDED, read_header, weights_path
from semsam_model.network.merge_cost import LearnedCost
from tests.backend.cli.semsam import semsam

SIZE = (75, 121)


@pytest.fixture
def annotated(tmp_path: Path) -> Path:
    """Two photos of a bright square, one a source."""
    for source in ("near", "far"):
        pixels = np.random.default_rng(1).integers(0, 60, (*SIZE, 3), np.uint8)
        pixels[20:50, 30:80] += 150
        (tmp_path / source).mkdir()
        Image.fromarray(pixels).save(tmp_path / source / "0.png")
        content = {
            "images": [{"id": 1, "file_name": f"{source}/0.png", "width": SIZE[1], "height": SIZE[0]}],
            "categories": [{"id": 1, "name": "square"}],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[30, 20, 80, 20, 80, 50, 30, 50]]}
            ],
        }
        (tmp_path / f"{source}.json").write_text(json.dumps(content))
    return tmp_path


@pytest.mark.slow
def test_a_ranker_is_trained_into_weights_and_measured(annotated: Path, weights: Path, tmp_path: Path) -> None:
    ranked, out = tmp_path / "ranked.safetensors", tmp_path / "out"
    result = semsam("train-ranker", "--weights", weights, "--data", annotated, "--out", ranked)
    assert result.code == 0, result.stderr
    assert read_header(ranked).card["ranker"]["photos"] == 2
    result = semsam(
        *("evaluate", "clicks", annotated, "--out", out, "--model", "tiny", "--weights", ranked),
        *("--noc", 1, "--grabcut", 1),
    )
    assert result.code == 0, result.stderr
    content = json.loads((out / "report.json").read_text())
    assert content["ranker"] == "learned"
    assert set(content["by_source"]) == {"near", "far"}
    for row in content["by_source"].values():
        assert row["n"] == 1
        assert all(0 <= row[measure] <= 100 for measure in ("oracle", "first", "told", "max"))
        assert 1 <= row["noc80"] <= row["noc90"] <= 20
    assert set(content["baselines"]) == {"predicted_iou", "largest", "grabcut"}
    assert (out / "report.html").read_text().startswith("<!doctype html>")


@pytest.mark.slow
def test_borders_are_learned_into_weights_whose_network_and_ranker_stay(
    annotated: Path, weights: Path, tmp_path: Path
) -> None:
    ranked, out, again = (tmp_path / f"{name}.safetensors" for name in ("ranked", "out", "again"))
    assert semsam("train-ranker", "--weights", weights, "--data", annotated, "--out", ranked).code == 0
    for path in (out, again):
        result = semsam("train-borders", "--weights", ranked, "--data", annotated, "--out", path)
        assert result.code == 0, result.stderr
    assert read_header(out).card["borders"]["photos"] == 2
    assert read_header(out).version == read_header(again).version, "the same seed gives the same borders"
    (_, network, beside), (_, network_before, ranker) = read_weights(out), read_weights(ranked)
    for name, tensor in (network_before | ranker).items():
        assert torch.equal((network | beside)[name], tensor), name
    assert any(name.startswith(BORDERS) for name in beside)
    model, _ = load(out)
    assert isinstance(model.merge_cost, LearnedCost)


def test_convert_refuses_what_is_no_checkpoint(tmp_path: Path) -> None:
    source = tmp_path / "in.pth"
    source.write_bytes(b"not a checkpoint")
    result = semsam("weights", "convert", source, "--model", "swin_t", "--out", tmp_path / "out.safetensors")
    assert result.code == 1 and str(source) in result.stderr
    assert not (tmp_path / "out.safetensors").exists()


def test_made_data_is_written_and_checked(tmp_path: Path) -> None:
    made = semsam("data", "make", "--out", tmp_path, "--count", 2, "--size", 64)
    assert made.code == 0, made.stderr
    config = tmp_path / "mixture.yaml"
    config.write_text("sources: [{name: made, kind: coco, path: synthetic.json, feeds: [masks, object_names]}]")
    checked = semsam("data", "check", config, "--root", tmp_path, "--out", tmp_path / "out")
    assert checked.code == 0, checked.stderr
    assert json.loads((tmp_path / "out" / "report.json").read_text())["by_source"]["made"]["photos"] == 2
    assert (tmp_path / "out" / "contact_sheet.png").stat().st_size > 0
    lost = semsam("data", "check", config, "--root", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert lost.code == 1 and "synthetic.json" in lost.stderr and "Traceback" not in lost.stderr


@pytest.mark.slow
def test_photos_marked_partial_are_completed_trained_on_and_packed(annotated: Path, tmp_path: Path) -> None:
    content = json.loads((annotated / "near.json").read_text())
    content["images"][0]["partial"] = True
    (annotated / "near.json").write_text(json.dumps(content))
    config, out = tmp_path / "config.yaml", tmp_path / "added"
    kinds = [{"name": name, "kind": "coco", "path": f"{name}.json", "feeds": ["masks"]} for name in ("near", "far")]
    config.write_text(yaml.safe_dump({"sources": kinds}))
    asked = ("--weights", weights_path(EMBEDDED), "--least-iou", 0.1, "--least-stability", 0.1)
    done = semsam("data", "complete", config, "--root", annotated, "--out", out, *asked)
    assert done.code == 0, done.stderr
    assert "masks on 1 photos" in done.stdout and not (out / "far.jsonl").exists()
    short = tmp_path / "short.yaml"
    short.write_text(
        "{model: tiny, stages: [{steps: 1, size: 64, batch: 2}], sampling: {prompts: 4}, bfloat16: false, workers: 0}"
    )
    mixture = ("--data-config", out / "mixture.yaml", "--root", annotated)
    run = semsam("train", "--config", short, *mixture, "--out", tmp_path / "run")
    assert run.code == 0, run.stderr
    packed = semsam("data", "pack", out / "mixture.yaml", "--root", annotated, "--out", tmp_path / "packed")
    assert packed.code == 0, packed.stderr
    mixture = ("--data-config", tmp_path / "packed" / "mixture.yaml", "--root", tmp_path / "packed")
    again = semsam("train", "--config", short, *mixture, "--out", tmp_path / "again")
    assert again.code == 0, again.stderr
