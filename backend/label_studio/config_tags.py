"""The XML of a labeling config as tags with attributes. It is untrusted: its size is limited, and document types, which
may define entities, are refused. Tag and attribute names are read without regard to case, as the editor does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree

from backend.errors import BadRequest

MAX_CONFIG_CHARS = 1_000_000


@dataclass(frozen=True)
class Tag:
    """An element with its name and its attributes' names in small letters."""

    name: str
    attributes: dict[str, str]
    element: ElementTree.Element

    def flag(self, attribute: str) -> bool | None:
        """An attribute that is true or false; None where it is not given."""
        text = self.attributes.get(attribute)
        return None if text is None else text.strip().lower() == "true"

    def to_names(self) -> list[str]:
        """What it is connected to."""
        return [name.strip() for name in self.attributes.get("toname", "").split(",")]


def parse_xml(xml: str) -> ElementTree.Element:
    """Raises BadRequest for text that is not XML, is too long, or has a document type."""
    if len(xml) > MAX_CONFIG_CHARS:
        raise BadRequest(f"label_config: expected at most {MAX_CONFIG_CHARS} characters, got {len(xml)}")
    if re.search(r"<!(DOCTYPE|ENTITY)", xml, re.IGNORECASE):
        raise BadRequest("label_config: expected plain XML without a document type or entities; remove the <!...> part")
    try:
        return ElementTree.fromstring(xml)
    except (ElementTree.ParseError, ValueError) as exc:
        raise BadRequest(f"label_config: expected XML such as <View>...</View>, it cannot be read: {exc}") from exc


def tags_in(root: ElementTree.Element) -> Iterator[Tag]:
    """The element and all inside it, in the order written."""
    for element in root.iter():
        yield Tag(str(element.tag).lower(), {k.lower(): v for k, v in element.attrib.items()}, element)
