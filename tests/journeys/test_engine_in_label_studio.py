"""A mask engine in front, in a real Label Studio: Swin-T draws, the embedded model names and learns what it is told."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import requests

from backend.demo.servers import HOST, Server, start_backend
from semsam_model.checkpoints.checkpoint import save
from semsam_model.config import read_model_config
from tests.journeys.browser import Editor
from tests.journeys.conftest import Studio
from tests.journeys.demo_process import free_port
from tests.journeys.test_click_in_label_studio import COFFEE, IN_THE_CUP, start, stored_rows
from tests.paths import CONFIGS
from tests.semsam_model.networks import structured
from tests.waiting import eventually

pytestmark = pytest.mark.browser

ROCKET = "8"  #: the key of a label that nothing there looks like, in configs/labeling.xml


@pytest.fixture
def swin_t(studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Server]]:
    """A second backend of the same Label Studio, whose Swin-T has random weights, and its address."""
    # smaller photos than the published one sees, so that a busy machine answers in time
    config = replace(read_model_config("swin_t"), resize_pixels=320)
    weights, port = tmp_path / "swin_t.safetensors", free_port()
    save(weights, structured(config), config)
    monkeypatch.setenv("SEMSAM_MODEL", "swin_t")
    monkeypatch.setenv("SEMSAM_WEIGHTS", str(weights))
    server = start_backend(port, studio.url, studio.credentials, tmp_path / "data", tmp_path / "backend.log")
    try:
        server.wait_until_healthy(120)
        eventually(lambda: requests.get(f"http://{HOST}:{port}/health", timeout=30).json()["model_state"] == "ready")
        yield f"http://{HOST}:{port}", server
    finally:
        server.stop()


def test_a_click_is_drawn_by_the_engine_named_by_the_embedded_model_taught_and_renamed(
    editor: Editor, studio: Studio, swin_t: tuple[str, Server], tmp_path: Path
) -> None:
    url, backend = swin_t
    photographs = [COFFEE, shutil.copy(COFFEE, tmp_path / "coffee-again.jpg")]
    labeling, secret = (CONFIGS / "labeling.xml").read_text(), studio.credentials.webhook_secret
    made = studio.api.make("engine", labeling, photographs, url, secret)
    start(editor, made, "click")
    answer = editor.click(IN_THE_CUP)
    editor.screenshot("12-engine")
    (offered,), (named,) = answer.regions, answer.labels
    assert answer.model_version.startswith("swin_t-") and "+mobile-" in answer.model_version
    assert offered["meta"]["model_version"] == answer.model_version
    assert named != "rocket" and f"{named} 0." in offered["meta"]["text"][0]

    editor.accept_all()
    editor.select(named)
    editor.press(ROCKET)
    editor.submit()
    (stored,) = stored_rows(studio, made.tasks[0])
    assert stored["value"]["polygonlabels"] == ["rocket"] and stored["meta"]["model_version"] == answer.model_version
    eventually(lambda: "learned from 1 regions" in backend.log.read_text())

    start(editor, made, "click", task=1)
    again = editor.click(IN_THE_CUP)
    editor.screenshot("12-engine-taught")
    assert again.labels == ["rocket"] and again.model_version == answer.model_version
