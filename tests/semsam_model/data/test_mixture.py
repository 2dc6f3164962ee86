"""A mixture's file is read strictly; its samples are drawn by shares, and counted by the check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from semsam_model.config import config_root, parse_config
from semsam_model.data.check import check_mixture
from semsam_model.data.mixture import MixtureConfig, read_mixture, read_mixture_config
from semsam_model.errors import ConfigError, DataError
from semsam_model.training.batches import TrainingBatches
from semsam_model.training.config import SamplingConfig, Stage
from tests.semsam_model.houses import FILL, write_source

HOUSES: dict[str, Any] = {"name": "houses", "kind": "coco", "path": "houses.json", "feeds": ["masks", "part_names"]}
MADE: dict[str, Any] = {"name": "made", "kind": "synthetic", "count": 6, "size": 64, "feeds": ["masks", "boxes"]}


def config(*sources: dict[str, Any]) -> MixtureConfig:
    return parse_config(MixtureConfig, {"sources": list(sources)}, "mixture")


@pytest.mark.parametrize("path", sorted((config_root() / "data").glob("*.yaml")), ids=lambda path: path.name)
def test_every_mixture_that_comes_with_the_code_is_valid(path: Path) -> None:
    assert read_mixture_config(path).sources


def test_a_mixture_is_one_row_of_samples_with_shares_and_the_losses_each_source_feeds(tmp_path: Path) -> None:
    write_source(tmp_path, "houses", 4)
    path = tmp_path / "mixture.yaml"
    path.write_text(yaml.safe_dump({"sources": [HOUSES, MADE | {"weight": 7}]}))
    mixture = read_mixture(path, tmp_path)
    assert [sample.source for sample in mixture.samples] == ["houses"] * 4 + ["made"] * 6
    assert mixture.shares == {"houses": 2.0, "made": 7.0}
    house, made = mixture.samples[0], mixture.samples[-1]
    assert (
        house.supervision.masks
        and house.supervision.part_names
        and not house.supervision.object_names
        and not house.supervision.iou
    )
    assert made.supervision.boxes and not made.supervision.names
    assert house.mask(1).any() and made.image().shape == (64, 64, 3)


def test_training_shows_a_source_as_often_as_its_weight_says(tmp_path: Path) -> None:
    write_source(tmp_path, "houses", 4)
    mixture = read_mixture(config(HOUSES | {"weight": 1}, MADE | {"weight": 3, "count": 12}), tmp_path)
    sampling = SamplingConfig(prompts=4, min_area=1)
    stages = [Stage(steps=8, size=64, batch=2)]
    batches = TrainingBatches(mixture, stages, sampling, click_box=0.005, fill=FILL, seed=0)
    names = [name for index in range(len(batches)) for name in batches[index].names]
    assert sum(name.startswith("made/") for name in names) == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wieght": 1}, "unknown key 'wieght'"),
        ({"kind": "vocabulary"}, "kind: expected 'coco'.*got 'vocabulary'"),
        ({"path": None}, "needs 'path'"),
        ({"count": 3}, "takes path, images.*got 'count'"),
        ({"feeds": ["mask"]}, "houses.*feeds: expected some of .*got mask"),
        ({"feeds": []}, "got none"),
        ({"weight": -1}, "at least 0"),
        ({"weight": "much"}, "weight: expected a number"),
        ({"granularity": "whole"}, "granularity: expected 'object', 'part' or 'region'"),
        ({"names": ["a"]}, "names: expected an object"),
    ],
)
def test_a_source_that_is_not_understood_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(HOUSES | change)


def test_a_mixture_without_sources_or_with_one_name_twice_is_refused() -> None:
    for sources in ([], [MADE, MADE]):
        with pytest.raises(ConfigError, match="names of their own"):
            config(*sources)


def test_a_source_that_is_not_there_or_empty_stops_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"houses\.json"):
        read_mixture(config(HOUSES), tmp_path)
    write_source(tmp_path, "houses", 1)
    (tmp_path / "houses" / "0.png").unlink()
    with pytest.raises(DataError, match="'houses': no usable photo"):
        read_mixture(config(HOUSES), tmp_path)
    with pytest.raises(ConfigError, match="every one is 0"):
        read_mixture(config(MADE | {"weight": 0}), tmp_path)


def test_the_check_counts_everything_and_names_what_is_broken(tmp_path: Path) -> None:
    content = write_source(tmp_path, "houses", 5)
    rows = content["annotations"]
    rows[1]["segmentation"] = [[0, 0, 4, 0, 4, 4, 0, 4]]  # a window outside its house
    rows[5]["segmentation"]["counts"] = "torn"
    (tmp_path / "houses" / "4.png").write_bytes(b"no picture")
    (tmp_path / "houses" / "3.png").unlink()
    (tmp_path / "houses.json").write_text(json.dumps(content))
    shown = Console(width=200, record=True, quiet=False, file=(tmp_path / "log").open("w"))
    counted: list[int] = []
    mixture = read_mixture(config(HOUSES, MADE), tmp_path)
    checks = check_mixture(mixture, tmp_path / "out", per_source=3, console=shown, on_photo=lambda: counted.append(1))
    shown.file.close()
    houses = json.loads((tmp_path / "out" / "report.json").read_text())["by_source"]["houses"]
    assert len(counted) == len(mixture.samples) == 10
    assert houses["photos"] == 3
    assert houses["masks"] == {"object": 3, "part": 5, "region": 0}
    assert houses["labels"] == {"object": {"house": 3}, "part": {"window": 5}, "region": {}}
    assert (houses["width"], houses["height"]) == ([64, 64], [48, 48])
    assert (houses["with_parent"], houses["loose"], houses["smallest_containment"]) == (5, 1, 0.0)
    assert houses["mean_containment"] == 0.8
    assert len(houses["skipped"]) == 3
    text = shown.export_text()
    for part in ("3.png", "4.png", "region 2 (window)", "window 5", "houses", "made"):
        assert part in text
    made = checks["made"]
    assert made.photos == 6 and made.loose == 0 and made.smallest_containment == 1.0
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert np.asarray(sheet).std() > 10
