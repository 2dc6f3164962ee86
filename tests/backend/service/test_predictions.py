"""A Label Studio request in, a prediction for each task out, over a real HTTP server with real photo files."""

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.metrics import Metrics
from backend.service.service import SemsamService, assemble, build_service
from backend.settings import Settings
from backend.web.app import create_app
from semsam_model.checkpoints.checkpoint import load
from semsam_model.checkpoints.header import read_header
from semsam_model.errors import CheckpointError
from semsam_model.inference.predict import predict_candidates
from semsam_model.types import Click, Prompt
from tests.backend.photo_studio import CONFIG, Files, body, keypoint, masks, photo, png, serving
from tests.backend.studio_http import TOKEN


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Files]]:
    files = Files()
    with serving(files) as url:
        yield url, files


@pytest.fixture
def service(server: tuple[str, Files], weights: Path, tmp_path: Path) -> Iterator[SemsamService]:
    server[1].fetched.clear()
    settings = Settings(
        label_studio_url=server[0], label_studio_api_key=TOKEN, model="tiny", weights=weights, data_dir=tmp_path
    )
    with contextlib.closing(build_service(settings, Metrics())) as service:
        yield service


def test_a_click_returns_the_models_masks_on_the_right_pixels_best_last(service: SemsamService, weights: Path) -> None:
    (prediction,) = service.predict_request(body([keypoint(25, 50)], "a.png"), "r1")
    model, version = load(weights)
    expected = predict_candidates(model, model.encode(photo(0)), Prompt((Click(21, 30),)))
    assert prediction["model_version"] == version.version
    offered = masks(prediction)
    assert len(offered) == len(expected)
    np.testing.assert_array_equal(offered[-1], expected[0].mask)


def test_each_task_gets_one_entry_in_order_whatever_happens_to_the_others(
    service: SemsamService, caplog: pytest.LogCaptureFixture
) -> None:
    asked = body([keypoint(25, 50)], "a.png", "missing.png", "broken.png", "b.png")
    asked["tasks"].insert(1, "no task")
    with caplog.at_level(logging.INFO):
        answers = service.predict_request(asked, "r7")
    assert [bool(a["result"]) for a in answers] == [True, False, False, False, True]
    assert "tasks[1]: expected an object" in caplog.text
    assert "r7" in caplog.text and "missing.png" in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (None, "no click or box"),
        ([], "no click or box"),
        ([keypoint(25, 50, positive=False)], "no positive point"),
        ([keypoint(25, 50, original_width=60, original_height=84)], "exchanged"),
    ],
)
def test_an_empty_answer_is_logged_with_its_reason(
    service: SemsamService, caplog: pytest.LogCaptureFixture, rows: list[dict[str, Any]] | None, why: str
) -> None:
    with caplog.at_level(logging.INFO):
        (answer,) = service.predict_request(body(rows, "a.png"), "r2")
    assert answer["result"] == []
    assert why in caplog.text


def test_empty_answers_are_counted_at_the_project_that_got_them(service: SemsamService) -> None:
    one, two = body([], "a.png"), body([keypoint(25, 50)], "missing.png", "missing.png") | {"project": "2.17"}
    for task in two["tasks"]:
        task["project"] = 2
    for sent in (one, two):
        service.predict_request(sent, "r")
    http = create_app(Settings(), service, service.metrics).test_client()
    http.post("/predict", json={"project": "3.17", "tasks": [{}]})  # no labeling config: refused as a whole
    http.post("/predict", json={"project": ["?"], "tasks": [{}]})
    counted = {path.project and path.project.project: path.empty_answers for path in service.status().paths}
    assert counted == {1: {"no_prompt": 1}, 2: {"NotFound": 2}, 3: {"BadRequest": 1}, None: {"BadRequest": 1}}


@pytest.mark.parametrize("odd", ["NaN", "Infinity", "1e999"])
def test_a_coordinate_that_is_no_number_gives_an_empty_answer_with_its_reason_over_http(
    service: SemsamService, caplog: pytest.LogCaptureFixture, odd: str
) -> None:
    http = create_app(Settings(), service, Metrics()).test_client()
    sent = json.dumps(body([keypoint(25, 50)], "a.png", "b.png")).replace('"x": 25', f'"x": {odd}')
    answer = http.post("/predict", data=sent)
    assert answer.status_code == 200
    assert [entry["result"] for entry in answer.json["results"]] == [[], []]
    assert "result[0].value.x: expected a percent number" in caplog.text


def test_a_photo_with_exif_orientation_gets_the_same_masks_as_its_upright_twin(service: SemsamService) -> None:
    (upright,) = service.predict_request(body([keypoint(25, 50)], "a.png"), "r3")
    (turned,) = service.predict_request(body([keypoint(25, 50)], "turned.png"), "r4")
    for a, b in zip(masks(upright), masks(turned), strict=True):
        np.testing.assert_array_equal(a, b)


def test_further_clicks_fetch_the_photo_no_more(service: SemsamService, server: tuple[str, Files]) -> None:
    for x in (25, 30, 60):
        service.predict_request(body([keypoint(x, 50)], "a.png"), "r5")
    assert server[1].fetched == ["/data/upload/1/a.png"]


def test_two_servers_with_the_same_project_id_and_path_keep_their_pictures_and_tokens_apart(
    server: tuple[str, Files], weights: Path, tmp_path: Path
) -> None:
    path, other_token = "/data/upload/1/a.png", "f" * 40
    other = Files()
    other.content[path] = png(photo(7)[:48])
    with serving(other, other_token) as other_url:
        settings = Settings(
            label_studio_url=server[0],
            label_studio_api_key=TOKEN,
            label_studio_keys={other_url: other_token},
            model="tiny",
            weights=weights,
            data_dir=tmp_path,
        )
        with contextlib.closing(build_service(settings, Metrics())) as service:
            for project, url in (("1.17", server[0]), ("1.18", other_url)):
                service.setup({"project": project, "schema": CONFIG, "hostname": url})
            server[1].fetched.clear()
            sizes = []
            for project, height in (("1.17", 60), ("1.18", 48), ("1.17", 60)):
                asked = body([keypoint(25, 50, original_height=height)], "a.png") | {"project": project}
                (answer,) = service.predict_request(asked, "r")
                sizes += [masks(answer)[0].shape]
    assert sizes == [(60, 84), (48, 84), (60, 84)]
    assert (server[1].fetched, other.fetched) == ([path], [path])


def test_a_click_offers_one_candidate_and_the_next_at_each_further_click(service: SemsamService) -> None:
    everything = masks(service.predict_request(body([keypoint(25, 50)], "a.png"), "r")[0])
    assert len(everything) > 1
    seen = []
    rows = []
    for step in range(len(everything)):
        rows.append(keypoint(25 + step * 0.1, 50, control="click"))
        (mask,) = masks(service.predict_request(body(rows, "a.png"), "r")[0])
        seen.append(mask)
    np.testing.assert_array_equal(seen[0], everything[-1])
    for i, mask in enumerate(seen):
        assert not any((mask == other).all() for other in seen[:i])


def test_it_can_be_called_as_label_studio_ml_calls_it(service: SemsamService) -> None:
    request = body([keypoint(25, 50)], "a.png")
    through = service.predict(request["tasks"], {"result": [keypoint(25, 50)]}, label_config=CONFIG, project="1.17")
    (direct,) = service.predict_request(request, "r6")
    assert [m.sum() for m in masks(through[0])] == [m.sum() for m in masks(direct)]
    assert service.fit("START_TRAINING", {"project": {"id": 1}})["action"] == "START_TRAINING"


def test_setup_and_health_name_the_version_before_the_model_is_loaded(
    server: tuple[str, Files], weights: Path, tmp_path: Path
) -> None:
    settings = Settings(label_studio_url=server[0], model="tiny", weights=weights, data_dir=tmp_path)
    version = read_header(weights).version.version
    with contextlib.closing(assemble(settings, Metrics())) as service:
        assert service.health() == {"status": "UP", "model_version": version, "model_state": "loading"}
        asked = {"project": "1.17", "schema": CONFIG, "hostname": server[0], "access_token": "x", "extra_params": "{}"}
        assert service.setup(asked) == {"model_version": version}


def test_missing_weights_stop_the_start(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.safetensors"):
        build_service(Settings(model="tiny", weights=tmp_path / "none.safetensors", data_dir=tmp_path), Metrics())


def test_setup_says_in_the_log_what_is_wrong_with_a_labeling_config(
    service: SemsamService, server: tuple[str, Files], caplog: pytest.LogCaptureFixture
) -> None:
    for schema in ('<View><Image name="image" value="$image"/></View>', "<View", CONFIG):
        service.setup({"project": "1.17", "schema": schema, "hostname": server[0], "access_token": "canary-token"})
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) >= 2 and "PolygonLabels" in warnings[0]
    assert "canary-token" not in caplog.text
