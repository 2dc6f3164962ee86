"""Why a labeling config will not work well, each with the exact change to make: what /setup logs and people read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backend.label_studio.label_config import LabelConfig


def config_problems(config: LabelConfig) -> Iterator[str]:
    """In the order in which they are to be mended."""
    if config.image_name is None:
        if config.images:
            yield 'the <Image> tag has no name: write <Image name="image" value="$image"/>'
        else:
            yield 'there is no <Image> tag: add <Image name="image" value="$image"/>'
        return
    if config.repeater:
        yield (
            "<Repeater> shows several photos in one task, which is not supported: import one task a photo and write "
            '<Image name="image" value="$image"/> outside of it'
        )
    if not config.image_value or "$" not in config.image_value:
        yield (
            f'<Image name="{config.image_name}"> names no field of the task: write value="$image", where image is the '
            "field with the photo's address"
        )
    if config.pages:
        yield (
            f'<Image name="{config.image_name}"> shows pages (valueList): a click is answered on its page, but only '
            "the first page is annotated without a click, learned from and exported; import one task a photo instead"
        )
    if config.others:
        yield (
            f"there are {1 + len(config.others)} <Image> tags: a click is answered on its image, but only "
            f'"{config.image_name}" is annotated without a click, learned from and exported; make a project for each'
        )
    if config.answer is None:
        yield (
            f'no control can hold a mask: add <PolygonLabels name="mask" toName="{config.image_name}" smart="false">'
            '<Label value="object" kind="object"/><Label value="part" kind="part"/></PolygonLabels>'
        )
    else:
        if config.answer.smart is not False:
            yield f'{config.answer}: add smart="false"; without it there is one more smart tool, which gets no answer'
        yield from _label_problems(config)
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


def _label_problems(config: LabelConfig) -> Iterator[str]:
    assert config.answer is not None
    holder = config.labels_in or config.answer
    if not holder.tag.endswith("labels"):
        yield (
            f'{config.answer} has no labels: add <Labels name="label" toName="{config.image_name}"><Label '
            'value="object" kind="object"/></Labels>, or write <PolygonLabels> or <BitmaskLabels> with labels inside'
        )
    elif config.task_labels and "$" not in config.task_labels:
        yield f'{holder}: value="{config.task_labels}" names no field of the task; write value="$labels"'
    elif not config.labels and not config.task_labels:
        yield f'{holder}: add at least one <Label value="object" kind="object"/> inside it'
