import contextlib
import re
from xml.sax.saxutils import quoteattr

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_studio_sdk._extensions.label_studio_tools.core.label_config import parse_config
from label_studio_sdk.label_interface import LabelInterface

from backend.errors import BadRequest
from backend.label_studio.config_tags import MAX_CONFIG_CHARS
from backend.label_studio.label_config import Control, Label, LabelConfig
from backend.label_studio.prompt_rows import KeypointRow
from backend.label_studio.prompts import parse_interaction
from tests.paths import BRUSH_WITH_LEVELS, CONFIGS

quick = settings(max_examples=60, deadline=None)

IMAGE = '<Image name="image" value="$image"/>'
CLICK = '<KeyPoint name="click_all" toName="image" smartOnly="true"/>'
OUTLINE = '<PolygonLabels name="mask" toName="image" smart="false"><Label value="object"/></PolygonLabels>'


def view(*tags: str) -> LabelConfig:
    return LabelConfig.parse(f"<View>{''.join(tags)}</View>")


SHIPPED = ("labeling.xml", "labeling_label_first.xml", "labeling_bitmask.xml", "labeling_brush.xml")


@pytest.mark.parametrize("file", SHIPPED)
def test_the_interfaces_we_ship_are_valid_and_ask_for_one_suggestion_first(file: str) -> None:
    xml = (CONFIGS / file).read_text()
    LabelInterface(xml).validate()
    config = LabelConfig.parse(xml)
    slow = [problem for problem in config.problems() if "makes the next click slower" in problem]
    assert config.problems() == slow and bool(slow) == (file == "labeling_brush.xml")
    assert config.answer is not None and config.answer.name == "mask" and config.answer.smart is False
    assert (config.image_name, config.level, config.note) == ("image", None, None)  # one row a region
    assert {label.kind for label in config.labels} == {"object", "part"}
    row = {"from_name": config.prompts[0].name, "value": {"x": 50, "y": 50}}
    assert parse_interaction([KeypointRow.model_validate(row)], config, (600, 800)).mode == "one"


def test_brush_masks_are_advised_against_with_the_reason_and_so_are_their_further_rows() -> None:
    problems = LabelConfig.parse(BRUSH_WITH_LEVELS.read_text()).problems()
    assert len(problems) == 3 and all("encode" in problem for problem in problems)
    assert "<BitmaskLabels> where pixels matter" in problems[0]


OFFICIAL = """<View>
  <Image name="image" value="$image" zoom="true"/>
  <BrushLabels name="tag" toName="image"><Label value="Banana"/><Label value="Orange"/></BrushLabels>
  <KeyPointLabels name="tag2" toName="image" smart="true">
    <Label value="Banana" smart="true"/><Label value="Orange" smart="true"/>
  </KeyPointLabels>
  <RectangleLabels name="tag3" toName="image" smart="true">
    <Label value="Banana"/><Label value="Orange"/>
  </RectangleLabels>
</View>"""


def test_the_configs_of_label_studios_own_segment_anything_backend_are_read_as_they_are() -> None:
    config = LabelConfig.parse(OFFICIAL)
    assert config.answer == Control("tag", "brushlabels")
    assert [control.name for control in config.prompts] == ["tag2", "tag3"]
    row = {"from_name": "tag2", "value": {"x": 50, "y": 50}, "labels": ["Orange"]}
    asked = parse_interaction([KeypointRow.model_validate(row)], config, (600, 800))
    assert (asked.mode, asked.label) == ("one", "Orange")


names = st.text(st.characters(categories=("L", "N", "P", "Zs")), min_size=1, max_size=8).map(str.strip).filter(bool)


@quick
@given(st.lists(st.tuples(names, st.none() | names, st.none() | st.sampled_from(["object", "part"])), max_size=5))
def test_labels_are_those_of_the_sdk_in_order(rows: list[tuple[str, str | None, str | None]]) -> None:
    labels = ""
    for value, alias, kind in rows:
        own = {"value": value, "alias": alias, "kind": kind}
        labels += "<Label " + " ".join(f"{k}={quoteattr(v)}" for k, v in own.items() if v is not None) + "/>"
    xml = f'<View>{IMAGE}<BrushLabels name="mask" toName="image"><View>{labels}</View></BrushLabels></View>'
    assert [label.value for label in LabelConfig.parse(xml).labels] == parse_config(xml)["mask"]["labels"]


def test_own_attributes_and_the_alias_of_a_label_are_read() -> None:
    config = view(
        IMAGE,
        '<BrushLabels name="m" toName="image"><Label value="Wheel" alias="w" kind="Part" of="car"/></BrushLabels>',
    )
    assert config.labels == (Label("w", "Wheel", "part", "car"),)


@pytest.mark.parametrize(
    ("labels", "whole", "part"),
    [
        ('<Label value="a"/><Label value="b" kind="part"/><Label value="c" kind="object"/>', "c", "b"),
        ('<Label value="Car part"/><Label value="Object"/>', "Object", "Car part"),
        ('<Label value="x"/><Label value="y"/>', "x", "x"),
        ('<Label value="part of car" kind="object"/><Label value="lamp" kind="part"/>', "part of car", "lamp"),
        ("", None, None),
    ],
)
def test_a_label_is_chosen_by_kind_then_name_then_order(labels: str, whole: str | None, part: str | None) -> None:
    config = view(IMAGE, f'<BrushLabels name="m" toName="image">{labels}</BrushLabels>')
    assert (config.label_for(part=False), config.label_for(part=True)) == (whole, part)


def test_the_answer_is_the_control_that_is_least_a_tool_for_asking() -> None:
    tags = {
        "true": '<RectangleLabels name="a" toName="image" smart="true"/>',
        "none": '<PolygonLabels name="b" toName="image"/>',
        "false": '<BrushLabels name="c" toName="image" smart="false"/>',
        "only": '<BrushLabels name="d" toName="image" smart="false" smartOnly="true"/>',
        "elsewhere": '<BrushLabels name="e" toName="other" smart="false"/>',
    }
    for expected, left in (("c", list(tags)), ("b", ["only", "true", "none"]), ("a", ["elsewhere", "only", "true"])):
        answer = view(IMAGE, *(tags[key] for key in left)).answer
        assert answer is not None and answer.name == expected
    assert view(IMAGE, tags["only"], tags["elsewhere"]).answer is None


def test_tag_and_attribute_names_are_read_without_regard_to_case() -> None:
    config = view('<image NAME="image" value="$image"/>', CLICK.lower(), OUTLINE.replace("toName", "toname"))
    assert config.problems() == []


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ([CLICK, OUTLINE], 'no <Image> tag: add <Image name="image" value="$image"/>'),
        ([IMAGE.replace('name="image"', ""), CLICK, OUTLINE], "the <Image> tag has no name"),
        ([IMAGE.replace("$", ""), CLICK, OUTLINE], 'write value="$image"'),
        ([IMAGE.replace("value", "valueList"), CLICK, OUTLINE], "only the first page is annotated without a click"),
        ([f"<Repeater>{IMAGE}</Repeater>", CLICK, OUTLINE], "<Repeater> shows several photos in one task"),
        ([IMAGE, CLICK, '<Brush name="mask" toName="image" smart="false"/>'], "has no labels: add <Labels"),
        ([IMAGE, IMAGE.replace("image", "second"), CLICK, OUTLINE], "2 <Image> tags"),
        ([IMAGE, CLICK], 'add <PolygonLabels name="mask" toName="image" smart="false">'),
        ([IMAGE, CLICK, OUTLINE.replace(' smart="false"', "")], '<PolygonLabels name="mask">: add smart="false"'),
        ([IMAGE, CLICK, re.sub("<Label .*?/>", "", OUTLINE)], "add at least one <Label"),
        ([IMAGE, OUTLINE], 'add <KeyPoint name="click" toName="image" smartOnly="true"'),
        ([IMAGE, OUTLINE, CLICK.replace("smartOnly", "smart").replace("true", "false")], "no tool asks for masks"),
    ],
)
def test_a_config_that_will_not_work_says_what_to_change(wrong: list[str], words: str) -> None:
    problems = view(*wrong).problems()
    assert any(words in problem for problem in problems), problems
    assert view(IMAGE, CLICK, OUTLINE).problems() == []


def test_a_problem_stays_on_one_line_whatever_the_names() -> None:
    config = view(IMAGE, CLICK, OUTLINE.replace('"mask"', '"a&#10;b"').replace(' smart="false"', ""))
    assert config.answer is not None and config.answer.name == "a\nb"
    assert not any("\n" in problem for problem in config.problems())


@pytest.mark.parametrize(
    ("value", "data", "url"),
    [
        ("$image", {"image": "/data/a.png"}, "/data/a.png"),
        ("$photo.url", {"photo": {"url": "s3://b/a.png"}}, "s3://b/a.png"),
        ("$photo.url", {"photo.url": "dotted", "photo": {"url": "nested"}}, "dotted"),
        ("$photos[1].url", {"photos": [{}, {"url": "x"}]}, "x"),
        ("https://h/$folder/$name", {"folder": "f", "name": "n"}, "https://h/f/n"),
    ],
)
def test_the_photo_is_found_under_plain_and_nested_keys(value: str, data: dict, url: str) -> None:
    assert view(f'<Image name="image" value="{value}"/>').image_url(data) == url


@pytest.mark.parametrize("data", [{}, {"image": ""}, {"image": 3}, {"image": None}, {"image": ["a"]}])
def test_a_task_without_the_photos_address_is_refused_by_key(data: dict) -> None:
    with pytest.raises(BadRequest, match=r"task data 'image': expected the address of a photo"):
        view(IMAGE).image_url(data)


def test_six_choices_are_the_levels_and_fewer_count_by_name_only() -> None:
    def levels(*values: str) -> dict:
        choices = "".join(f'<Choice value="{value}"/>' for value in values)
        return dict(
            view(IMAGE, f'<Choices name="Level" toName="image" perRegion="true">{choices}</Choices>').level_values
        )

    assert levels(*"abcdef") == dict(enumerate("abcdef", start=1))
    assert levels("level 2", "5", "other") == {2: "level 2", 5: "5"}


def test_choices_and_text_for_the_whole_photo_are_not_ours() -> None:
    config = view(IMAGE, '<Choices name="level" toName="image"/>', '<TextArea name="note" toName="image"/>')
    assert (config.level, config.note) == (None, None)


BOMB = '<!DOCTYPE v [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><View>&b;</View>'
READER = '<!DOCTYPE v [<!ENTITY x SYSTEM "file:///etc/passwd">]><View>&x;</View>'


@pytest.mark.parametrize(
    "xml", [BOMB, READER, BOMB.lower(), "", "no xml", "<View>", "<View/>" + " " * MAX_CONFIG_CHARS]
)
def test_entities_broken_and_oversized_xml_are_refused(xml: str) -> None:
    with pytest.raises(BadRequest, match="label_config: expected"):
        LabelConfig.parse(xml)


def test_xml_nested_ten_thousand_deep_is_read() -> None:
    assert LabelConfig.parse("<View>" * 10_000 + "</View>" * 10_000).problems()


@quick
@given(
    st.text()
    | st.lists(st.sampled_from([IMAGE, CLICK, OUTLINE, "<", "</View>", '"', "$", "\ud800", "\0"])).map("".join)
)
def test_any_text_is_a_config_or_a_bad_request(text: str) -> None:
    for xml in (text, f"<View>{text}</View>"):
        with contextlib.suppress(BadRequest):
            LabelConfig.parse(xml).problems()


@pytest.mark.parametrize(
    ("kinds", "granularity"),
    [(["part", "part"], "part"), (["object"], "object"), (["part", "object"], None), ([""], None)],
)
def test_a_project_wants_one_granularity_only_where_every_label_says_so(
    kinds: list[str], granularity: str | None
) -> None:
    labels = "".join(f'<Label value="l{i}" {f"kind={k!r}" if k else ""}/>' for i, k in enumerate(kinds))
    xml = f'<View><Image name="i" value="$image"/><BrushLabels name="b" toName="i">{labels}</BrushLabels></View>'
    assert LabelConfig.parse(xml).granularity == granularity
