"""Reads the JSON of annotations; a file of another kind is refused with what it is and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semsam_model.data.readers.entries import malformed, parse_json
from semsam_model.errors import DataError

COCO = "COCO-style JSON"
PANOPTIC = "COCO panoptic JSON"
LABEL_STUDIO = "a Label Studio export in JSON"
LABELME = "a labelme file"


def parse_annotations(path: Path, expected: str, *kinds: type) -> Any:
    """The content of a JSON file whose outermost value is of one of the kinds (dict, list).

    expected: what the reader reads, in words. Raises DataError for what cannot be read, or is known as another format.
    """
    with malformed(path, expected):
        content = parse_json(path.read_bytes(), object)
    other = known_form(content)
    if other is not None and other[0] != expected:
        raise DataError(f"{path}: expected {expected}, this is {other[0]}; {other[1]}")
    if not isinstance(content, kinds):
        raise DataError(f"{path}: expected {expected}, got a JSON {type(content).__name__}")
    return content


def known_form(content: Any) -> tuple[str, str] | None:
    """What a JSON is, where its keys tell, and what to do with it."""
    if isinstance(content, list):
        first = next((entry for entry in content if isinstance(entry, dict)), {})
        if "data" in first or ("result" in first and "task" in first):
            return LABEL_STUDIO, "read it as kind label_studio"
        if "annotation_id" in first or ("annotator" in first and "id" in first):
            return "Label Studio's JSON-MIN, which lacks what belongs to a mask", "export as JSON instead"
        if "image_id" in first and "category_id" in first:
            return "a list of results in COCO's form, without images", "give the file of images and annotations"
        if "image" in first and "annotations" in first:
            return "a file of CreateML, which has boxes and no masks", "export masks as COCO"
        return None
    if not isinstance(content, Mapping):
        return None
    if "images" in content and "annotations" in content:
        segments = content["annotations"] or [{}]
        if isinstance(segments, list) and isinstance(segments[0], dict) and "segments_info" in segments[0]:
            return PANOPTIC, "read it as kind panoptic"
        return COCO, "read it as kind coco"
    if "shapes" in content and "imagePath" in content:
        return LABELME, "read its folder as kind labelme"
    if "_via_img_metadata" in content or any(
        isinstance(each, dict) and "regions" in each and "filename" in each for each in content.values()
    ):
        return "a project of the VGG Image Annotator", "export it as COCO"
    if "data" in content or ("result" in content and "task" in content):
        return LABEL_STUDIO, "read it as kind label_studio"
    return None
