"""Names in a real Label Studio: objects and parts by the project's own labels, a name that is looked for, no name."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from backend.demo.project import DemoProject
from tests.journeys.browser import Editor
from tests.journeys.conftest import Studio
from tests.journeys.test_click_in_label_studio import COFFEE, IN_THE_CUP, MakeProject, mask_of, start
from tests.paths import CONFIGS, SAMPLES

pytestmark = pytest.mark.browser

ASTRONAUT = SAMPLES / "astronaut.jpg"
ON_THE_SUIT = (0.30, 0.70)
PEOPLE = (
    '<Label value="person" kind="object"/>',
    '<Label value="car" kind="object"/>',
    '<Label value="shirt" alias="upper garment" of="person"/>',
    '<Label value="wheel" of="car"/>',
)
#: Words for one thing: no picture tells them apart.
#: Words for one thing: none of them can be much better than the others.
SAME = ("cup", "a cup", "the cup", "one cup", "this cup", "small cup", "mug", "teacup", "coffee cup", "tea cup")
CUPS = tuple(f'<Label value="{word}" kind="object"/>' for word in SAME)


@pytest.fixture
def project_of(project: MakeProject, tmp_path: Path) -> Callable[[Path, Sequence[str]], DemoProject]:
    """The project of configs/labeling.xml with labels of its own and a text prompt called "find"."""

    def make(photo: Path, labels: Sequence[str]) -> DemoProject:
        labeling = (CONFIGS / "labeling.xml").read_text()
        labeling, found = re.subn(
            r"(<PolygonLabels[^>]*>).*?(</PolygonLabels>)", rf"\1{''.join(labels)}\2", labeling, flags=re.S
        )
        assert found == 1
        config = tmp_path / "labeling.xml"
        config.write_text(labeling.replace("</View>", '<TextArea name="find" toName="image"/></View>'))
        return project([photo], str(config))

    return make


def label_of(row: dict[str, Any]) -> str:
    return row["value"]["polygonlabels"][0]


def note_of(row: dict[str, Any]) -> str:
    (note,) = row["meta"]["text"]
    return note


def test_the_whole_is_named_by_an_object_label_and_its_part_by_a_part_label(
    editor: Editor, studio: Studio, project_of: Callable[..., DemoProject]
) -> None:
    made = project_of(ASTRONAUT, PEOPLE)
    start(editor, made, "click_all")
    answer = editor.click(ON_THE_SUIT)
    editor.screenshot("7-names")
    assert {"person", "upper garment"} <= set(answer.labels)  # the alias is what regions carry
    of = {label: [row for row in answer.regions if label_of(row) == label] for label in answer.labels}
    whole = max(of["person"], key=lambda row: mask_of(row).sum())
    part = max(of["upper garment"], key=lambda row: row["score"])
    assert (mask_of(part) & mask_of(whole)).sum() > 0.8 * mask_of(part).sum()
    assert mask_of(part).sum() < 0.8 * mask_of(whole).sum()
    for row, name in ((whole, "person"), (part, "upper garment")):
        said = re.findall(r"(?:^| \| )([^|]+) (\d\.\d\d)(?= \||$)", note_of(row))
        scores = [float(score) for _, score in said]
        assert said[0][0] == name and scores[0] == pytest.approx(row["score"], abs=0.005)
        assert scores == sorted(scores, reverse=True) and scores[0] >= 0.4 and sum(scores) <= 1.01
        assert min(scores) >= 0.1

    editor.accept_all()
    editor.submit()
    (annotation,) = studio.api.call("GET", f"/api/tasks/{made.tasks[0]}/annotations/")
    assert {row["id"]: label_of(row) for row in annotation["result"]} == {
        row["id"]: label_of(row) for row in answer.regions
    }


def test_a_name_in_the_text_field_finds_the_masks_of_that_name(
    editor: Editor, project_of: Callable[..., DemoProject]
) -> None:
    made = project_of(ASTRONAUT, PEOPLE)
    editor.open(made.id, made.tasks[0])
    editor.switch_on_auto_annotation()
    editor.show_region_labels()
    answer = editor.write("find", "person")
    editor.screenshot("8-found")
    assert answer.prompts[0]["value"]["text"] == ["person"]
    assert answer.regions
    assert set(answer.labels) == {"person"}
    assert editor.suggestions() == [row["id"] for row in answer.regions]
    mask = mask_of(answer.regions[-1])
    assert mask[int(0.7 * mask.shape[0]), int(0.3 * mask.shape[1])]  # the suit


def test_where_no_name_is_sure_enough_the_note_says_so(editor: Editor, project_of: Callable[..., DemoProject]) -> None:
    start(editor, project_of(COFFEE, CUPS), "click_all")
    answer = editor.click(IN_THE_CUP)
    editor.screenshot("9-no-name")
    for row in answer.regions:
        guess = re.match(r"\? (.+?) 0\.[0-3]\d", note_of(row))
        assert guess and guess[1] == label_of(row)  # the best one, wherever it stands in the list
