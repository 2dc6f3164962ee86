"""A photo that nobody has clicked: one clean set of regions, the same from the service whenever it is asked."""

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.inference.preannotation import UNFINISHED
from backend.label_studio.label_config import LabelConfig
from backend.metrics import Metrics
from backend.service.service import SemsamService, build_service
from semsam_model.checkpoints.checkpoint import load
from semsam_model.masks.codecs import decode_brush_rle
from tests.backend.photo_studio import CONFIG, NAMED, Files, body, serving
from tests.backend.preannotating import built, settings


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving(Files()) as url:
        yield url


@pytest.fixture
def service(server: str, region_weights: Path, tmp_path: Path) -> Iterator[SemsamService]:
    with built(settings(server, region_weights, tmp_path)) as made:
        yield made


def geometry(prediction: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in prediction["result"] if row["type"] == "brushlabels"]


def mask(row: dict[str, Any]) -> np.ndarray:
    return np.asarray(decode_brush_rle(row["value"]["rle"], (row["original_height"], row["original_width"])))


@pytest.mark.parametrize("config", [CONFIG, NAMED])
def test_a_photo_without_a_click_gets_named_regions_that_do_not_overlap_within_a_kind(
    service: SemsamService, config: str
) -> None:
    (answer,) = service.predict_request(body(None, "a.png", config=config), "r1")
    rows = geometry(answer)
    parts = {label.value for label in LabelConfig.parse(config).labels if label.kind == "part"}
    known = {label.value for label in LabelConfig.parse(config).labels}
    assert len(rows) > 1
    labels = [row["value"]["brushlabels"][0] for row in rows]
    assert set(labels) <= known
    for of_parts in (True, False):
        masks = [mask(row) for row, label in zip(rows, labels, strict=True) if (label in parts) == of_parts]
        assert not masks or np.sum(masks, axis=0).max() == 1
    areas = [mask(row).sum() for row in rows]
    assert areas == sorted(areas, reverse=True)  # drawn in this order: no part lies under its whole
    held = {row["id"]: (mask(row), label) for row, label in zip(rows, labels, strict=True)}
    for row, label in zip(rows, labels, strict=True):
        if "parentID" in row:
            whole, name = held[row["parentID"]]
            assert label in parts and name not in parts
            assert (mask(row) & whole).sum() >= 0.7 * mask(row).sum()


def test_asked_twice_it_says_the_same_to_the_byte(service: SemsamService) -> None:
    first, second = (service.predict_request(body(None, "a.png"), name) for name in ("r1", "r2"))
    assert first == second


@pytest.mark.slow
def test_threshold_and_number_are_obeyed(server: str, region_weights: Path, tmp_path: Path) -> None:
    few = dataclasses.replace(settings(server, region_weights, tmp_path), preannotate_regions=1)
    none = dataclasses.replace(few, preannotate_threshold=1.0)
    counts = []
    for chosen in (few, none):
        with contextlib.closing(build_service(chosen, Metrics())) as made:
            counts.append(len(geometry(made.predict_request(body(None, "a.png"), "r")[0])))
    assert counts == [1, 0]


def test_what_no_time_is_left_for_comes_back_empty_under_a_version_that_is_asked_again(
    server: str, region_weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hurried = settings(server, region_weights, tmp_path, preannotate_seconds=1e-9)
    with contextlib.closing(build_service(hurried, Metrics())) as made, caplog.at_level(logging.INFO):
        answers = made.predict_request(body(None, "a.png", "b.png"), "r9")
    assert [a["result"] for a in answers] == [[], []]
    assert all(a["model_version"].endswith(UNFINISHED) for a in answers)
    assert "the setting preannotate_seconds" in caplog.text
    assert load(region_weights)[1].version in answers[0]["model_version"]


def test_a_photo_that_cannot_be_read_is_asked_again_and_the_others_are_answered(service: SemsamService) -> None:
    broken, fine = service.predict_request(body(None, "broken.png", "a.png"), "r3")
    assert broken["result"] == [] and broken["model_version"].endswith(UNFINISHED)
    assert fine["result"] and not fine["model_version"].endswith(UNFINISHED)


def test_without_a_text_encoder_nothing_is_labelled_that_would_need_it(
    server: str, region_weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "encoder").mkdir()
    blind = settings(server, region_weights, tmp_path, text_encoder=str(tmp_path / "encoder"))
    with built(blind) as made:
        (named,) = made.predict_request(body(None, "a.png", config=NAMED), "r4")
        (plain,) = made.predict_request(body(None, "a.png"), "r5")
    assert named["result"] == [] and named["model_version"].endswith(UNFINISHED)
    assert plain["result"] and not plain["model_version"].endswith(UNFINISHED)
    (reason,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("request r4")]
    assert "without the text encoder" in reason and f"{tmp_path / 'encoder'}: expected" in reason


def test_a_single_photo_that_does_not_come_is_given_up_too(
    region_weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    come = threading.Event()

    class Slow(Files):
        @property
        def content(self) -> dict[str, bytes]:
            come.wait(60)
            return self.held

        @content.setter
        def content(self, held: dict[str, bytes]) -> None:
            self.held = held

    with serving(Slow()) as url:
        hurried = settings(url, region_weights, tmp_path, preannotate_seconds=1.0)
        with contextlib.closing(build_service(hurried, Metrics())) as made:
            (answer,) = made.predict_request(body(None, "a.png"), "r")
            come.set()
    assert "request r: empty answer (no_time)" in caplog.text
    assert answer["result"] == [] and answer["model_version"].endswith(UNFINISHED)
