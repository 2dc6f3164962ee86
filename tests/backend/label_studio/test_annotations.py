"""Annotations as Label Studio posts or lists them -> regions, each with its mask or its problem."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.errors import BadRequest
from backend.label_studio.annotations import AnnotatedRegion, MalformedRegion, parse_annotation
from backend.label_studio.label_config import LabelConfig
from tests.backend.annotations import CONFIG, annotation, brush_row, square
from tests.backend.label_studio.odd_json import odd_json, odd_objects


def regions_of(*rows: Any) -> list[AnnotatedRegion | MalformedRegion]:
    return list(parse_annotation(annotation(1, list(rows))).regions(LabelConfig.parse(CONFIG)))


@given(st.lists(odd_objects.map(lambda odd: brush_row("a", square(1, 1, 5)) | odd) | odd_json, max_size=4))
def test_regions_of_any_content_are_read_or_kept_with_a_reason(rows: list[Any]) -> None:
    regions = regions_of(*rows)
    assert len({region.id for region in regions}) == len(regions)


def test_a_region_that_cannot_be_used_says_why_and_the_others_are_read() -> None:
    good = brush_row("a", square(1, 1, 5))
    bad = [
        good | {"id": "b", "original_width": 0},
        {"id": "c", "type": "polygon", "original_width": 9, "original_height": 9, "value": {"points": [[1, "x"]]}},
    ]
    read, *refused = regions_of(good, *bad, 3)
    assert isinstance(read, AnnotatedRegion) and read.id == "a"
    assert [each.problem for each in refused if isinstance(each, MalformedRegion)] == [
        "region.original_width: expected a whole number of pixels from 1, got 0",
        "region.value.points[0]: expected x and y in percent, got [1, 'x']",
        "region #3: expected an object, got 3",
    ]


def test_a_region_without_id_or_with_a_number_is_a_region() -> None:
    row = brush_row("a", square(1, 1, 5))
    without = {name: value for name, value in row.items() if name != "id"}
    found = regions_of(row, row | {"id": None}, without, row | {"id": 7, "parentID": 12})
    assert [region.id for region in found] == ["a", "#1", "#2", "7"]
    assert isinstance(found[3], AnnotatedRegion) and found[3].parent == "12"


def test_a_skipped_annotation_may_have_no_list_of_regions() -> None:
    assert list(parse_annotation(annotation(5, None)).regions(LabelConfig())) == []  # type: ignore[arg-type]


def test_what_a_region_says_about_its_suggestion_counts_only_in_the_form_that_we_write() -> None:
    meta = {"prompt_id": "p 1", "candidate": True, "level": 7, "model_version": "", "preannotated": 1}
    (odd,) = regions_of(brush_row("a", square(1, 1, 5)) | {"meta": meta, "score": float("nan"), "parentID": [4]})
    assert isinstance(odd, AnnotatedRegion)
    assert (odd.prompt_id, odd.suggested, odd.preannotated) == (None, False, False)
    assert (odd.rank, odd.level, odd.model_version, odd.score, odd.parent) == (None, None, None, None, None)


def test_a_suggestions_expected_iou_is_kept_and_not_the_score_of_its_name_that_the_editor_shows() -> None:
    named = brush_row("a", square(1, 1, 5)) | {"score": 0.4, "meta": {"prompt_id": "p", "expected_iou": 0.9}}
    (region,) = regions_of(named)
    assert isinstance(region, AnnotatedRegion) and region.score == 0.9


def test_dots_that_were_submitted_with_the_annotation_are_no_regions() -> None:
    dot = {"id": "k", "type": "keypoint", "from_name": "click", "value": {"x": 5, "y": 5, "width": 0.2, "labels": []}}
    labelled = dot | {"id": "l", "type": "keypointlabels", "value": {"x": 5, "y": 5, "keypointlabels": ["car"]}}
    kept = regions_of(dot, brush_row("a", square(1, 1, 5)), labelled)
    assert [region.id for region in kept] == ["a"]


def test_a_user_may_be_an_id_or_an_object_and_a_time_without_zone_is_utc() -> None:
    sent = annotation(1, []) | {"completed_by": {"id": 3}, "created_at": None, "updated_at": "2026-01-02T03:04:05"}
    read = parse_annotation(sent)
    assert read.annotator == 3 and parse_annotation(sent | {"completed_by": 3}).annotator == 3
    assert read.created_at == read.updated_at and read.updated_at.isoformat() == "2026-01-02T03:04:05+00:00"
    assert parse_annotation(sent | {"completed_by": "x"}).annotator is None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"id": "x"}, "annotation.id: expected an id, got 'x'"),
        ({"id": 2**63}, "annotation.id: expected an id, got 9223372036854775808"),
        ({"task": None}, "annotation.task: expected an id, got None"),
        (
            {"updated_at": "soon"},
            "annotation.updated_at: expected a time such as 2026-01-31T12:00:00.123456Z, got 'soon'",
        ),
        ({"result": {}}, "annotation.result: expected a list, got {}"),
    ],
)
def test_an_annotation_of_another_form_is_refused_by_the_name_of_its_field(change: Any, problem: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_annotation(annotation(1, []) | change)
    assert problem in str(caught.value)
