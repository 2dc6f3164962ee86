"""Answers within the time that a request has."""

import threading
from functools import partial

import pytest

from backend.inference.predictor import Predictor
from backend.label_studio.requests import parse_predict
from backend.metrics import Metrics
from backend.service.request import TimedRequest, in_time
from semsam_model.checkpoints.header import Version
from semsam_model.config import read_model_config
from semsam_model.network.model import build_model
from tests.backend.models import loaded
from tests.backend.photo_studio import body


def test_photos_that_do_not_come_hold_up_neither_the_answer_nor_each_other() -> None:
    released, begun = threading.Event(), list[str]()

    def job(name: str, stuck: bool) -> str:
        begun.append(name)
        if stuck:
            released.wait(60)
        return name

    names = ["fine", "stuck", "fine too", "stuck too", "not begun"]
    answers = in_time([partial(job, name, "stuck" in name) for name in names], 1.0, lambda: "late")
    assert answers == ["fine", "late", "fine too", "late", "late"]
    released.set()
    assert set(begun) == set(names[:4])


def test_a_request_keeps_the_model_it_began_with_and_knows_its_time() -> None:
    first, second = (loaded(build_model(read_model_config("tiny")).eval(), Version("tiny", c * 64)) for c in "ab")
    predictor = Predictor(lambda: first, cache_bytes=0, metrics=Metrics(), first_version="tiny-first")
    content = parse_predict(body(None, "a.png"))
    request = TimedRequest(content, "r1", predictor, seconds=60)
    assert request.version_name == "tiny-first"
    predictor.start()
    assert request.model() is first
    assert predictor.switch(lambda: second)
    assert request.model() is first
    assert request.version_name == first.version.version
    assert TimedRequest(content, "r2", predictor, seconds=60).version_name == second.version.version
    assert 0 < request.left_s <= 60
    assert TimedRequest(content, "r3", predictor, seconds=0).left_s == pytest.approx(0)
