"""A project's labeling config (XML): which photo it shows, which control holds the answer, which tools are prompts.

Where a task shows several photos, there is one reading for each <Image> tag, with the controls connected to it.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any
from xml.etree import ElementTree

from backend.errors import BadRequest
from backend.label_studio.config_problems import config_problems
from backend.label_studio.config_tags import Tag, parse_xml, tags_in
from semsam_model.data.readers.label_studio_photos import look_up
from semsam_model.types import KINDS, LEVELS, Kind

_PARSED = 64  #: configs that are kept as they were read: every webhook and click brings its project's again

#: Controls that can hold an answer: in small letters -> as they are written. Those of a kind without labels of its own
#: have them from <Labels> beside it.
ANSWER_TAGS = {
    "brushlabels": "BrushLabels",
    "bitmasklabels": "BitmaskLabels",
    "polygonlabels": "PolygonLabels",
    "rectanglelabels": "RectangleLabels",
    "brush": "Brush",
    "bitmask": "Bitmask",
    "polygon": "Polygon",
    "rectangle": "Rectangle",
}
#: Controls that can be prompts.
PROMPT_TAGS = {
    "keypoint": "KeyPoint",
    "keypointlabels": "KeyPointLabels",
    "rectangle": "Rectangle",
    "rectanglelabels": "RectangleLabels",
}


@dataclass(frozen=True)
class Label:
    """One label of the answer control. `kind` ("object" or "part") and `of` are attributes of our own on <Label>.

    A label with `of` and without `kind` is a part.
    """

    value: str  #: what results carry: the alias where there is one
    text: str  #: what the annotator reads
    kind: str | None = None
    of: str | None = None
    predicted: tuple[str, ...] = ()  #: what a model calls it: Label Studio's `predicted_values`

    @property
    def words(self) -> tuple[str, ...]:
        """What it is looked for by: any of these."""
        return self.predicted or (self.text,)

    @property
    def meaning(self) -> str:
        """What it is compared with a mask by."""
        return self.words[0]


@dataclass(frozen=True)
class Control:
    """A control connected to the image; `smart` is None where it is not given, which the editor takes as true."""

    name: str
    tag: str  #: in small letters
    smart: bool | None = None
    smart_only: bool = False

    def __str__(self) -> str:
        written = ANSWER_TAGS | PROMPT_TAGS | {"labels": "Labels"}
        return f'<{written.get(self.tag, self.tag)} name="{self.name}">'

    @property
    def shape(self) -> str:
        """One of "brush", "bitmask", "polygon", "rectangle", where it can hold an answer."""
        return self.tag.removesuffix("labels")


@dataclass(frozen=True)
class LabelConfig:
    """A labeling config, read by `LabelConfig.parse`. What is missing is None or empty, and `problems` names it."""

    image_name: str | None = None
    image_value: str | None = None  #: as written, such as "$image" or "$photo.url"
    images: int = 0  #: how many <Image> tags
    pages: bool = False  #: whether the field lists the addresses of several photos, one a page (valueList)
    repeater: bool = False  #: whether there is a <Repeater>
    answer: Control | None = None
    labels_in: Control | None = None  #: the <Labels> that labels an answer whose control has none of its own
    labels: tuple[Label, ...] = ()
    task_labels: str | None = None  #: where each task brings labels of its own: as written, such as "$options"
    prompts: tuple[Control, ...] = ()
    level: str | None = None  #: perRegion Choices whose name contains "level"
    level_values: Mapping[int, str] = field(default_factory=dict)  #: level 1..6 -> its choice, where there is one
    note: str | None = None  #: perRegion TextArea whose name contains "note"
    others: tuple[LabelConfig, ...] = ()  #: of the further <Image> tags, in order

    @staticmethod
    @lru_cache(_PARSED)
    def parse(xml: str) -> LabelConfig:
        """Reads the labeling config.

        Its first <Image> tag counts, and `others` are the further ones. The answer control is connected to the image
        and never smartOnly; one that holds masks goes before a rectangle, one with labels before one without, and then
        in this order: smart="false", `smart` not given, smart="true". Raises BadRequest for text that is not XML, is
        too long, or has a document type.
        """
        tags = list(tags_in(parse_xml(xml)))
        images = [tag for tag in tags if tag.name == "image"]
        if not images or not images[0].attributes.get("name"):
            return LabelConfig(images=len(images))
        first, *others = [_of_image(tag, tags, len(images)) for tag in images if tag.attributes.get("name")]
        return replace(first, others=tuple(others))

    def of_image(self, name: str) -> LabelConfig | None:
        """The reading for the <Image> tag of that name; None where there is none."""
        return next((config for config in (self, *self.others) if config.image_name == name), None)

    def image_of(self, control: str) -> str | None:
        """The first <Image> tag that the prompt control of that name is connected to."""
        every = (self, *self.others)
        return next((each.image_name for each in every for tool in each.prompts if tool.name == control), None)

    def with_labels_of(self, data: Mapping[str, Any]) -> LabelConfig:
        """With the labels that a task brings: a list of texts or of objects with `value`, and perhaps `alias`."""
        listed = look_up(data, self.task_labels.strip("$ ")) if self.task_labels else None
        if not isinstance(listed, list):
            return self
        own = {label.value: label for label in self.labels}
        for each in listed:
            given = {"value": each} if isinstance(each, str) else each if isinstance(each, Mapping) else {}
            texts = {name: given[name] for name in _LABEL_FIELDS if isinstance(given.get(name), str)}
            if (label := _label(texts)) is not None:
                own.setdefault(label.value, label)
        return replace(self, labels=tuple(own.values()))

    def problems(self) -> list[str]:
        """Why this config will not work well, each with the exact change to make; empty if all is well."""
        # names come from outside: a line break in one must not make a second line of the log
        return [" ".join(problem.split()) for problem in config_problems(self)]

    def image_url(self, data: Mapping[str, Any], page: int = 0) -> str:
        """The photo's address in a task's data; nested keys ("$photo.url", "$photos[0]") too. Raises BadRequest.

        page: of a task with several, from 0.
        """
        if self.repeater or self.image_value is None or "$" not in self.image_value:
            raise BadRequest(f"label_config: {self.problems()[0]}")
        if self.pages:
            data = self._of_page(data, page)
        elif page:
            raise BadRequest(
                f"item_index: page {page + 1} of <Image name={self.image_name!r}>, which shows one photo a task"
            )
        variable = re.compile(r"\$([\w\[\].]+)")
        found = [(key, look_up(data, key)) for key in variable.findall(self.image_value)]
        for key, value in found:
            if not isinstance(value, str) or not value:
                raise BadRequest(
                    f"task data {key!r}: expected the address of a photo, since the <Image> tag says "
                    f"value={self.image_value!r}, got {reprlib.repr(value)}"
                )
        if not found:
            raise BadRequest(
                f'label_config: <Image value={self.image_value!r}> names no field of the task, write "$image"'
            )
        values = iter(found)
        return variable.sub(lambda _: next(values)[1], self.image_value)

    def _of_page(self, data: Mapping[str, Any], page: int) -> Mapping[str, Any]:
        """The data with the address of one page in place of the list of all."""
        key = (self.image_value or "").strip("$ ")
        pages = look_up(data, key)
        if not isinstance(pages, list) or page >= len(pages):
            count = f"{len(pages)} pages" if isinstance(pages, list) else reprlib.repr(pages)
            raise BadRequest(f"task data {key!r}: expected the addresses of at least {page + 1} pages, got {count}")
        return {key: pages[page]}

    @property
    def granularity(self) -> Kind | None:
        """The kind that every label says it is of, if there is one."""
        return next((kind for kind in KINDS if {label.kind for label in self.labels} == {kind}), None)

    def kind_of(self, value: str) -> Kind | None:
        """The kind of a label, where it says one."""
        kind = next((label.kind for label in self.labels if label.value == value), None)
        return next((known for known in KINDS if known == kind), None)

    def label_for(self, *, part: bool) -> str | None:
        """The label of a mask that no name was predicted for.

        The first label with the word "part" (or "object") in its name that is not of the other kind; else the first
        with kind="part"; else the first label; None if the config has none.
        """
        wanted = "part" if part else "object"
        by_kind = [label for label in self.labels if label.kind == wanted]
        by_name = [label for label in self.labels if label.kind in (None, wanted) and wanted in label.text.lower()]
        first = (by_name or by_kind or self.labels)[:1]
        return first[0].value if first else None


def _of_image(image: Tag, tags: list[Tag], images: int) -> LabelConfig:
    """The reading for one <Image> tag, which has a name."""
    name = image.attributes["name"]
    controls = [tag for tag in tags if tag.attributes.get("name") and name in tag.to_names()]
    labels_in = next((tag for tag in controls if tag.name == "labels"), None)
    answer = _answer(controls, labelled=labels_in is not None)
    if answer is not None and answer.name.endswith("labels"):
        labels_in = None
    holder = labels_in or answer
    level, note = _per_region(controls, "choices", "level"), _per_region(controls, "textarea", "note")
    return LabelConfig(
        image_name=name,
        image_value=image.attributes.get("valuelist") or image.attributes.get("value"),
        images=images,
        pages=bool(image.attributes.get("valuelist")),
        repeater=any(tag.name == "repeater" for tag in tags),
        answer=_control(answer) if answer else None,
        labels_in=_control(labels_in) if labels_in and answer else None,
        labels=_labels(holder.element) if holder and answer else (),
        task_labels=holder.attributes.get("value") if holder and answer else None,
        prompts=tuple(_control(tag) for tag in controls if tag is not answer and _is_prompt(tag)),
        level=level.attributes["name"] if level else None,
        level_values=_level_values(level.element) if level else {},
        note=note.attributes["name"] if note else None,
    )


def _control(tag: Tag) -> Control:
    return Control(tag.attributes["name"], tag.name, tag.flag("smart"), bool(tag.flag("smartonly")))


def _answer(controls: list[Tag], *, labelled: bool) -> Tag | None:
    """labelled: whether there is a <Labels> for controls without labels of their own."""
    able = [tag for tag in controls if tag.name in ANSWER_TAGS and not tag.flag("smartonly")]
    if not labelled:  # a rectangle without labels is a prompt, not an answer
        able = [tag for tag in able if tag.name != "rectangle"]
    order: list[bool | None] = [False, None, True]

    def place(tag: Tag) -> tuple[bool, bool, int]:
        has_labels = labelled or tag.name.endswith("labels")
        return tag.name.startswith("rectangle"), not has_labels, order.index(tag.flag("smart"))

    return min(able, key=place, default=None)


def _is_prompt(tag: Tag) -> bool:
    return tag.name in PROMPT_TAGS and bool(tag.flag("smartonly") or tag.flag("smart") is not False)


def _per_region(controls: list[Tag], name: str, word: str) -> Tag | None:
    """The first control of that kind for single regions whose own name contains `word`."""
    fitting = (tag for tag in controls if tag.name == name and tag.flag("perregion"))
    return next((tag for tag in fitting if word in tag.attributes["name"].lower()), None)


def _values(element: ElementTree.Element, name: str) -> Iterator[tuple[str, dict[str, str]]]:
    """What results carry for each tag of that name inside `element`, with the tag's attributes."""
    for tag in tags_in(element):
        value = tag.attributes.get("alias") or tag.attributes.get("value")
        if tag.name == name and value:
            yield value, tag.attributes


_LABEL_FIELDS = ("value", "alias", "kind", "of", "predicted_values")


def _label(own: Mapping[str, str]) -> Label | None:
    """A label of its attributes; None without a value."""
    value = own.get("alias") or own.get("value")
    if not value:
        return None
    kind = own.get("kind", "").strip().lower() or ("part" if own.get("of") else None)
    predicted = tuple(name.strip() for name in own.get("predicted_values", "").split(",") if name.strip())
    return Label(value, own.get("value") or value, kind, own.get("of"), predicted)


def _labels(element: ElementTree.Element) -> tuple[Label, ...]:
    labels: dict[str, Label] = {}
    for _, own in _values(element, "label"):
        if (label := _label(own)) is not None:
            labels.setdefault(label.value, label)
    return tuple(labels.values())


def _level_values(element: ElementTree.Element) -> dict[int, str]:
    """Six choices are the six levels in order; otherwise only choices named like "level 2" or "2" count."""
    values = [value for value, _ in _values(element, "choice")]
    if len(values) == len(LEVELS):
        return dict(enumerate(values, start=1))
    named = {level: (f"level {level}", f"L{level}", str(level)) for level in LEVELS}
    return {level: name for level, names in named.items() for name in names if name in values}
