"""Tasks with several photos: each prompt, answer and region belongs to one <Image> tag and page of its task."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backend.errors import BadRequest
from backend.label_studio.annotations import MalformedRegion, parse_annotation
from backend.label_studio.label_config import LabelConfig
from backend.label_studio.predictions import build_prediction
from backend.label_studio.requests import PredictRequest, parse_predict
from tests.backend.annotations import annotation, brush_row, square
from tests.backend.label_studio.candidates import candidate

ANSWER = '<BrushLabels name="mask{0}" toName="{0}" smart="false"><Label value="object"/></BrushLabels>'
TOOL = '<KeyPoint name="click{0}" toName="{0}" smartOnly="true"/>'


def image(name: str, value: str) -> str:
    return f'<Image name="{name}" {value}/>' + ANSWER.format(name) + TOOL.format(name)


TWO = "<View>" + image("left", 'value="$a"') + image("right", 'value="$b"') + "</View>"
PAGES = "<View>" + image("page", 'valueList="$pages"') + "</View>"
MASK = candidate(square(1, 1, 5))


def click(control: str, **more: Any) -> dict[str, Any]:
    size = {"original_width": 8, "original_height": 6}
    return {"type": "keypoint", "from_name": control, "value": {"x": 50, "y": 50, "width": 1}, **size, **more}


def request(config: str, data: dict[str, Any], *rows: dict[str, Any]) -> PredictRequest:
    body = {"label_config": config, "tasks": [{"id": 1, "data": data}], "params": {"context": {"result": list(rows)}}}
    return parse_predict(json.loads(json.dumps(body)))


@pytest.mark.parametrize("named", [{"to_name": "right"}, {}])
def test_a_click_on_the_second_image_is_answered_on_the_second_image(named: dict[str, str]) -> None:
    earlier = click("clickleft", id="1", to_name="left")
    asked = request(TWO, {"a": "/a.png", "b": "/b.png"}, earlier, click("clickright", id="2", **named))
    assert (asked.tasks[0].image_url, asked.config.image_name) == ("/b.png", "right")
    assert not asked.of_first_photo
    assert asked.context is not None
    assert [row.id for row in asked.context] == ["2"]
    assert any("'left'" in why for why in asked.ignored)
    (row,) = build_prediction([MASK], config=asked.config, prompt_id="p", model_version="v")["result"]
    assert (row["to_name"], row["from_name"]) == ("right", "maskright")


def test_a_click_on_a_page_is_answered_on_that_page() -> None:
    data = {"pages": ["/1.png", "/2.png"]}
    asked = request(PAGES, data, click("clickpage", id="1"), click("clickpage", id="2", item_index=1))
    assert (asked.tasks[0].image_url, asked.page, len(asked.context or ())) == ("/2.png", 1, 1)
    made = build_prediction([MASK], config=asked.config, prompt_id="p", model_version="v", page=asked.page)
    assert [row["item_index"] for row in made["result"]] == [1]


@pytest.mark.parametrize(
    ("config", "data", "row", "words"),
    [
        (PAGES, {"pages": ["/1.png"]}, click("clickpage", item_index=1), "at least 2 pages, got 1 pages"),
        (PAGES, {"pages": "/1.png"}, click("clickpage"), "expected the addresses of at least 1 pages"),
        (TWO, {"a": "/a.png", "b": "/b.png"}, click("clickleft", item_index=1), "one photo a task"),
        (TWO, {"a": "/a.png"}, click("clickright"), "'b'"),
    ],
)
def test_a_photo_that_is_not_there_is_named(config: str, data: dict[str, Any], row: dict[str, Any], words: str) -> None:
    task = request(config, data, row).tasks[0]
    assert task.image_url is None and words in (task.problem or "")


def test_a_click_on_an_image_that_the_config_has_not_is_refused() -> None:
    with pytest.raises(BadRequest, match="'middle'"):
        request(TWO, {"a": "/a.png", "b": "/b.png"}, click("clickleft", to_name="middle"))


@pytest.mark.parametrize(
    ("config", "other"), [(TWO, {"to_name": "right"}), (PAGES, {"to_name": "page", "item_index": 1})]
)
def test_a_region_of_another_photo_of_the_task_is_never_one_of_the_first(config: str, other: dict[str, Any]) -> None:
    first = LabelConfig.parse(config)
    own = brush_row("own", square(1, 1, 5)) | {"to_name": first.image_name}
    regions = list(
        parse_annotation(annotation(1, [own, brush_row("other", square(1, 1, 5)) | other]), project=1).regions(first)
    )
    assert [(each.id, isinstance(each, MalformedRegion)) for each in regions] == [("own", False), ("other", True)]
    assert isinstance(regions[1], MalformedRegion) and repr(other["to_name"]) in regions[1].problem
