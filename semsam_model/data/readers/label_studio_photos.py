"""Which photo of a task a row of Label Studio's was drawn on: its own `to_name` and, of several pages, `item_index`.

A labeling config says which field of the task an Image tag shows. An export does not hold it, so without one a row is
bound where there is one choice only: the task names one photo, or the field with the name of the tag holds one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from semsam_model.data.readers.photo_names import is_photo_name
from semsam_model.errors import ConfigError, DataError

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*://[^/]+/|/data/|/tasks/)", re.IGNORECASE)
_VARIABLE = re.compile(r"^\$([\w.\[\]]+)$")


@dataclass(frozen=True)
class ImageTags:
    """The Image tags of a labeling config: name of the tag -> its field of the task's data."""

    fields: Mapping[str, str]
    repeated: Mapping[str, tuple[str, str]]  #: in a Repeater: pattern of the name -> its flag, the field with the flag

    @staticmethod
    def read(path: Path) -> ImageTags:
        """Of a labeling config in a file. Raises ConfigError when it cannot be read, or shows no image."""
        try:
            text = path.read_text(encoding="utf-8")
            if re.search(r"<!(DOCTYPE|ENTITY)", text, re.IGNORECASE):
                raise ValueError("document types and entities are not read")
            root = ElementTree.fromstring(text)
        except (OSError, ValueError, ElementTree.ParseError) as exc:
            raise ConfigError(f"{path}: expected a labeling config, <View>...</View>: {exc}") from exc
        fields, repeated = dict[str, str](), dict[str, tuple[str, str]]()
        for name, value, flag in _tags(root, None):
            if not (found := _VARIABLE.match(value.replace(flag, "0") if flag else value)):
                continue
            if flag:
                repeated[re.escape(name).replace(re.escape(flag), r"(\d+)")] = flag, value.removeprefix("$")
            else:
                fields[name] = found[1]
        if not fields and not repeated:
            raise ConfigError(f'{path}: expected a labeling config with <Image name="..." value="$...">, found none')
        return ImageTags(fields, repeated)

    def field_of(self, tag: str) -> str | None:
        """The field that a tag shows; None for a tag that is not there."""
        for pattern, (flag, value) in self.repeated.items():
            if found := re.fullmatch(pattern, tag):
                return value.replace(flag, found[1])
        return self.fields.get(tag)


def _tags(element: ElementTree.Element, flag: str | None) -> Iterator[tuple[str, str, str | None]]:
    """Name and value of each Image tag, and the index flag of the Repeater that it stands in."""
    attributes = {key.lower(): value for key, value in element.attrib.items()}
    tag = str(element.tag).lower()
    if tag == "repeater":
        flag = attributes.get("indexflag", "{{idx}}")
    value = attributes.get("valuelist") or attributes.get("value", "")
    if tag == "image" and attributes.get("name"):
        yield attributes["name"], value, flag
    for child in element:
        yield from _tags(child, flag)


def address_of(data: Mapping[Any, Any], tag: str, page: int | None, tags: ImageTags | None) -> str:
    """The address of the photo that a row was drawn on.

    tag: the row's `to_name`; page: its `item_index`, where it has one. Raises DataError where that cannot be told.
    """
    if tags is not None:
        field = tags.field_of(tag)
        if field is None:
            raise DataError(f"the labeling config has no <Image name={tag!r}>")
        return _of_page(look_up(data, field), page, f"data {field!r}")
    if page is not None:
        lists = {key: value for key, value in data.items() if isinstance(value, list) and _is_photo_list(value)}
        if not lists:  # the only page of a plain Image tag
            return _only(data, tag) if page == 0 else _of_page(None, page, "the task")
        key = next(iter(lists)) if len(lists) == 1 else tag
        return _of_page(lists.get(key), page, f"data {key!r}")
    return _only(data, tag)


def _only(data: Mapping[Any, Any], tag: str) -> str:
    """The photo of a task whose rows say no page."""
    own = data.get(tag)
    if isinstance(own, str) and _is_address(own):
        return own
    found = list(dict.fromkeys(text for text in texts(data) if _is_address(text)))
    if not found:
        raise DataError(f"expected the address of a photo in the task's data, got {str(dict(data))[:200]}")
    if len(found) > 1:
        raise DataError(
            f"drawn on {tag!r}, which may be any of {len(found)} addresses in the task; say which with the setting "
            "`config`, the project's labeling config in a file"
        )
    return found[0]


def _of_page(value: Any, page: int | None, where: str) -> str:
    if isinstance(value, str) and value and page in (None, 0):
        return value
    if isinstance(value, list):
        if page is None and len(value) == 1:
            page = 0
        if page is None:
            raise DataError(f"{where} has {len(value)} pages, and the region's item_index does not say which")
        if 0 <= page < len(value) and isinstance(value[page], str):
            return value[page]
    shown = "" if page is None else f", page {page} (item_index)"
    raise DataError(f"{where}{shown}: expected the address of a photo, got {str(value)[:100]}")


def _is_photo_list(value: list[Any]) -> bool:
    return bool(value) and all(isinstance(each, str) for each in value) and any(map(is_photo_name, value))


def _is_address(text: str) -> bool:
    """Whether a text may say where a photo is: it ends as one, or is an address without an ending of another kind."""
    if len(text) > 4096 and text[:5].lower() != "data:":
        return False
    if is_photo_name(text):
        return True
    start = _ADDRESS.match(text)
    return start is not None and "." not in text[start.end() :].split("?")[0].rsplit("/", 1)[-1]


def texts(data: Any) -> Iterator[str]:
    """Every text in a task's data, however deep."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, Mapping):
        for value in data.values():
            yield from texts(value)
    elif isinstance(data, list):
        for value in data:
            yield from texts(value)


def look_up(data: Mapping[Any, Any], key: str) -> Any:
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
