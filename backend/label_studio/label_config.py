"""A project's labeling config (XML): which photo it shows, which control holds the answer, which tools are prompts.

The XML comes from Label Studio and is untrusted: its size is limited, and document types, which may define entities,
are refused. Tag and attribute names are read without regard to case, as the editor does.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

from backend.errors import BadRequest
from semsam_model.types import KINDS, LEVELS, Kind

MAX_CONFIG_CHARS = 1_000_000

#: Controls that can hold an answer: in small letters -> as they are written.
ANSWER_TAGS = {
    "brushlabels": "BrushLabels",
    "bitmasklabels": "BitmaskLabels",
    "polygonlabels": "PolygonLabels",
    "rectanglelabels": "RectangleLabels",
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


@dataclass(frozen=True)
class Control:
    """A control connected to the image; `smart` is None where it is not given, which the editor takes as true."""

    name: str
    tag: str  #: in small letters
    smart: bool | None = None
    smart_only: bool = False

    def __str__(self) -> str:
        return f'<{(ANSWER_TAGS | PROMPT_TAGS).get(self.tag, self.tag)} name="{self.name}">'


@dataclass(frozen=True)
class LabelConfig:
    """A labeling config, read by `LabelConfig.parse`. What is missing is None or empty, and `problems` names it."""

    image_name: str | None = None
    image_value: str | None = None  #: as written, such as "$image" or "$photo.url"
    images: int = 0  #: how many <Image> tags; the first counts
    answer: Control | None = None
    labels: tuple[Label, ...] = ()
    prompts: tuple[Control, ...] = ()
    level: str | None = None  #: perRegion Choices whose name contains "level"
    level_values: Mapping[int, str] = field(default_factory=dict)  #: level 1..6 -> its choice, where there is one
    note: str | None = None  #: perRegion TextArea whose name contains "note"

    @staticmethod
    def parse(xml: str) -> LabelConfig:
        """Reads the labeling config.

        The answer control is the first one connected to the image, in this order: smart="false", `smart` not given,
        smart="true"; never a smartOnly one. Raises BadRequest for text that is not XML, is too long, or has a document
        type.
        """
        tags = list(_tags(_parse_xml(xml)))
        images = [tag for tag in tags if tag.name == "image"]
        if not images or not images[0].attributes.get("name"):
            return LabelConfig(images=len(images))
        image = images[0].attributes
        controls = [tag for tag in tags if tag.attributes.get("name") and image["name"] in tag.to_names()]
        answer = _answer(controls)
        level, note = _per_region(controls, "choices", "level"), _per_region(controls, "textarea", "note")
        return LabelConfig(
            image_name=image["name"],
            image_value=image.get("value"),
            images=len(images),
            answer=answer.to_control() if answer else None,
            labels=_labels(answer.element) if answer else (),
            prompts=tuple(tag.to_control() for tag in controls if tag is not answer and _is_prompt(tag)),
            level=level.attributes["name"] if level else None,
            level_values=_level_values(level.element) if level else {},
            note=note.attributes["name"] if note else None,
        )

    def problems(self) -> list[str]:
        """Why this config will not work well, each with the exact change to make; empty if all is well."""
        # names come from outside: a line break in one must not make a second line of the log
        return [" ".join(problem.split()) for problem in _problems(self)]

    def image_url(self, data: Mapping[str, Any]) -> str:
        """The photo's address in a task's data; nested keys ("$photo.url", "$photos[0]") too. Raises BadRequest."""
        if self.image_value is None or "$" not in self.image_value:
            raise BadRequest(f"label_config: {self.problems()[0]}")
        variable = re.compile(r"\$([\w\[\].]+)")
        found = [(key, _look_up(data, key)) for key in variable.findall(self.image_value)]
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


def _look_up(data: Mapping[str, Any], key: str) -> Any:
    """The value at a key such as `photo.url` or `photos[0]`; None where there is none."""
    if key in data:
        return data[key]
    value: Any = data
    for step in re.findall(r"[^.\[\]]+", key):
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, list) and step.isascii() and step.isdigit() and len(step) < 9 and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


@dataclass(frozen=True)
class _Tag:
    """An element with its name and its attributes' names in small letters."""

    name: str
    attributes: dict[str, str]
    element: ElementTree.Element

    def flag(self, attribute: str) -> bool | None:
        text = self.attributes.get(attribute)
        return None if text is None else text.strip().lower() == "true"

    def to_names(self) -> list[str]:
        return [name.strip() for name in self.attributes.get("toname", "").split(",")]

    def to_control(self) -> Control:
        return Control(self.attributes["name"], self.name, self.flag("smart"), bool(self.flag("smartonly")))


def _parse_xml(xml: str) -> ElementTree.Element:
    if len(xml) > MAX_CONFIG_CHARS:
        raise BadRequest(f"label_config: expected at most {MAX_CONFIG_CHARS} characters, got {len(xml)}")
    if re.search(r"<!(DOCTYPE|ENTITY)", xml, re.IGNORECASE):
        raise BadRequest("label_config: expected plain XML without a document type or entities; remove the <!...> part")
    try:
        return ElementTree.fromstring(xml)
    except (ElementTree.ParseError, ValueError) as exc:
        raise BadRequest(f"label_config: expected XML such as <View>...</View>, it cannot be read: {exc}") from exc


def _tags(root: ElementTree.Element) -> Iterator[_Tag]:
    for element in root.iter():
        yield _Tag(str(element.tag).lower(), {k.lower(): v for k, v in element.attrib.items()}, element)


def _answer(controls: list[_Tag]) -> _Tag | None:
    able = [tag for tag in controls if tag.name in ANSWER_TAGS and not tag.flag("smartonly")]
    order: list[bool | None] = [False, None, True]
    return min(able, key=lambda tag: order.index(tag.flag("smart")), default=None)


def _is_prompt(tag: _Tag) -> bool:
    return tag.name in PROMPT_TAGS and bool(tag.flag("smartonly") or tag.flag("smart") is not False)


def _per_region(controls: list[_Tag], name: str, word: str) -> _Tag | None:
    """The first control of that kind for single regions whose own name contains `word`."""
    fitting = (tag for tag in controls if tag.name == name and tag.flag("perregion"))
    return next((tag for tag in fitting if word in tag.attributes["name"].lower()), None)


def _values(element: ElementTree.Element, name: str) -> Iterator[tuple[str, dict[str, str]]]:
    """What results carry for each tag of that name inside `element`, with the tag's attributes."""
    for tag in _tags(element):
        value = tag.attributes.get("alias") or tag.attributes.get("value")
        if tag.name == name and value:
            yield value, tag.attributes


def _labels(element: ElementTree.Element) -> tuple[Label, ...]:
    labels: dict[str, Label] = {}
    for value, own in _values(element, "label"):
        kind = own.get("kind", "").strip().lower() or ("part" if own.get("of") else None)
        labels.setdefault(value, Label(value, own.get("value") or value, kind, own.get("of")))
    return tuple(labels.values())


def _level_values(element: ElementTree.Element) -> dict[int, str]:
    """Six choices are the six levels in order; otherwise only choices named like "level 2" or "2" count."""
    values = [value for value, _ in _values(element, "choice")]
    if len(values) == len(LEVELS):
        return dict(enumerate(values, start=1))
    named = {level: (f"level {level}", f"L{level}", str(level)) for level in LEVELS}
    return {level: name for level, names in named.items() for name in names if name in values}


def _problems(config: LabelConfig) -> Iterator[str]:
    if config.image_name is None:
        if config.images:
            yield 'the <Image> tag has no name: write <Image name="image" value="$image"/>'
        else:
            yield 'there is no <Image> tag: add <Image name="image" value="$image"/>'
        return
    if not config.image_value or "$" not in config.image_value:
        yield (
            f'<Image name="{config.image_name}"> names no field of the task: write value="$image", where image is the '
            "field with the photo's address (valueList, several photos in one task, is not supported)"
        )
    if config.images > 1:
        yield f'there are {config.images} <Image> tags: only "{config.image_name}" gets masks; remove the others'
    if config.answer is None:
        yield (
            f'no control can hold a mask: add <PolygonLabels name="mask" toName="{config.image_name}" smart="false">'
            '<Label value="object" kind="object"/><Label value="part" kind="part"/></PolygonLabels>'
        )
    else:
        if config.answer.smart is not False:
            yield f'{config.answer}: add smart="false"; without it there is one more smart tool, which gets no answer'
        if not config.labels:
            yield f'{config.answer}: add at least one <Label value="object" kind="object"/> inside it'
        if config.answer.tag == "brushlabels":
            yield (
                f"{config.answer}: every accepted mask makes the next click slower, since the editor encodes all brush "
                "masks anew before each request; write <PolygonLabels>, or <BitmaskLabels> where pixels matter"
            )
            for name in filter(None, (config.level, config.note)):
                yield f'"{name}" makes the editor encode each brush mask once more: remove it, a region\'s meta says it'
    if not config.prompts:
        yield (
            "no tool asks for masks: add "
            f'<KeyPoint name="click" toName="{config.image_name}" smartOnly="true" strokeWidth="2"/>'
        )
