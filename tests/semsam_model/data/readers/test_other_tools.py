"""Files of YOLO, labelme, CVAT and Pascal VOC: masks as those tools draw them; what is lost is named."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semsam_model.data.readers.cvat import read_cvat
from semsam_model.data.readers.labelme import read_labelme
from semsam_model.data.readers.voc import read_voc, voc_colour
from semsam_model.data.readers.yolo import read_yolo
from semsam_model.data.samples import Dataset
from semsam_model.errors import DataError
from tests.semsam_model.data.readers.files import OTHER, PART, SIZE, WHOLE, photo

HEIGHT, WIDTH = SIZE


def masks(dataset: Dataset) -> dict[str | None, np.ndarray]:
    (sample,) = dataset.samples
    assert sample.image().shape == (*SIZE, 3)
    return {region.name: sample.mask(index) for index, region in enumerate(sample.regions)}


def test_yolo_outlines_and_boxes_are_read_and_broken_lines_named(tmp_path: Path) -> None:
    photo(tmp_path / "train" / "images" / "a.png")
    photo(tmp_path / "train" / "images" / "bare.png")
    labels = tmp_path / "train" / "labels" / "a.txt"
    labels.parent.mkdir()
    outline = " ".join(f"{x / WIDTH} {y / HEIGHT}" for x, y in ((2, 2), (20, 2), (20, 20), (2, 20)))
    box = f"{26 / WIDTH} {7.5 / HEIGHT} {8 / WIDTH} {9 / HEIGHT}"
    labels.write_text(f"0 {outline}\n1 {box}\n\n0 0.1 0.2 0.3\nx {outline}\n7 {outline}\n0 nan nan nan nan nan nan\n")
    # as Roboflow writes it: the path is that of another folder
    (tmp_path / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnames: [cup, pen]\n")
    dataset = read_yolo(tmp_path)
    found = masks(dataset)
    assert np.array_equal(found["cup"], WHOLE) and np.array_equal(found["pen"], OTHER)
    assert np.array_equal(found[None], WHOLE) and dataset.masks_lost == 3
    assert [region.box_only for region in dataset.samples[0].regions] == [False, True, False]
    named = " ".join(dataset.skipped)
    assert "valid/images" in named and "a.txt:4" in named and "class 7" in named and "1 photos with nothing" in named


def test_a_txt_that_is_that_of_two_photos_gives_its_masks_to_neither(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "b c.png"):
        photo(tmp_path / "images" / name)
    (tmp_path / "labels").mkdir()
    for name in ("a", "b c"):
        (tmp_path / "labels" / f"{name}.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    (tmp_path / "list.txt").write_text("./images/a.png\n./images/a.jpg\n./images/b c.png\n")
    (tmp_path / "data.yaml").write_text("train: list.txt\nnames: [cup]\n")
    dataset = read_yolo(tmp_path)
    assert [sample.photo.name for sample in dataset.samples] == ["b c.png"]
    assert dataset.masks_lost == 2 and "a.txt is that of several photos" in dataset.skipped[0]


def png(mask: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_labelme_shapes_are_read_and_pieces_of_a_group_are_one_thing(tmp_path: Path) -> None:
    photo(tmp_path / "sub" / "a.png")
    square = [[2, 2], [20, 2], [20, 20], [2, 20]]
    shapes = [
        {"label": "cup", "points": square, "shape_type": "polygon", "group_id": None},
        {"label": "pen", "points": [[22, 3], [30, 12]], "shape_type": "rectangle"},
        {"label": "hole", "points": [[4, 4], [8, 8]], "shape_type": "mask", "mask": png(np.ones((5, 5), bool))},
        {"label": "ball", "points": [[10, 10], [10, 5]], "shape_type": "circle"},
        {"label": "pair", "points": [[2, 2], [20, 20]], "shape_type": "rectangle", "group_id": 1},
        {"label": "pair", "points": [[22, 3], [30, 12]], "shape_type": "rectangle", "group_id": 1},
        {"label": "dot", "points": [[1, 1]], "shape_type": "point"},
        {"label": "torn", "points": [[1, 1]], "shape_type": "polygon"},
    ]
    content = {"version": "5.4", "shapes": shapes, "imagePath": "..\\sub\\a.png", "imageHeight": HEIGHT}
    (tmp_path / "sub" / "a.json").write_text(json.dumps(content | {"imageWidth": WIDTH}))
    (tmp_path / "other.json").write_text("{}")
    dataset = read_labelme(tmp_path)
    found = masks(dataset)
    assert np.array_equal(found["cup"], WHOLE) and np.array_equal(found["pen"], OTHER)
    assert np.array_equal(found["hole"], PART) and np.array_equal(found["pair"], WHOLE | OTHER)
    assert found["ball"].sum() == pytest.approx(np.pi * 25, rel=0.1)
    assert dataset.masks_lost == 1 and len(dataset.skipped) == 3
    (tmp_path / "sub" / "a.json").write_text(json.dumps(content | {"imageWidth": 5}))
    assert read_labelme(tmp_path).masks_lost == 7
    with pytest.raises(DataError, match="expected files of labelme"):
        read_labelme(tmp_path / "other.json")


CVAT = """<annotations><version>1.1</version>
<image id="0" name="sub/a.png" width="32" height="24">
  <polygon label="cup" points="2,2;20,2;20,20;2,20" z_order="0"/>
  <box label="pen" xtl="22" ytl="3" xbr="30" ybr="12"/>
  <mask label="hole" rle="0, 25" left="4" top="4" width="5" height="5"/>
  <mask label="torn" rle="0, 7" left="4" top="4" width="5" height="5"/>
  <ellipse label="ball" cx="10" cy="10" rx="5" ry="3" rotation="90"/>
  <box label="turned" xtl="8" ytl="10" xbr="16" ybr="12" rotation="90"/>
  <polygon label="line" points="2,2;20,2"/>
  <points label="dot" points="1,1"/>
</image>
<image id="1" name="lost.png" width="32" height="24"><box label="pen" xtl="22" ytl="3" xbr="30" ybr="12"/></image>
</annotations>"""


def test_cvat_shapes_are_read(tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "a.png")
    (tmp_path / "annotations.xml").write_text(CVAT)
    dataset = read_cvat(tmp_path / "annotations.xml", tmp_path / "photos")
    (sample,) = dataset.samples
    names = [region.name for region in sample.regions]
    assert names == ["cup", "pen", "hole", "torn", "ball", "turned"]
    assert np.array_equal(sample.mask(0), WHOLE) and np.array_equal(sample.mask(1), OTHER)
    assert np.array_equal(sample.mask(2), PART)
    with pytest.raises(DataError, match="runs that fill 25 pixels, got 7"):
        sample.mask(3)
    ball, turned = sample.mask(4), sample.mask(5)
    assert np.ptp(np.flatnonzero(ball.any(1))) > np.ptp(np.flatnonzero(ball.any(0)))
    assert np.flatnonzero(turned.any(0)).tolist() == [11, 12] and turned.sum() == 16
    assert dataset.masks_lost == 2
    (tmp_path / "annotations.xml").write_text("<annotations><track/></annotations>")
    with pytest.raises(DataError, match="CVAT for video; export it as CVAT for images"):
        read_cvat(tmp_path / "annotations.xml")


@pytest.mark.parametrize("form", ["numbers", "palette", "colours"])
def test_voc_objects_have_the_class_of_their_pixels(tmp_path: Path, form: str) -> None:
    classes, objects = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
    classes[WHOLE], classes[OTHER], classes[0] = 15, 8, 255
    objects[WHOLE], objects[OTHER], objects[PART], objects[0] = 1, 2, 3, 255
    photo(tmp_path / "JPEGImages" / "a.jpg")
    palette = [voc_colour(number) >> shift & 255 for number in range(256) for shift in (0, 8, 16)]
    for folder, values in (("SegmentationClass", classes), ("SegmentationObject", objects)):
        (tmp_path / folder).mkdir()
        image = Image.fromarray(values)
        if form != "numbers":
            image.putpalette(palette)
        (image.convert("RGB") if form == "colours" else image).save(tmp_path / folder / "a.png")
    Image.fromarray(classes).save(tmp_path / "SegmentationClass" / "lost.png")
    dataset = read_voc(tmp_path)
    (sample,) = dataset.samples
    found = [(region.name, sample.mask(index)) for index, region in enumerate(sample.regions)]
    assert sorted(str(name) for name, _ in found) == ["cat", "person", "person"]
    for expected in (WHOLE & ~PART, OTHER, PART):
        assert any(np.array_equal(mask, expected) for _, mask in found)
    assert "lost.png, 2 masks: expected one photo of its name in JPEGImages, found none" in dataset.skipped[0]


def test_a_voc_map_lies_on_the_photo_at_its_own_place(tmp_path: Path) -> None:
    for number, name in enumerate(("one/a.jpg", "two/a.jpg", "b.jpg", "b.png")):
        photo(tmp_path / "JPEGImages" / name, number)
    for folder, number in (("one", 15), ("two", 8), ("", 3)):
        place = tmp_path / "SegmentationClass" / folder
        place.mkdir(exist_ok=True, parents=True)
        Image.fromarray(np.full(SIZE, number, np.uint8)).save(place / ("a.png" if folder else "b.png"))
    dataset = read_voc(tmp_path)
    found = {sample.path.parent.name: sample.regions[0].name for sample in dataset.samples}
    assert found == {"one": "person", "two": "cat"}
    assert dataset.masks_lost == 1 and "found 2" in dataset.skipped[0]
