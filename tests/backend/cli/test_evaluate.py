"""`semsam evaluate TASK DATASET` from the command line, on photos of which some are missing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from backend.cli.main import app
from semsam_model.checkpoints.checkpoint import load, save
from semsam_model.config import read_model_config
from semsam_model.errors import ConfigError, DataError
from semsam_model.network.model import build_model

pytestmark = pytest.mark.slow  # loads the text encoder

TEXT_DIM = 384  #: of the installed text encoder


@pytest.fixture(scope="module")
def queries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with object queries, untrained, as a weights file."""
    torch.manual_seed(0)
    config = dataclasses.replace(read_model_config("tiny"), generic_queries=4, text_dim=TEXT_DIM)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save(path, build_model(config), config)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three photos of a cup, the last with a bowl; the second is lost."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    for number in (0, 2):
        Image.fromarray(np.full((64, 64, 3), 40 * number, np.uint8)).save(folder / "images" / f"{number}.png")
    square = [[8, 8, 40, 8, 40, 40, 8, 40]]
    content = {
        "images": [{"id": n, "file_name": f"images/{n}.png", "width": 64, "height": 64} for n in range(3)],
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "bowl"}],
        "annotations": [
            {"id": n, "image_id": min(n, 2), "category_id": 1 + (n > 2), "segmentation": square} for n in range(4)
        ],
    }
    (folder / "table.json").write_text(json.dumps(content))
    return folder


def evaluate(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_what_was_skipped_is_told_and_every_label_of_the_file_is_asked(
    data: Path, queries: Path, tmp_path: Path
) -> None:
    arguments = ("instance", data, "--out", tmp_path / "out", "--model", "tiny", "--weights", queries)
    told = evaluate(*arguments, "--limit", 1)
    assert "1 of 3 photos skipped" in told and "1.png': no such photo" in told.replace("\n", "")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["by_source"]["table"]["labels"] == 2
    evaluate(*arguments)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["by_source"]["table"]["labels"] == 2


def test_queries_are_calibrated_and_the_weights_say_from_where_on_regions_are_offered(
    data: Path, queries: Path, tmp_path: Path
) -> None:
    network, _ = load(queries)
    assert network.generic is not None
    torch.nn.init.constant_(
        network.generic.proposal_score.layers[-1].get_parameter("bias"), 2.0
    )  # surer than untrained
    queries = tmp_path / "sure.safetensors"
    save(queries, network, network.config)
    out, report = tmp_path / "calibrated.safetensors", tmp_path / "report"
    command = ("calibrate-queries", "--weights", queries, "--data", data, "--out", out, "--report", report)
    result = CliRunner().invoke(app, [*map(str, command)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    content = json.loads((report / "calibration.json").read_text())
    calibration = load(out)[0].query_calibration
    assert calibration is not None and calibration.threshold == pytest.approx(content["threshold"])
    assert content["photos"] == 2 and "1.png': no such photo" in content["skipped"][0]
    groups = tmp_path / "groups.yaml"
    groups.write_text("groups: {core: [chairs]}")
    with pytest.raises(DataError, match=r"no chairs\.json; sources here: table"):
        CliRunner().invoke(app, [*map(str, command), "--groups", str(groups)], catch_exceptions=False)
    with pytest.raises(ConfigError, match="expected one of core, got wide"):
        CliRunner().invoke(
            app, [*map(str, command), "--groups", str(groups), "--group", "wide"], catch_exceptions=False
        )


def test_labels_of_training_count_as_seen_without_the_photos_and_only_where_they_are_used(
    data: Path, queries: Path, tmp_path: Path
) -> None:
    seen = tmp_path / "trained"
    seen.mkdir()
    content = json.loads((data / "table.json").read_text())
    content["annotations"] = content["annotations"][:3]
    (seen / "cups.json").write_text(json.dumps(content))
    arguments = (data, "--out", tmp_path / "out", "--model", "tiny", "--weights", queries, "--trained-on", seen)
    evaluate("open-vocabulary", *arguments)
    figures = json.loads((tmp_path / "out" / "report.json").read_text())["by_source"]["table"]
    assert figures["n_seen"] == 2 and figures["n_unseen"] == 1
    with pytest.raises(ConfigError, match="labels of training: only for the task open-vocabulary"):
        evaluate("parts", *arguments)
    with pytest.raises(DataError, match="lost"):
        evaluate("open-vocabulary", *arguments[:-1], tmp_path / "lost")
