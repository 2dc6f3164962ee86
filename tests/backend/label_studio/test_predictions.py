import itertools
import json
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.label_studio.label_config import LabelConfig
from backend.label_studio.predictions import build_prediction, default_label, empty_prediction
from semsam_model.masks.geometry import crop_mask
from semsam_model.masks.label_studio import region_mask
from semsam_model.types import Candidate
from tests.backend.label_studio.candidates import candidate, nested
from tests.paths import BRUSH_WITH_LEVELS
from tests.semsam_model.masks.shapes import any_mask, blobs, disc

quick = settings(max_examples=60, deadline=None)
BRUSH = LabelConfig.parse(BRUSH_WITH_LEVELS.read_text())


def config_for(tag: str) -> LabelConfig:
    xml = BRUSH_WITH_LEVELS.read_text().replace("BrushLabels", tag)
    return LabelConfig.parse(xml)


def build(candidates: list[Candidate], config: LabelConfig = BRUSH, **own: Any) -> dict[str, Any]:
    counter = itertools.count(1)
    own.setdefault("new_id", lambda: f"id{next(counter)}")
    return build_prediction(candidates, config=config, prompt_id="q", model_version="v1", **own)


def regions(prediction: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in prediction["result"] if row["type"].endswith("labels")]


@quick
@given(any_mask | blobs(), st.sampled_from(["BrushLabels", "BitmaskLabels", "PolygonLabels"]))
def test_a_mask_comes_back_from_the_region_it_became(mask: np.ndarray, tag: str) -> None:
    prediction = build([candidate(mask)], config_for(tag), max_vertices=20_000)
    if not mask.any():
        assert prediction["result"] == []
        return
    (row,) = regions(json.loads(json.dumps(prediction, allow_nan=False)))
    assert (row["original_height"], row["original_width"]) == mask.shape
    assert row["value"][tag.lower()] == ["object"]
    back = region_mask(row)
    assert back is not None and np.array_equal(back, mask)


@quick
@given(any_mask.filter(np.any))
def test_a_rectangle_answer_is_the_masks_bounding_box(mask: np.ndarray) -> None:
    (row,) = regions(build([candidate(mask)], config_for("RectangleLabels")))
    back = region_mask(row)
    assert back is not None and crop_mask(back)[1] == crop_mask(mask)[1]
    assert back.sum() == np.prod(crop_mask(mask)[0].shape)


def test_the_best_candidate_comes_last_and_gives_the_score() -> None:
    for order in itertools.permutations(nested()):
        prediction = build(list(order))
        assert [row["meta"]["candidate"] for row in regions(prediction)] == [2, 3, 1]
        assert prediction["score"] == 0.9 and prediction["model_version"] == "v1"


def test_a_region_carries_what_survives_acceptance() -> None:
    whole, part, best = regions(build(nested()))
    assert (whole["id"], part["id"], best["id"]) == ("id1", "id2", "id3")
    assert "parentID" not in whole and best["parentID"] == whole["id"] and part["parentID"] == best["id"]
    assert whole["value"]["brushlabels"] == ["object"]
    assert part["value"]["brushlabels"] == best["value"]["brushlabels"] == ["part"]
    assert best["meta"] == {
        "text": ["part 0.90"],
        "prompt_id": "q",
        "candidate": 1,
        "level": 3,
        "expected_iou": 0.9,
        "model_version": "v1",
    }
    for row in (whole, part, best):
        assert (row["type"], row["from_name"], row["to_name"]) == ("brushlabels", "mask", "image")
        assert (row["origin"], row["image_rotation"]) == ("prediction", 0)
        assert (row["original_width"], row["original_height"]) == (83, 61)


def test_note_and_level_follow_their_region_under_its_id_without_geometry() -> None:
    rows = build(nested())["result"]
    assert [row["type"] for row in rows] == ["brushlabels", "textarea", "choices"] * 3
    for region, note, level in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        assert region["id"] == note["id"] == level["id"]
        assert note["from_name"] == "note" and note["value"] == {"text": region["meta"]["text"]}
        assert level["from_name"] == "level" and level["value"] == {"choices": [f"level {region['meta']['level']}"]}
        assert region_mask(note) is None and region_mask(level) is None


def test_a_level_without_a_choice_and_missing_controls_send_no_rows() -> None:
    head = '<View><Image name="i" value="$i"/><BrushLabels name="m" toName="i" smart="false"/>'
    choices = '<Choices name="level" toName="i" perRegion="true"><Choice value="level 1"/></Choices></View>'
    assert [row["type"] for row in build(nested(), LabelConfig.parse(head + "</View>"))["result"]] == [
        "brushlabels"
    ] * 3
    rows = build(nested(), LabelConfig.parse(head + choices))["result"]
    assert [row["value"]["choices"] for row in rows if row["type"] == "choices"] == [["level 1"]]
    assert all("brushlabels" not in row["value"] for row in rows)  # no labels in the config, so none are made up


def test_a_parent_outside_the_answer_is_not_pointed_to() -> None:
    (row,) = regions(build(nested()[:1]))
    assert "parentID" not in row and row["value"]["brushlabels"] == ["part"]


def test_labels_given_or_the_candidates_own_come_before_the_rule() -> None:
    chosen = regions(build(nested(), labels=["a", None, "c"]))
    assert [row["value"].get("brushlabels") for row in chosen] == [None, ["c"], ["a"]]
    mask = disc(20, 20, 10, 10, 5)
    (own,) = regions(build([candidate(mask, label="part")]))
    assert own["value"]["brushlabels"] == ["part"] and own["meta"]["text"] == ["part 0.81"]
    unsure = replace(candidate(mask), names=(("part", 0.3), ("object", 0.2)))
    (guess,) = regions(build([unsure]))
    assert guess["value"]["brushlabels"] == ["part"]  # not "object", the first label and the one of the rule
    assert guess["meta"]["text"] == ["? part 0.30 | object 0.20"]
    (foreign,) = regions(build([candidate(mask, label="zebra")]))
    assert foreign["value"]["brushlabels"] == ["object"]


def test_a_region_says_one_score_and_names_from_a_tenth_on() -> None:
    mask = disc(20, 20, 10, 10, 5)
    names = (("cup", 0.62), ("saucer", 0.21), ("spoon", 0.1), ("cat", 0.05), ("eye", 0.02))
    labels = "".join(f'<Label value="{name}"/>' for name, _ in names)
    config = LabelConfig.parse(
        f'<View><Image name="i" value="$i"/><PolygonLabels name="m" toName="i">{labels}</PolygonLabels></View>'
    )
    said = []
    for own, chosen in ((replace(candidate(mask), names=names, label="cup"), None), (candidate(mask), "cat")):
        named = replace(own, names=names, label=chosen or own.label)
        (row,) = build([named], config)["result"]
        said.append((row["value"]["polygonlabels"], row["meta"]["text"], row["score"], row["meta"]["expected_iou"]))
    assert said == [
        (["cup"], ["cup 0.62 | saucer 0.21 | spoon 0.10"], 0.62, 0.8123),
        (["cat"], ["cat 0.05 | cup 0.62 | saucer 0.21"], 0.05, 0.8123),  # the one that the annotator chose
    ]


def test_a_guess_is_the_best_name_that_the_mask_can_have() -> None:
    xml = '<Label value="car" kind="object"/><Label value="wheel" kind="part"/><Label value="door" kind="part"/>'
    config = LabelConfig.parse(
        f'<View><Image name="i" value="$i"/><PolygonLabels name="m" toName="i">{xml}</PolygonLabels></View>'
    )
    unsure = replace(candidate(disc(20, 20, 10, 10, 5)), names=(("door", 0.36), ("car", 0.34), ("wheel", 0.3)))
    assert [default_label(unsure, config, part=part) for part in (None, True, False)] == ["door", "door", "car"]


def test_ids_are_full_uuids_and_fresh() -> None:
    def ids() -> list[str]:
        prediction = build_prediction(nested(), config=BRUSH, prompt_id="q", model_version="v")
        return [row["id"] for row in regions(prediction)]

    both = ids() + ids()
    assert len(set(both)) == 6 and {len(each) for each in both} == {36}


def test_without_candidates_or_answer_control_the_prediction_is_empty() -> None:
    empty = {"model_version": "v1", "score": 0.0, "result": []}
    assert build([]) == build([candidate(np.zeros((5, 7), bool))]) == empty_prediction("v1") == empty
    assert build(nested(), LabelConfig.parse('<View><Image name="i" value="$i"/></View>')) == empty
