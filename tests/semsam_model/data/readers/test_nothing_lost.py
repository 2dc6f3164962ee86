"""Whatever a file holds: each of its masks is in a sample, on its own photo, or counted and named as left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from semsam_model.data.readers.coco import read_coco
from semsam_model.data.readers.entries import ReadOptions
from semsam_model.data.readers.label_studio import read_label_studio
from semsam_model.data.samples import Dataset
from semsam_model.errors import DataError
from tests.semsam_model.data.readers.files import OTHER, PART, SIZE, WHOLE, photo
from tests.semsam_model.houses import rle

many = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
RING = [2, 2, 20, 2, 20, 20, 2, 20]

SEGMENTATIONS = st.sampled_from(
    [
        [RING],
        RING,
        [[[2, 2], [20, 2], [20, 20]]],
        [[2, 2], [20, 2], [20, 20]],
        [RING, [5, 5, 9, 9]],
        [RING, [1, 2, 3, 4, 5, 6, 7]],
        [[1, 2, 3, 4]],
        [[float("nan")] * 6],
        json.dumps([RING]),
        "no JSON",
        rle(PART),
        [rle(OTHER)],
        rle(WHOLE) | {"size": [3, 4]},
        {"size": list(SIZE), "counts": "torn"},
        {"counts": 3},
        [],
        None,
        7,
        [{"x": 1}],
    ]
)
IDS = st.sampled_from([1, "1", 1.0, 2, "2", 3, "x", "07", None, [1]])


def coco_objects(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


COCO = st.fixed_dictionaries(
    {
        "images": st.lists(
            coco_objects(
                id=IDS,
                file_name=st.sampled_from(["a.png", "images\\b.png", "/home/me/a.png", "sub/b.png", "no.png", "", 3]),
                width=st.sampled_from([SIZE[1], str(SIZE[1]), 0, None]),
                height=st.sampled_from([SIZE[0], "many"]),
            ),
            max_size=4,
        ),
        "annotations": st.lists(
            coco_objects(
                id=IDS,
                image_id=IDS,
                category_id=IDS,
                segmentation=SEGMENTATIONS,
                iscrowd=st.sampled_from([0, 1, "0", "1", True, "maybe", None]),
                parent_id=IDS,
                granularity=st.sampled_from(["part", "galaxy", None]),
            )
            | st.sampled_from([None, "annotation", [1]]),
            max_size=8,
        ),
        "categories": st.lists(
            coco_objects(id=IDS, name=st.sampled_from(["dog", "dog:head", "12:00", 5]), part_of=IDS), max_size=3
        ),
    }
)


def readable(dataset: Dataset) -> int:
    """Masks that can be decoded, and those that say that they cannot."""
    found = 0
    for sample in dataset.samples:
        for index in range(len(sample.regions)):
            try:
                assert sample.mask(index).shape == (sample.height, sample.width)
            except DataError as error:
                assert sample.photo.name in str(error)
            found += 1
    return found


@many
@given(content=COCO, evaluation=st.booleans(), crowd=st.sampled_from(["group", "single"]))
def test_every_annotation_of_a_coco_file_is_read_or_named(
    tmp_path: Path, content: dict[str, Any], evaluation: bool, crowd: Any
) -> None:
    for name in ("a.png", "images/b.png"):
        photo(tmp_path / name)
    path = tmp_path / "set.json"
    path.write_text(json.dumps(content))
    dataset = read_coco(path, options=ReadOptions(evaluation=evaluation, crowd=crowd))
    assert readable(dataset) + dataset.masks_lost == len(content["annotations"])
    assert bool(dataset.skipped) or not dataset.masks_lost
    if not dataset.samples and content["annotations"]:
        assert dataset.skipped


# --------------------------------------------------------------------------------------------------------- Label Studio

POINTS = {"points": [[10, 10], [90, 10], [50, 90]]}
OVAL = {"x": 50, "y": 50, "radiusX": 20, "radiusY": 30}
BOX = {"x": 10, "y": 10, "width": 50, "height": 40, "rotation": 0}
#: type -> value, and whether it is a mask
ROWS: list[tuple[str, Any, bool]] = [
    ("polygonlabels", POINTS, True),
    ("ellipselabels", OVAL, True),
    ("ellipse", OVAL | {"radiusX": "wide"}, True),
    ("rectangle", BOX, True),
    ("brushlabels", {"format": "rle", "rle": [1, 2, 3]}, True),
    ("brushlabels", {}, False),
    ("vectorlabels", {"vertices": []}, True),
    ("choices", {"choices": ["x"]}, False),
    ("keypointlabels", {"x": 1, "y": 1}, False),
    ("polygon", None, True),
    ("brush", None, False),
]


@st.composite
def rows(draw: st.DrawFn) -> tuple[Any, bool]:
    kind, value, mask = draw(st.sampled_from(ROWS))
    row: dict[str, Any] = {"type": kind, "value": value, "from_name": "f"}
    row |= draw(
        st.fixed_dictionaries(
            {"to_name": st.sampled_from(["left", "right", "pages", "nobody"])},
            optional={
                "id": st.sampled_from(["a", "b", 7, None, [1]]),
                "parentID": st.sampled_from(["a", 7, "lost"]),
                "item_index": st.sampled_from([0, 1, 9, "one"]),
                "original_width": st.sampled_from([SIZE[1], 5, None, "wide"]),
                "original_height": st.sampled_from([SIZE[0], 7]),
            },
        )
    )
    return row, mask


RESULTS = st.lists(rows(), max_size=5)
ANNOTATIONS = st.lists(
    st.tuples(RESULTS, st.booleans(), st.sampled_from([None, "2024-01-01T00:00:00Z", "soon"])), max_size=3
)
DATA = st.sampled_from(
    [
        {"left": "/data/upload/1/left.png", "right": "/data/upload/1/0a1b2c3d-right.png"},
        {"left": "/data/upload/1/left.png", "pages": ["/x/left.png", "/x/right.png"]},
        {"nested": {"url": "s3://bucket/left.png"}},
        {"pages": ["lost.png"], "text": "left"},
        {"left": 3},
        None,
    ]
)


@many
@given(tasks=st.lists(st.tuples(DATA, ANNOTATIONS), min_size=1, max_size=3))
def test_every_mask_of_a_label_studio_file_is_read_or_named(tmp_path: Path, tasks: list[tuple[Any, Any]]) -> None:
    for name in ("left.png", "right.png"):
        photo(tmp_path / name)
    content, masks = [], 0
    for number, (data, submitted) in enumerate(tasks):
        listed = []
        for result, cancelled, at in submitted:
            masks += sum(mask for _, mask in result)
            listed.append({"result": [row for row, _ in result], "was_cancelled": cancelled, "updated_at": at})
        content.append({"id": number, "data": data, "annotations": listed})
    path = tmp_path / "export.json"
    path.write_text(json.dumps(content))
    dataset = read_label_studio(path, tmp_path)
    assert readable(dataset) + dataset.masks_lost == masks
    assert dataset.skipped or dataset.samples


TWO_TAGS = """<View><Image name="one" value="$first"/><Image name="two" value="$second"/>
  <Repeater on="$pages" indexFlag="{{idx}}"><Image name="page_{{idx}}" value="$pages[{{idx}}].url"/></Repeater>
  <Image name="list" valueList="$many"/></View>"""


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"to_name": "one"}, "a.png"),
        ({"to_name": "two"}, "b.png"),
        ({"to_name": "page_1"}, "b.png"),
        ({"to_name": "list", "item_index": 0}, "b.png"),
        ({"to_name": "list", "item_index": 1}, "a.png"),
        ({"to_name": "list", "item_index": 2}, None),
        ({"to_name": "list"}, None),
        ({"to_name": "three"}, None),
    ],
)
def test_with_the_labeling_config_each_region_is_on_the_photo_of_its_own_tag(
    tmp_path: Path, row: dict[str, Any], expected: str | None
) -> None:
    for name in ("a.png", "b.png"):
        photo(tmp_path / name)
    (tmp_path / "config.xml").write_text(TWO_TAGS)
    data = {
        "first": "/data/upload/1/a.png",
        "second": "/data/upload/1/b.png",
        "pages": [{"url": "a.png"}, {"url": "b.png"}],
        "many": ["b.png", "a.png"],
    }
    result = [row | {"id": "r", "type": "polygon", "value": POINTS}]
    path = tmp_path / "export.json"
    path.write_text(json.dumps([{"id": 1, "data": data, "annotations": [{"result": result}]}]))
    with_config = read_label_studio(path, tmp_path, config=tmp_path / "config.xml")
    assert [sample.photo.name for sample in with_config.samples] == ([expected] if expected else [])
    assert with_config.masks_lost == (expected is None)
    # without it nobody knows, and nothing is put anywhere
    alone = read_label_studio(path, tmp_path)
    if "item_index" not in row:
        assert not alone.samples and alone.masks_lost == 1 and "`config`" in alone.skipped[0]
