"""The engine of docs/run/engines.md is what it says: one file, at most 60 lines, and the whole loop works with it."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from backend.cli.main import app
from semsam_model.checkpoints.checkpoint import load, load_model
from semsam_model.checkpoints.header import read_header, weights_path
from semsam_model.engines.open_engine import open_engine
from semsam_model.inference.engine import DescribedEngine
from semsam_model.inference.predict import predict_candidates
from semsam_model.inference.zoom import crop_encoder
from semsam_model.types import Box, Click, Prompt
from tests.paths import ROOT

GUIDE = ROOT / "docs" / "run" / "engines.md"


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (code,) = re.findall(r"```python\n(# magic_wand.py\n.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 60
    (tmp_path / "magic_wand.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "magic_wand", raising=False)
    return "magic_wand:8,20,45"


def test_the_example_fills_colours_and_everything_else_comes_with_it(spec: str) -> None:
    rgb = np.full((96, 128, 3), 40, np.uint8)
    rgb[20:70, 30:90] = (200, 60, 60)
    rgb[60:66, 40:46] = (30, 200, 30)
    describer, _ = load_model()
    model = DescribedEngine(open_engine(spec).engine, describer)
    embedding = model.encode(rgb)
    for prompt in (Prompt((Click(60, 40),)), Prompt((), (Box(28, 18, 92, 72),))):
        first, *_ = predict_candidates(model, embedding, prompt, encode_crop=crop_encoder(model, rgb))
        assert np.mean(first.mask[22:58, 32:88]) == 1 and first.mask[:18].sum() == 0
        assert first.name_embedding is not None and 0 <= first.score <= 1


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A photo of a tile."""
    data = tmp_path / "data"
    data.mkdir()
    rgb = np.full((64, 64, 3), 30, np.uint8)
    rgb[8:40, 8:40] = 220
    Image.fromarray(rgb).save(data / "0.png")
    square = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[8, 8, 40, 8, 40, 40, 8, 40]]}
    content = {"images": [{"id": 1, "file_name": "0.png", "width": 64, "height": 64}], "annotations": [square]}
    (data / "tiles.json").write_text(json.dumps(content | {"categories": [{"id": 1, "name": "tile"}]}))
    return data


def semsam(*arguments: object) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_evaluate_clicks_compares_engines_in_one_table(spec: str, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    printed = semsam("evaluate", "clicks", data, "--out", out, "--engine", spec, "--noc", 1, "--grabcut", 0)
    reports = {path.parent.name: json.loads(path.read_text()) for path in out.glob("*/report.json")}
    assert len(reports) == 2 and "one click, mean over sources" in printed
    (wand,) = (report for name, report in reports.items() if name.startswith("magic_wand-"))
    assert wand["mean_over_sources"]["oracle"] > 95


def test_the_order_is_fitted_to_what_an_engine_proposes(spec: str, data: Path, tmp_path: Path) -> None:
    embedded, out = weights_path("mobile"), tmp_path / "for_wand.safetensors"
    semsam("train-ranker", "--weights", embedded, "--data", data, "--out", out, "--engine", spec, "--no-names")
    (before, _), (after, _) = load(embedded), load(out)
    assert before.ranker and after.ranker and not np.array_equal(before.ranker.hidden, after.ranker.hidden)
    assert read_header(out).card["ranker"]["engine"].startswith("magic_wand-")
