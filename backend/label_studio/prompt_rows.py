"""The prompts that an editor sends with an interactive request, as rows of JSON; coordinates stay percent, as sent.

Written against what Label Studio 1.23 sends. A malformed row raises BadRequest naming the field.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from annotated_types import Ge
from pydantic import BeforeValidator, Field, Strict, model_validator

from backend.errors import BadRequest
from backend.label_studio.label_config import PROMPT_TAGS, LabelConfig
from semsam_model.masks.geometry import Size
from semsam_model.masks.label_studio import Percent, Pixels, Rectangle, listed_texts, row_labels
from semsam_model.validation import NOTHING, Expected, JsonModel, Lenient, check, empty_as

MAX_PROMPT_ROWS = 500


def _texts(value: Any) -> tuple[str, ...]:
    """Texts that are not empty; whatever else stands there is left out."""
    return tuple(text for text in value if isinstance(text, str) and text) if isinstance(value, list | tuple) else ()


class _Point(JsonModel):
    x: Percent
    y: Percent


class _Texts(JsonModel):
    text: Annotated[
        list[str],
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
        Expected("text or a list of texts"),
    ]


class _PromptRow(JsonModel):
    """What every prompt says beside its value."""

    id: Lenient[str] = None
    control: Annotated[str, BeforeValidator(lambda value: value if isinstance(value, str) else "")] = Field(
        default="", alias="from_name"
    )
    image: Lenient[str] = Field(default=None, alias="to_name")
    page: Annotated[int, Strict(), Ge(0), Expected("a page from 0"), empty_as(0)] = Field(default=0, alias="item_index")
    original_height: Pixels | None = None
    original_width: Pixels | None = None
    #: chosen before the prompt was made: those of the prompt's control, or of a control beside it
    labels: Annotated[tuple[str, ...], BeforeValidator(_texts)] = ()

    @model_validator(mode="before")
    @classmethod
    def _both_sides_or_neither(cls, value: Any) -> Any:
        sides = ("original_height", "original_width")
        if isinstance(value, dict) and any(value.get(side) is not None for side in sides):
            return value | {side: NOTHING for side in sides if value.get(side) is None}
        return value

    @property
    def size(self) -> Size | None:
        """(H, W) of the photo as the editor knows it."""
        if self.original_height is None or self.original_width is None:
            return None
        return int(self.original_height), int(self.original_width)


class KeypointRow(_PromptRow):
    """A click."""

    value: _Point
    is_positive: Annotated[bool, Strict()] = True


class RectangleRow(_PromptRow):
    """A box."""

    value: Rectangle


class TextRow(_PromptRow):
    """Words to look for."""

    value: _Texts

    @property
    def texts(self) -> tuple[str, ...]:
        """Its lines that are not empty."""
        return tuple(line.strip() for line in self.value.text if line.strip())


PromptRow = KeypointRow | RectangleRow | TextRow


class _RowHead(JsonModel):
    type: str
    id: Lenient[str] = None


def prompt_rows(rows: list[Any], name: str, submitted: frozenset[str]) -> tuple[tuple[PromptRow, ...], tuple[str, ...]]:
    """Rows that are prompts, in order, one an id: drawn while a label was active, a prompt arrives in several rows.

    Such a prompt has the labels of all its rows. submitted: ids of what the task's annotations hold already: a prompt
    that was submitted with one comes back from the editor with every later request, and is not meant any more. Also
    the rows that are not used, in words for the log.
    """
    if len(rows) > MAX_PROMPT_ROWS:
        raise BadRequest(f"{name}: expected at most {MAX_PROMPT_ROWS} rows, got {len(rows)}; delete old points")
    prompts: list[PromptRow] = []
    ignored: list[str] = []
    labels: dict[str, tuple[str, ...]] = {}
    for k, row in enumerate(rows):
        at = f"{name}[{k}]"
        head = check(_RowHead, row, at, BadRequest)
        if head.id is not None:
            labels[head.id] = labels.get(head.id, ()) + _active_labels(row)
        if head.id is not None and any(prompt.id == head.id for prompt in prompts):
            ignored.append(f"{at}: second row of {head.id[:40]!r}")
        elif head.id in submitted:
            ignored.append(f"{at}: {head.id[:40]!r} was submitted with an annotation")
        elif head.type not in PROMPT_TAGS and head.type != "textarea":
            ignored.append(f"{at}: a {head.type[:40]!r} row is no prompt")
        else:
            kind: type[PromptRow] = KeypointRow if head.type.startswith("keypoint") else RectangleRow
            if head.type == "textarea":
                kind = TextRow
            prompts.append(check(kind, row | {"labels": _active_labels(row)}, at, BadRequest))
    chosen = [p if p.id is None else p.model_copy(update={"labels": labels[p.id]}) for p in prompts]
    return tuple(chosen), tuple(ignored)


def _active_labels(row: dict[str, Any]) -> tuple[str, ...]:
    """Of a row: <KeyPointLabels> and the like write them under their own name, every control under "labels"."""
    return tuple(dict.fromkeys(row_labels(row) + listed_texts(row, "labels")))


def on_one_image(
    rows: Sequence[PromptRow], config: LabelConfig
) -> tuple[LabelConfig, int, tuple[PromptRow, ...], tuple[str, ...]]:
    """Where a task shows several photos, the one of the newest prompt: its config and page, the prompts that are on it,
    and in words for the log those that are not. Raises BadRequest for a prompt on an image that the config has not.
    """
    if not rows:
        return config, 0, (), ()
    first = config.image_name or ""
    places = [(row.image or config.image_of(row.control) or first, row.page) for row in rows]
    image, page = place = places[-1]
    own = config.of_image(image)
    if own is None:
        why = config.problems()[0] if config.repeater else "the labeling config has no such <Image>"
        raise BadRequest(f"to_name {image[:40]!r}: {why}")
    ignored = tuple(
        f"a prompt on <Image name={name[:40]!r}>, page {number + 1}: the newest is on {image!r}, page {page + 1}"
        for name, number in places
        if (name, number) != place
    )
    return own, page, tuple(row for row, its in zip(rows, places, strict=True) if its == place), ignored
