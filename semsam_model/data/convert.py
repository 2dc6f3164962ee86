"""`semsam data convert`: annotated photos in any form that is read -> COCO, SA-1B, YOLO or Label Studio files.

What cannot be read is left out and named; masks stay equal to the pixel, but for YOLO's outlines of more than
`MAX_VERTICES` points.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import yaml

from semsam_model.data.folder import read_samples, write_samples
from semsam_model.data.mixture import read_mixture
from semsam_model.data.readers.coco import read_coco
from semsam_model.data.readers.cvat import read_cvat
from semsam_model.data.readers.entries import malformed, parse_json
from semsam_model.data.readers.file_kinds import COCO, LABELME, PANOPTIC, known_form
from semsam_model.data.readers.label_studio import read_label_studio
from semsam_model.data.readers.labelme import read_labelme
from semsam_model.data.readers.sa1b import read_sa1b
from semsam_model.data.readers.voc import read_voc
from semsam_model.data.readers.yolo import read_yolo
from semsam_model.data.samples import Annotation, Dataset, Sample
from semsam_model.data.shards import lossless, photo_and_json
from semsam_model.data.split import SPLITS, VALIDATION_SHARE, Split, split_of
from semsam_model.errors import DataError
from semsam_model.files import named, write_bytes
from semsam_model.masks.codecs import encode_brush_rle
from semsam_model.masks.geometry import crop_mask
from semsam_model.masks.yolo import YOLO_UNREAD, yolo_line, yolo_yaml

Target = Literal["coco", "sa1b", "yolo", "labelstudio"]


@dataclass
class Converted:
    """What became of the photos."""

    photos: int = 0
    masks: int = 0
    masks_lost: int = 0
    skipped: list[str] = field(default_factory=list)


#: What is made, until it is whole.
_STAGED = ".converting"
_READ = "COCO, Label Studio or labelme JSON, CVAT's XML, data.yaml of YOLO, or a folder"


def read_any(path: Path, images: Path | None = None) -> list[Dataset]:
    """What a file or folder holds, by what it looks like. images: where photos are, if not beside it.

    Raises DataError for what cannot be told, or read; ConfigError for a mixture that cannot be read.
    """
    if path.is_dir():
        return [_read_folder(path, images)]
    if path.suffix.lower() in (".yaml", ".yml"):
        with malformed(path, "a mixture, or the data.yaml of YOLO"):
            is_mixture = "sources" in yaml.safe_load(path.read_text(encoding="utf-8"))
        return list(read_mixture(path, images).datasets.values()) if is_mixture else [read_yolo(path)]
    if path.suffix.lower() == ".xml":
        return [read_cvat(path, images)]
    if path.suffix.lower() == ".tar":
        return [read_sa1b(path)]
    if path.suffix.lower() in (".zip", ".gz", ".tgz", ".7z", ".rar"):
        raise DataError(f"{path}: expected {_READ}; unpack it first")
    with malformed(path, _READ):
        form = (known_form(parse_json(path.read_bytes(), object)) or ("", ""))[0]
    if form == LABELME:
        return [read_labelme(path)]
    if form in (COCO, PANOPTIC):
        return [read_coco(path, images)]
    return [read_label_studio(path, images or path.parent)]


def _read_folder(path: Path, images: Path | None) -> Dataset:
    if (path / "data.yaml").is_file():
        return read_yolo(path)
    if (path / "SegmentationClass").is_dir():
        return read_voc(path)
    if (path / "annotations.xml").is_file():
        return read_cvat(path / "annotations.xml", images or path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    if not any(file.suffix.lower() in ("", ".json", ".tar") for file in files):
        raise DataError(f"{path}: no annotations in it; expected {_READ} with such files, or of VOC, SA-1B, YOLO")
    forms = set[str]()
    for file in [file for file in files if file.suffix.lower() == ".json"][:20]:
        try:
            content = parse_json(file.read_bytes(), object)
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and "image" in content and "annotations" in content:
            return read_sa1b(path)
        forms.add((known_form(content) or ("", ""))[0])
    if COCO in forms:
        return read_samples(path)
    if LABELME in forms:
        return read_labelme(path)
    if any(path.rglob("*.tar")):
        return read_sa1b(path)
    return read_label_studio(path, images or path)


def convert(
    datasets: Iterable[Dataset],
    target: Target,
    out: Path,
    on_photo: Callable[[], None] = lambda: None,
    *,
    validation_share: float = VALIDATION_SHARE,
) -> Converted:
    """Write everything to the folder `out`, new or empty.

    It is there when it is whole. validation_share: of the photos, in YOLO's `val`; told by their digests, as the export
    tells them. Raises DataError, also when nothing could be written; OSError that names the file.
    """
    staged = out / _STAGED
    if out.exists() and set(out.iterdir()) - {staged}:
        raise DataError(f"{out}: expected a new or empty folder")
    shutil.rmtree(staged, ignore_errors=True)  # of a run that was killed
    staged.mkdir(parents=True)
    try:
        done = _convert(datasets, target, staged, on_photo, validation_share)
        for item in sorted(staged.iterdir()):
            item.rename(out / item.name)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return done


def _convert(
    datasets: Iterable[Dataset], target: Target, out: Path, on_photo: Callable[[], None], validation_share: float
) -> Converted:
    done = Converted()
    samples = _usable(datasets, done, on_photo)
    if target == "coco":
        first = next(samples, None)
        if first is not None:
            write_samples(_chained(first, samples), out, "annotations")
    elif target == "yolo":
        _write_yolo(samples, out, validation_share, done)
    else:
        {"sa1b": _write_sa1b, "labelstudio": _write_label_studio}[target](samples, out)
    if not done.photos:
        raise DataError(f"nothing could be converted; {done.skipped[:3] or 'no photo in it'}")
    return done


def _chained(first: Sample, rest: Iterator[Sample]) -> Iterator[Sample]:
    yield first
    yield from rest


def _usable(datasets: Iterable[Dataset], done: Converted, on_photo: Callable[[], None]) -> Iterator[Sample]:
    """Samples whose photo and masks can be read; what cannot is counted."""
    for dataset in datasets:
        done.skipped += dataset.skipped
        done.masks_lost += dataset.masks_lost
        for sample in dataset.samples:
            on_photo()
            count = 0
            try:
                count = len(sample.regions)
                sample.image()
                kept = _readable(sample, done)
            except DataError as exc:
                done.skipped.append(str(exc))
                done.masks_lost += count
                continue
            done.photos += 1
            done.masks += len(kept.regions)
            yield kept


def _readable(sample: Sample, done: Converted) -> Sample:
    """The sample without the masks that cannot be read, or are empty."""
    places = dict[int, int]()
    for index in range(len(sample.regions)):
        try:
            if not sample.mask(index).any():
                raise DataError(f"{sample.path}, region {index}: an empty mask")
        except DataError as exc:
            done.skipped.append(str(exc))
            done.masks_lost += 1
        else:
            places[index] = len(places)
    regions = tuple(
        replace(region, parent=None if region.parent is None else places.get(region.parent))
        for region in (sample.regions[index] for index in places)
    )
    annotation: Annotation = replace(sample.annotation, regions=regions)
    return Sample(sample.photo, sample.source, annotation, sample.supervision)


def _write_sa1b(samples: Iterable[Sample], out: Path) -> None:
    for number, sample in enumerate(samples, start=1):
        photo, suffix, annotation, _ = photo_and_json(sample, None)
        write_bytes(out / f"sa_{number:06}.{suffix}", photo)
        write_bytes(out / f"sa_{number:06}.json", annotation)


def _write_yolo(samples: Iterable[Sample], out: Path, validation_share: float, done: Converted) -> None:
    numbers: dict[str, int] = {}
    photos: dict[Split, int] = dict.fromkeys(SPLITS, 0)
    for split in SPLITS:
        for folder in ("images", "labels"):
            (out / folder / split).mkdir(parents=True)
    for number, sample in enumerate(samples, start=1):
        photo, suffix, *_ = photo_and_json(sample, None)
        split = split_of(hashlib.sha256(photo).hexdigest(), validation_share)
        photos[split] += 1
        if suffix in YOLO_UNREAD:
            photo, suffix = lossless(sample.image()), "webp"
        write_bytes(out / f"images/{split}/{number:06}.{suffix}", photo)
        lines = []
        for index, region in enumerate(sample.regions):
            label = numbers.setdefault(region.name or "unnamed", len(numbers))
            lines.append(yolo_line(label, *crop_mask(sample.mask(index)), (sample.height, sample.width)))
        text = "".join(f"{line}\n" for line in lines if line)
        write_bytes(out / f"labels/{split}/{number:06}.txt", text.encode("ascii"))
    folders = {split: split for split in SPLITS}
    for split, other in zip(SPLITS, reversed(SPLITS), strict=True):
        if not photos[split]:  # what trains on it refuses an empty folder
            folders[split] = other
            done.skipped.append(f"data.yaml: no photo fell to {split}, which names the photos of {other}")
    write_bytes(out / "data.yaml", yolo_yaml(list(numbers), folders).encode())


def _write_label_studio(samples: Iterable[Sample], out: Path) -> None:
    """`tasks.json`, `labeling.xml` for the project that they go into, `images/` below Label Studio's document root."""
    (out / "images").mkdir()
    labels: dict[str, None] = {}
    with named(out / "tasks.json"), (out / "tasks.json").open("w", encoding="utf-8") as file:
        file.write("[")
        for number, sample in enumerate(samples, start=1):
            photo, suffix, *_ = photo_and_json(sample, None)
            name = f"images/{number:06}.{suffix}"
            write_bytes(out / name, photo)
            labels |= {region.name: None for region in sample.regions if region.name}
            rows = [_row(sample, index) for index in range(len(sample.regions))]
            task = {"data": {"image": f"/data/local-files/?d={name}"}, "annotations": [{"result": rows}]}
            file.write(("" if number == 1 else ",") + "\n" + json.dumps(task, ensure_ascii=False))
        file.write("\n]\n")
    root = ElementTree.Element("View")
    ElementTree.SubElement(root, "Image", {"name": "image", "value": "$image", "zoom": "true"})
    brush = ElementTree.SubElement(root, "BrushLabels", {"name": "mask", "toName": "image"})
    for label in labels:
        ElementTree.SubElement(brush, "Label", {"value": label})
    ElementTree.indent(root)
    write_bytes(out / "labeling.xml", ElementTree.tostring(root, encoding="unicode").encode())


def _row(sample: Sample, index: int) -> Mapping[str, Any]:
    region, size = sample.regions[index], (sample.height, sample.width)
    value: dict[str, Any] = {"format": "rle", "rle": encode_brush_rle(*crop_mask(sample.mask(index)), size)}
    if region.name:
        value["brushlabels"] = [region.name]
    row = {
        "id": f"r{index}",
        "type": "brushlabels",
        "from_name": "mask",
        "to_name": "image",
        "original_width": sample.width,
        "original_height": sample.height,
        "image_rotation": 0,
        "value": value,
        "meta": {"granularity": region.granularity},
    }
    return row if region.parent is None else row | {"parentID": f"r{region.parent}"}
