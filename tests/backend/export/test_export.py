"""An export holds what the store holds: masks to the pixel, names, parents, split by photo for ever, whole or not."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from typer.testing import CliRunner

from backend.cli.main import app
from backend.corrections.archive import PhotoArchive
from backend.errors import ExportError
from backend.export.run import Exported, export
from backend.export.writer import Format
from backend.label_studio.label_config import LabelConfig
from backend.records import BarePhoto, RegionKey, StoredRegion
from backend.store.database import Store
from semsam_model.data.readers.coco import read_coco
from semsam_model.data.readers.label_studio import read_label_studio
from semsam_model.data.readers.sa1b import read_sa1b
from semsam_model.data.readers.yolo import read_yolo
from semsam_model.data.samples import Dataset
from semsam_model.data.split import SPLITS, VALIDATION_SHARE, split_of
from tests.backend.stored import ORIGIN, SIZE, car_park, fill, photo, project, region
from tests.paths import BRUSH_WITH_LEVELS, CONFIGS, ROOT
from tests.semsam_model.masks.shapes import any_mask, blobs

FORMATS: tuple[Format, ...] = ("coco", "sa1b", "labelstudio", "masks", "yolo")
few = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def photos(tmp_path: Path) -> PhotoArchive:
    return PhotoArchive(tmp_path / "photos")


def run(
    regions: list[StoredRegion], photos: PhotoArchive, out: Path, form: Format = "coco", **options: Any
) -> Exported:
    return export(regions, project(), photos, out, form=form, **options)


def files(folder: Path) -> dict[str, bytes]:
    """Every file below the folder, hidden ones too, by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def loaded(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def masks_by_task(regions: list[StoredRegion]) -> dict[int, list[np.ndarray]]:
    """What should come out: of each task its latest annotation, in order."""
    last = {each.key.task: each.key.annotation for each in regions}
    found: dict[int, list[np.ndarray]] = {}
    for each in regions:
        if each.key.annotation == last[each.key.task]:
            found.setdefault(each.key.task, []).append(decoded(each))
    return found


def decoded(each: StoredRegion) -> np.ndarray:
    from pycocotools import mask as coco_mask

    rle = {"size": [each.height, each.width], "counts": each.mask["counts"].encode()}
    return coco_mask.decode(rle).astype(bool)


def same_masks(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


# --------------------------------------------------------------------------------------- photos, and what is left out


def test_every_form_of_photo_that_is_exported_is_read_back(tmp_path: Path, photos: PhotoArchive) -> None:
    mask = np.ones(SIZE, bool)
    regions = []
    for task, form in enumerate(("PNG", "JPEG", "MPO", "TIFF", "BMP", "WEBP", "GIF", "AVIF"), start=1):
        sha256 = photos.keep(photo(task, form=form))
        regions.append(region(mask, task=task, annotation=task, image_sha256=sha256))
    run(regions, photos, tmp_path / "out", "sa1b")
    found = [read_sa1b(tmp_path / "out" / split) for split in SPLITS if any((tmp_path / "out" / split).iterdir())]
    samples = [sample for dataset in found for sample in dataset.samples]
    assert len(samples) == 8 and not any(dataset.skipped for dataset in found)
    assert all(sample.image().shape == (*SIZE, 3) for sample in samples)


@pytest.mark.parametrize("form", FORMATS)
def test_photos_with_nothing_on_them_are_exported_where_everything_was_annotated(
    tmp_path: Path, photos: PhotoArchive, form: Format
) -> None:
    sha256 = photos.keep(photo(77))
    bare = [BarePhoto(9, sha256, "/data/upload/1/0a1b2c3d-empty.png"), BarePhoto(10, None, "lost.png")]
    for complete in (False, True):
        result = run(car_park(photos, 2), photos, tmp_path / "out", form, bare=bare, complete=complete)
        assert (result.bare_photos, result.bare_without_photo) == (complete, complete)
        assert sum(result.tasks.values()) == 2 + complete
        if form != "yolo":
            assert any("empty.png" in path.read_text() for path in (tmp_path / "out").rglob("*.json*")) == complete
    if form == "coco":
        (image,) = [
            image
            for split in SPLITS
            for image in json.loads((tmp_path / "out" / f"{split}.json").read_text())["images"]
            if image["id"] == 9
        ]
        assert (image["original_name"], image["height"], image["width"]) == ("empty.png", *SIZE)
        assert not image["partial"]


def test_a_yolo_export_is_read_as_others_read_it(tmp_path: Path, photos: PhotoArchive) -> None:
    """By the rules of ultralytics' loader: labels beside images, one line an object, filled by parity in pixels."""
    pieces = np.zeros((48, 64), bool)
    pieces[22:40, 30:64] = True
    pieces[28:33, 40:50] = False
    pieces[10:20, 10:20] = True
    pieces[13:16, 13:16] = False
    regions = []
    for task in range(1, 7):
        sha256 = photos.keep(photo(task, (48, 64)))
        shared: dict[str, Any] = {"task": task, "annotation": task, "image_sha256": sha256}
        regions += [region(pieces, name="a", **shared), region(~pieces, name="b", labels=("sky",), **shared)]
    run(regions, photos, tmp_path / "out", "yolo")
    content = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())
    assert sorted(content["names"].values()) == ["car", "sky"]
    seen = 0
    for split in SPLITS:
        for picture in sorted((tmp_path / "out" / content[split]).iterdir()):
            with Image.open(picture) as opened:
                size = opened.size
            text = Path(str(picture).replace("/images/", "/labels/")).with_suffix(".txt").read_text()
            for line, expected in zip(text.splitlines(), (pieces, ~pieces), strict=True):
                number, *shares = line.split()
                assert content["names"][int(number)] == ("car" if expected is pieces else "sky")
                outline = np.array(shares, float).reshape(-1, 2) * size
                canvas = Image.new("1", (size[0] * 8, size[1] * 8))
                ImageDraw.Draw(canvas).polygon([tuple(point) for point in outline * 8], fill=1)
                filled = np.asarray(canvas)[4::8, 4::8]
                assert (filled == expected).mean() > 0.99
                seen += 1
    assert seen == 12
    back = read_yolo(tmp_path / "out")
    assert not back.skipped and len(back.samples) == 6
    for sample in back.samples:
        np.testing.assert_array_equal(sample.mask(0), pieces)
        np.testing.assert_array_equal(sample.mask(1), ~pieces)


def test_supervision_reads_the_masks_of_a_yolo_export(tmp_path: Path, photos: PhotoArchive) -> None:
    import supervision

    ring = np.zeros((48, 64), bool)
    ring[10:40, 20:50] = True
    ring[20:30, 30:40] = False
    bar = np.zeros((48, 64), bool)
    bar[42:46, 4:60] = True
    regions = []
    for task in range(1, 7):
        sha256 = photos.keep(photo(task, (48, 64), "GIF" if task == 6 else "PNG"))
        shared: dict[str, Any] = {"task": task, "annotation": task, "image_sha256": sha256}
        regions += [region(ring, name="a", **shared), region(bar, name="b", labels=("bar",), **shared)]
    out = tmp_path / "out"
    run(regions, photos, out, "yolo")
    seen = 0
    for split in SPLITS:
        found = supervision.DetectionDataset.from_yolo(
            str(out / "images" / split), str(out / "labels" / split), str(out / "data.yaml"), force_masks=True
        )
        for _, image, detections in found:
            assert image.shape == (48, 64, 3)
            names = [found.classes[number] for number in detections.class_id]
            for name, mask in zip(names, detections.mask, strict=True):
                expected = {"car": ring, "bar": bar}[name]
                # OpenCV, which it fills with, takes the outline's own pixels in
                assert (mask[expected]).all() and (mask & ~expected).sum() < 0.3 * expected.sum()
            seen += len(names)
    assert seen == 12


def test_regions_that_cannot_be_read_are_named_with_the_reason(tmp_path: Path, photos: PhotoArchive) -> None:
    lost = {RegionKey(ORIGIN, 1, 3, 5, "x"): "drawn on 1x1 pixels"}
    run(car_park(photos, 1), photos, tmp_path / "out", unreadable=lost)
    content = json.loads((tmp_path / "out" / "export.json").read_text())
    assert content["unreadable"] == ["task 3, annotation 5, region x: drawn on 1x1 pixels"]


# ---------------------------------------------------------------------------------------------------------------- split


@given(st.lists(st.binary(max_size=8), min_size=1, max_size=40, unique=True))
def test_the_split_of_a_photo_depends_on_nothing_but_its_digest(photos: list[bytes]) -> None:
    digests = [hashlib.sha256(data).hexdigest() for data in photos]
    alone = [split_of(digest) for digest in digests]
    assert alone == [split_of(digest) for digest in reversed(digests)][::-1]
    assert set(alone) <= set(SPLITS)


def test_a_fifth_of_photos_validates_and_photos_of_earlier_releases_stay_where_they_were() -> None:
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(4000)]
    sides = "".join(split_of(digest)[0] for digest in digests)
    assert abs(sides.count("v") / len(sides) - VALIDATION_SHARE) < 0.02
    assert sides[:40] == "ttvttttttttttttttvvtvvvtttttttttttttvvtt"


@pytest.mark.slow
@few
@given(st.sets(st.integers(1, 60), min_size=1, max_size=12), st.sets(st.integers(61, 99), max_size=6))
def test_adding_data_moves_no_photo_across(
    tmp_path_factory: pytest.TempPathFactory, before: set[int], more: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("split")
    photos = PhotoArchive(folder / "photos")

    def sides(tasks: set[int], out: Path) -> dict[str, str]:
        run([each for task in sorted(tasks) for each in car_park(photos, 1, task)], photos, out, images="none")
        return {
            image["sha256"]: split
            for split in SPLITS
            for image in json.loads((out / f"{split}.json").read_text())["images"]
        }

    first = sides(before, folder / "a")
    assert first.items() <= sides(before | more, folder / "b").items()


# ----------------------------------------------------------------------------------------------------------------- COCO


def test_coco_loads_in_pycocotools_and_its_masks_are_the_stores(tmp_path: Path, photos: PhotoArchive) -> None:
    regions = car_park(photos, 12)
    result = run(regions, photos, tmp_path / "out")
    found: dict[int, list[np.ndarray]] = {}
    for split in SPLITS:
        coco = loaded(tmp_path / "out" / f"{split}.json")
        assert len(coco.imgs) == result.tasks[split] and len(coco.anns) == result.regions[split]
        for entry in coco.anns.values():
            mask = coco.annToMask(entry).astype(bool)
            found.setdefault(entry["image_id"], []).append(mask)
            assert entry["area"] == mask.sum()
            x, y, width, height = entry["bbox"]
            assert mask[y : y + height, x : x + width].sum() == mask.sum()
            assert coco.imgs[entry["image_id"]]["height"] == mask.shape[0]
    expected = masks_by_task(regions)
    assert found.keys() == expected.keys() and min(result.tasks.values()) > 0
    assert all(same_masks(found[task], expected[task]) for task in expected)


def test_coco_evaluation_runs_and_the_truth_held_against_itself_is_perfect(
    tmp_path: Path, photos: PhotoArchive
) -> None:
    run(car_park(photos, 12), photos, tmp_path / "out")
    truth = loaded(tmp_path / "out" / "train.json")
    with contextlib.redirect_stdout(io.StringIO()):
        answers = [entry | {"score": 0.9} for entry in truth.anns.values()]
        evaluation = COCOeval(truth, truth.loadRes(answers), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] == 1.0


def test_coco_tells_objects_from_parts_and_who_contains_whom_to_our_reader(
    tmp_path: Path, photos: PhotoArchive
) -> None:
    run(car_park(photos, 3), photos, tmp_path / "out")
    samples = [sample for split in SPLITS for sample in read_coco(tmp_path / "out" / f"{split}.json").samples]
    told = [("object", "car", None), ("part", "wheel", 0), ("part", "wheel", 0), ("region", None, None)]
    assert len(samples) == 3
    for sample in samples:
        assert [(each.granularity, each.name, each.parent) for each in sample.regions] == told
        assert sample.partial


def test_coco_says_level_labels_and_where_a_mask_comes_from(tmp_path: Path, photos: PhotoArchive) -> None:
    run(car_park(photos, 1), photos, tmp_path / "out")
    (content,) = (c for s in SPLITS if (c := json.loads((tmp_path / "out" / f"{s}.json").read_text()))["images"])
    car, wheel, other, sky = content["annotations"]
    assert (car["level"], wheel["level"], sky["level"]) == (1, 4, None)
    assert other["labels"] == ["wheel", "round"] and other["parent_id"] == car["id"]
    assert car["provenance"] == {
        "annotation": 10,
        "region": "a",
        "outcome": "accepted",
        "updated_at": "2026-03-01T09:10:00+00:00",
        "model_version": "v0",
        "rank": 2,
        "score": 0.75,
        "click": [9.5, 8.0],
    }
    kinds = {(row["name"], row["granularity"], row["supercategory"]) for row in content["categories"]}
    assert kinds == {("car", "object", "OBJECT"), ("wheel", "part", "PART"), ("", "region", "REGION")}


def test_a_complete_export_says_that_what_has_no_mask_is_background(tmp_path: Path, photos: PhotoArchive) -> None:
    run(car_park(photos, 3), photos, tmp_path / "out", complete=True)
    images = [image for s in SPLITS for image in json.loads((tmp_path / "out" / f"{s}.json").read_text())["images"]]
    assert images and not any(image["partial"] for image in images)


@pytest.mark.slow
@few
@given(
    masks=st.lists(any_mask | blobs(), min_size=1, max_size=4),
    labels=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=9), min_size=4, max_size=4),
    kinds=st.lists(st.sampled_from(["object", "part", "region"]), min_size=4, max_size=4),
)
def test_any_mask_and_any_label_come_back_through_our_readers_in_every_format(
    tmp_path_factory: pytest.TempPathFactory, masks: list[np.ndarray], labels: list[str], kinds: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("round")
    photos = PhotoArchive(folder / "photos")
    size = masks[0].shape
    masks = [np.resize(mask, size) for mask in masks]
    sha256 = photos.keep(photo(1, size))
    regions = [
        region(mask, name=f"r{k}", labels=(labels[k],), granularity=kinds[k], image_sha256=sha256)
        for k, mask in enumerate(masks)
    ]
    side = split_of(sha256)
    for form in FORMATS:
        run(regions, photos, folder / form, form)
    coco = read_coco(folder / "coco" / f"{side}.json")
    sa1b = read_sa1b(folder / "sa1b" / side)
    studio = read_label_studio(folder / "labelstudio" / f"{side}.json", folder / "labelstudio")
    pngs = [np.asarray(Image.open(path)) for path in sorted((folder / "masks" / side).rglob("*.png"))]
    assert same_masks(read(coco), masks) and same_masks(read(sa1b), masks) and same_masks(read(studio), masks)
    assert same_masks(pngs, masks)
    for dataset in (coco, studio):
        told = [(each.name, each.granularity) for each in dataset.samples[0].regions]
        assert told == list(zip(labels, kinds, strict=False))[: len(masks)]


def read(dataset: Dataset) -> list[np.ndarray]:
    (sample,) = dataset.samples
    assert not dataset.skipped and sample.image().shape[:2] == sample.mask(0).shape
    return [sample.mask(index) for index in range(len(sample.regions))]


# -------------------------------------------------------------------------------------------------------- Label Studio


def test_label_studio_tasks_keep_every_annotation_parents_levels_and_the_projects_own_controls(
    tmp_path: Path, photos: PhotoArchive
) -> None:
    xml = BRUSH_WITH_LEVELS.read_text()
    export(car_park(photos, 3), project(xml), photos, tmp_path / "out", form="labelstudio", images="none")
    assert (tmp_path / "out" / "labeling.xml").read_text() == xml
    tasks = [task for split in SPLITS for task in json.loads((tmp_path / "out" / f"{split}.json").read_text())]
    tasks.sort(key=lambda task: task["data"]["image"])
    assert [task["data"] for task in tasks] == [{"image": f"/data/upload/1/{number}.png"} for number in (1, 2, 3)]
    assert [len(task["annotations"]) for task in tasks] == [1, 1, 2]
    rows = tasks[0]["annotations"][0]["result"]
    assert [(row["id"], row["from_name"], row.get("parentID")) for row in rows] == [
        ("a", "mask", None),
        ("a", "level", None),
        ("b", "mask", "a"),
        ("b", "level", None),
        ("c", "mask", "a"),
        ("d", "mask", None),
    ]
    assert rows[1]["value"] == {"choices": ["level 1"]}


def test_a_project_of_polygons_is_exported_for_a_config_with_a_brush_and_its_labels(
    tmp_path: Path, photos: PhotoArchive
) -> None:
    polygons = (CONFIGS / "labeling.xml").read_text()
    export(car_park(photos, 3), project(polygons), photos, tmp_path / "out", form="labelstudio")
    config = LabelConfig.parse((tmp_path / "out" / "labeling.xml").read_text())
    assert config.answer is not None and config.answer.tag == "brushlabels" and len(config.level_values) == 6
    assert {(label.value, label.kind) for label in config.labels} == {("car", "object"), ("wheel", "part")}


# --------------------------------------------------------------------------------------------------------------- photos


def test_photos_are_copied_pointed_to_or_only_named(tmp_path: Path, photos: PhotoArchive) -> None:
    regions = car_park(photos, 6)
    digests = {each.image_sha256 for each in regions}
    for form in FORMATS:
        run(regions, photos, tmp_path / form, form, images="copy")
        copied = [data for name, data in files(tmp_path / form).items() if name.endswith((".jpg", ".webp", ".png"))]
        assert digests <= {hashlib.sha256(data).hexdigest() for data in copied}
        run(regions, photos, tmp_path / f"{form}-none", form, images="none")
        assert not list((tmp_path / f"{form}-none").rglob("*.jpg"))
    for form in ("coco", "sa1b"):
        out = tmp_path / f"{form}-reference"
        run(regions, photos, out, form, images="reference")
        for split in SPLITS:
            dataset = read_coco(out / f"{split}.json") if form == "coco" else read_sa1b(out / split)
            assert dataset.samples and not dataset.skipped
            assert all(sample.image().shape == (24, 32, 3) for sample in dataset.samples)


def test_regions_without_a_known_photo_are_counted_and_photos_not_kept_are_named_only(
    tmp_path: Path, photos: PhotoArchive
) -> None:
    regions = car_park(photos, 4)
    regions = [replace(each, image_sha256=None) if each.key.task == 1 else each for each in regions]
    photos.path(next(each.image_sha256 for each in regions if each.key.task == 2) or "").unlink()
    result = run(regions, photos, tmp_path / "out")
    assert (result.regions_without_photo, result.photos_missing, sum(result.tasks.values())) == (4, 1, 3)
    manifest = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (manifest["regions_without_photo"], manifest["photos_missing"]) == (4, 1)


# ----------------------------------------------------------------------------------------------------- whole or nothing


@pytest.mark.parametrize("form", FORMATS)
def test_the_same_regions_give_the_same_bytes_whatever_was_in_the_folder(
    tmp_path: Path, photos: PhotoArchive, form: Format
) -> None:
    regions = car_park(photos, 8)
    run(regions, photos, tmp_path / "fresh", form)
    run(car_park(photos, 20), photos, tmp_path / "used", "masks" if form == "coco" else "coco")
    run(car_park(photos, 20), photos, tmp_path / "used", form)
    run(regions, photos, tmp_path / "used", form)
    assert files(tmp_path / "fresh") == files(tmp_path / "used")
    assert not any(name.startswith(".") for name in files(tmp_path / "fresh"))


def test_photos_that_an_export_referred_to_are_copied_by_the_next_one(tmp_path: Path, photos: PhotoArchive) -> None:
    regions = car_park(photos, 4)
    run(regions, photos, tmp_path / "out", "sa1b", images="reference")
    links = [path for path in (tmp_path / "out").rglob("*") if path.is_symlink()]
    assert links
    run(regions, photos, tmp_path / "out", "sa1b", images="copy")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_symlink()]
    assert all(path.is_file() for path in links)


_KILLED = """
import hashlib, json, os, signal, sys
from pathlib import Path
from backend.export.run import export
from backend.corrections.archive import PhotoArchive
from tests.backend.stored import car_park, project

folder, form, out = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[1]) / "out"
photos = PhotoArchive(folder / "photos")
regions = car_park(photos, 30)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def export_until(after):
    left = [after or -1]
    def on_task(regions):
        left[0] -= 1
        if left[0] == 0:
            die()
    if after is None:
        rename = Path.rename
        Path.rename = lambda self, target: (rename(self, target), die())
    export(regions, project(), photos, out, form=form, on_task=on_task, checkpoint=10)

for after in (3, 14, 29, None):  # the last one while the files are moved to their places
    child = os.fork()
    if child == 0:
        export_until(after)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    print(json.dumps({
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in out.rglob("*") if path.is_file() and ".export" not in path.parts
    }))
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", ["coco", "masks"])
def test_an_export_killed_again_and_again_ends_with_the_bytes_of_one_that_was_not(tmp_path: Path, form: Format) -> None:
    photos = PhotoArchive(tmp_path / "photos")
    run(car_park(photos, 2), photos, tmp_path / "out", form)
    before = {name: hashlib.sha256(data).hexdigest() for name, data in files(tmp_path / "out").items()}
    command = [sys.executable, "-c", _KILLED, tmp_path, form]
    seen = [json.loads(line) for line in subprocess.check_output(command, cwd=ROOT, text=True).splitlines()]
    assert seen[:3] == [before] * 3, "the export before stays until the new one is whole"
    assert seen[3] != before
    regions = car_park(photos, 30)
    run(regions, photos, tmp_path / "out", form, checkpoint=10)
    run(regions, photos, tmp_path / "whole", form)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


class WatchedPhotos(PhotoArchive):
    """Notes which photos are asked for, one for each task that is written; the process is killed at one, once."""

    def __init__(self, root: Path, killed_at: str) -> None:
        super().__init__(root)
        self.killed_at = killed_at
        self.asked: list[str] = []

    def find(self, sha256: str) -> BinaryIO | None:
        self.asked.append(sha256)
        if sha256 == self.killed_at:
            self.killed_at = ""
            raise KeyboardInterrupt
        return super().find(sha256)


@pytest.mark.slow
def test_a_killed_export_goes_on_where_it_was_unless_the_regions_are_others(
    tmp_path: Path, photos: PhotoArchive
) -> None:
    regions = car_park(photos, 21)
    of = {region.key.task: region.image_sha256 or "" for region in regions}
    first_20 = [region for region in regions if region.key.task <= 20]

    def killed_then_again(again: list[StoredRegion]) -> list[str]:
        """Photos of the tasks that were written, in the order written."""
        watched = WatchedPhotos(tmp_path / "photos", of[15])
        with pytest.raises(KeyboardInterrupt):
            run(first_20, watched, tmp_path / "out", checkpoint=1)
        assert run(again, watched, tmp_path / "out", checkpoint=1).tasks["train"]
        return watched.asked

    until_killed = [of[task] for task in range(1, 16)]
    assert killed_then_again(first_20) == [*until_killed, *(of[task] for task in range(15, 21))]
    assert killed_then_again(regions) == [*until_killed, *(of[task] for task in range(1, 22))]


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path, photos: PhotoArchive) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(ExportError, match=r"found thesis\.tex"):
        run(car_park(photos, 1), photos, tmp_path / "out")
    assert files(tmp_path / "out") == {"thesis.tex": b"years of work"}


# -------------------------------------------------------------------------------------------------------------- command


def test_the_command_exports_what_the_database_holds(
    tmp_path: Path, photos: PhotoArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    regions = car_park(photos, 9)
    store = Store.open(f"sqlite:///{tmp_path}/semsam.db")
    fill(store, project(), regions)
    store.close()
    monkeypatch.setenv("SEMSAM_DATA_DIR", str(tmp_path))
    line = ["export", "--project", "1", "--origin", ORIGIN, "--format", "coco", "--out", str(tmp_path / "out")]
    answer = CliRunner().invoke(app, line)
    assert answer.exit_code == 0, answer.output
    assert "written to" in answer.output
    run(regions, photos, tmp_path / "direct")
    assert files(tmp_path / "out") == files(tmp_path / "direct")
