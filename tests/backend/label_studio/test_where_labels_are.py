"""Labels that a config does not keep inside of the control that holds the masks."""

from __future__ import annotations

import pytest

from backend.label_studio.label_config import LabelConfig
from backend.label_studio.predictions import build_prediction
from tests.backend.annotations import square
from tests.backend.label_studio.candidates import candidate

IMAGE = '<Image name="image" value="$image"/><KeyPoint name="click" toName="image" smartOnly="true"/>'

MASK = candidate(square(1, 1, 5))


def config(*parts: str) -> LabelConfig:
    return LabelConfig.parse(f"<View>{IMAGE}{''.join(parts)}</View>")


@pytest.mark.parametrize("shape", ["Brush", "Polygon", "Bitmask", "Rectangle"])
def test_labels_beside_a_plain_control_come_as_a_second_row_of_the_region(shape: str) -> None:
    labels = '<Labels name="lab" toName="image"><Label value="Banana"/></Labels>'
    own = config(labels, f'<{shape} name="shape" toName="image" smart="false"/>')
    assert not [problem for problem in own.problems() if "label" in problem]
    geometry, label = build_prediction([MASK], config=own, prompt_id="p", model_version="v")["result"]
    assert (geometry["type"], geometry["from_name"]) == (shape.lower(), "shape")
    assert (label["type"], label["from_name"], label["value"]) == ("labels", "lab", {"labels": ["Banana"]})
    assert label["id"] == geometry["id"]


def test_labels_that_a_task_brings_are_those_of_its_answer() -> None:
    own = config('<PolygonLabels name="poly" toName="image" value="$options" smart="false"/>')
    assert not own.problems()
    task = {"options": [{"value": "Tier", "alias": "animal"}, "Ding", {"other": 1}, 7]}
    assert [(label.value, label.text) for label in own.with_labels_of(task).labels] == [
        ("animal", "Tier"),
        ("Ding", "Ding"),
    ]
    assert own.with_labels_of({}) is own


def test_masks_go_before_rectangles_whatever_stands_first() -> None:
    rectangle = '<RectangleLabels name="box" toName="image" smart="false"><Label value="x"/></RectangleLabels>'
    brush = '<BrushLabels name="mask" toName="image"><Label value="x"/></BrushLabels>'
    answer, alone = config(rectangle, brush).answer, config(rectangle).answer
    assert answer and alone and (answer.name, alone.name) == ("mask", "box")


def test_what_a_model_calls_a_label_is_what_its_masks_are_compared_with() -> None:
    own = config(
        '<PolygonLabels name="m" toName="image"><Label value="Tier" predicted_values="cat, kitten"/>'
        '<Label value="Ding"/></PolygonLabels>'
    )
    assert [(label.value, label.text, label.meaning) for label in own.labels] == [
        ("Tier", "Tier", "cat"),
        ("Ding", "Ding", "Ding"),
    ]
