"""Reading annotated photos, and turning them into training batches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from semsam_model.data import (
    Sample,
    SamplingConfig,
    Stage,
    TrainingBatches,
    augment,
    draw_prompts,
    mask_boxes,
    read_samples,
)
from semsam_model.errors import ConfigError, DataError
from semsam_model.matching import NO_TARGET
from semsam_model.transforms import BOX, CLICK

FILL = (128.0, 128.0, 128.0)


def rle(mask: np.ndarray) -> dict:
    code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def write_source(
    folder: Path, source: str, photos: int, *, partial: bool = False, size: tuple[int, int] = (48, 64)
) -> dict:
    """A house with two windows in every photo; returns the JSON that was written."""
    size = (48, 64)
    (folder / source).mkdir(parents=True)
    images, annotations = [], []
    for number in range(photos):
        name = f"{source}/{number}.png"
        pixels = np.random.default_rng(number).integers(0, 255, (*size, 3), dtype=np.uint8)
        images.append({"id": number, "file_name": name, "width": size[1], "height": size[0], "partial": partial})
        for index, (kind, window) in enumerate(
            (("object", (4, 44, 8, 56)), ("part", (10, 24, 12, 24)), ("part", (10, 24, 36, 50)))
        ):
            mask = np.zeros(size, bool)
            mask[window[0] : window[1], window[2] : window[3]] = True
            pixels[mask] = (200 if index else 90, 40 * index, 30)
            annotations.append(
                {
                    "id": 10 * number + index,
                    "image_id": number,
                    "category_id": 1 if kind == "object" else 2,
                    "segmentation": rle(mask),
                    "granularity": kind,
                    "parent_id": None if kind == "object" else 10 * number,
                }
            )
        Image.fromarray(pixels).save(folder / name)
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "house"}, {"id": 2, "name": "window"}],
    }
    (folder / f"{source}.json").write_text(json.dumps(content))
    return content


def batches(samples: tuple[Sample, ...], config: SamplingConfig | None = None, seed: int = 0) -> TrainingBatches:
    stages = [Stage(6, 64, 2), Stage(4, 96, 1)]
    return TrainingBatches(samples, stages, config or SamplingConfig(prompts=5), click_box=0.005, fill=FILL, seed=seed)


def test_a_source_is_read_with_names_parents_and_masks(tmp_path: Path) -> None:
    write_source(tmp_path, "houses", 2, partial=True)
    reading = read_samples(tmp_path)
    assert reading.sources == {"houses": 2}
    assert reading.skipped == ()
    sample = reading.samples[0]
    assert [(r.name, r.granularity, r.parent) for r in sample.regions] == [
        ("house", "object", None),
        ("window", "part", 0),
        ("window", "part", 0),
    ]
    assert sample.partial
    assert np.argwhere(sample.mask(1)).min(0).tolist() == [10, 12]
    assert (sample.image()[sample.mask(1)] == (200, 40, 30)).all()


def test_polygons_and_plain_rle_are_the_same_mask(tmp_path: Path) -> None:
    content = write_source(tmp_path, "houses", 1)
    window = read_samples(tmp_path).samples[0].mask(1)
    runs = np.flatnonzero(np.diff(np.concatenate(([0], window.T.ravel().astype(int), [0]))))
    counts = np.diff(np.concatenate(([0], runs, [window.size]))).tolist()
    content["annotations"][1]["segmentation"] = {"size": [48, 64], "counts": counts}
    content["annotations"][2]["segmentation"] = [[12, 10, 24, 10, 24, 24, 12, 24]]
    (tmp_path / "houses.json").write_text(json.dumps(content))
    sample = read_samples(tmp_path).samples[0]
    assert (sample.mask(1) == window).all()
    assert (sample.mask(2) == window).all()


def test_broken_entries_photos_masks_and_files_are_skipped_and_named(tmp_path: Path) -> None:
    content = write_source(tmp_path, "houses", 4)
    del content["annotations"][0]["image_id"]
    content["annotations"][4]["granularity"] = "galaxy"
    content["annotations"][7]["segmentation"]["size"] = [3, 3]
    content["images"].append({"id": 99, "file_name": "houses/99.png"})
    (tmp_path / "houses" / "3.png").unlink()
    (tmp_path / "houses" / "1.png").write_bytes(b"not a picture")
    (tmp_path / "houses.json").write_text(json.dumps(content))
    (tmp_path / "torn.json").write_text('{"images": [')
    reading = read_samples(tmp_path)
    told = "\n".join(reading.skipped)
    assert len(reading.skipped) == 5
    for part in ("torn.json", "annotation 0", "annotation 11", "houses/99.png", "3.png"):
        assert part in told
    assert {s.path.name for s in reading.samples} == {"0.png", "1.png", "2.png"}

    source = batches(reading.samples)
    made = [source[index] for index in range(len(source))]
    assert "houses/1.png" not in {name for batch in made for name in batch.names}
    skipped = " ".join(line for batch in made for line in batch.skipped)
    assert "1.png" in skipped
    assert "2.png, region 1 (window)" in skipped


def test_a_folder_without_anything_usable_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        read_samples(tmp_path / "nowhere")
    write_source(tmp_path, "houses", 1)
    with pytest.raises(DataError, match=r"castles\.json; sources here: houses"):
        read_samples(tmp_path, ["castles"])
    (tmp_path / "houses" / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"0\.png"):
        batches(read_samples(tmp_path).samples)[0]


@given(st.integers(0, 10_000), st.sampled_from([(40, 70), (70, 40), (32, 32)]))
@settings(max_examples=25, deadline=None)
def test_masks_move_with_the_photo(seed: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, bool)
    y, x = rng.integers(0, 15, 2)
    mask[y : y + 16, x : x + 14] = True
    image = np.where(mask[..., None], np.uint8(250), np.uint8(5)).repeat(3, 2)
    photo, (moved,) = augment(image, [mask], 64, SamplingConfig(jitter=0), FILL, rng)
    seen = photo[..., 0] > 128
    # The photo is shrunk by area and the mask by interpolation: they may differ along the outline only.
    assert (seen ^ moved).sum() <= 0.12 * max(moved.sum(), 64)
    scale_limits = 64 / max(shape) * np.array([0.6, 1.6])
    assert moved.sum() <= mask.sum() * (scale_limits[1] + 0.1) ** 2


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_prompts_mean_the_masks_they_touch(seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = rng.random((9, 20, 20)) < 0.5
    config = SamplingConfig(prompts=30, max_targets=4)
    drawn = draw_prompts(masks, ["object"] * 3 + ["part"] * 6, config, 0.005, rng)
    tight = mask_boxes(masks)
    for box, kind, row in zip(drawn.boxes, drawn.kinds, drawn.targets, strict=True):
        named = row[row != NO_TARGET].tolist()
        assert row[0] != NO_TARGET
        assert len(set(named)) == len(named)
        if kind == BOX:
            assert len(named) == 1
            assert np.abs(box - tight[named[0]]).max() <= config.box_noise + 1e-6
        else:
            assert kind == CLICK
            assert box[2:].tolist() == pytest.approx([0.005, 0.005])
            touched = masks[:, int(box[1] * 20), int(box[0] * 20)]
            assert touched[named].all()
            assert len(named) == min(4, touched.sum())


def test_many_parts_do_not_drown_one_object() -> None:
    rng = np.random.default_rng(0)
    masks = np.zeros((101, 20, 20), bool)
    masks[0] = True
    for index in range(1, 101):
        masks[index, index // 10, index % 10] = True
    config = SamplingConfig(prompts=400, box_share=0)
    first = draw_prompts(masks, ["object"] + ["part"] * 100, config, 0.005, rng).targets[:, 0]
    assert 0.4 < (first == 0).mean() < 0.6
    counts = np.bincount(first, minlength=101)[1:]
    assert counts.max() - counts.min() <= 1


def test_boxes_are_tight() -> None:
    masks = np.random.default_rng(0).random((6, 30, 50)) < 0.002
    masks[:, 7, 9] = True
    for mask, (cx, cy, w, h) in zip(masks, mask_boxes(masks), strict=True):
        y, x = np.nonzero(mask)
        expected = [x.min() / 50, y.min() / 30, (x.max() + 1) / 50, (y.max() + 1) / 30]
        assert [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2] == pytest.approx(expected, abs=1e-6)


def test_a_batch_depends_on_seed_and_number_alone(tmp_path: Path) -> None:
    write_source(tmp_path, "houses", 5)
    samples = read_samples(tmp_path).samples
    first, again, other = batches(samples), batches(samples), batches(samples, seed=1)
    for index in reversed(range(len(first))):
        again[index]
    for index in (0, 3, 8):
        one, two = first[index], again[index]
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.boxes, two.boxes)
        assert torch.equal(one.targets.of_prompt, two.targets.of_prompt)
        assert not torch.equal(one.images, other[index].images)
    assert not torch.equal(first[0].images, first[1].images)


def test_stages_change_size_and_batch_and_every_photo_comes_once_a_round(tmp_path: Path) -> None:
    write_source(tmp_path, "houses", 8)
    source = batches(read_samples(tmp_path).samples)
    made = [source[index] for index in range(len(source))]
    assert [batch.images.shape[-1] for batch in made] == [64] * 6 + [96] * 4
    assert [len(batch.names) for batch in made] == [2] * 6 + [1] * 4
    names = [name for batch in made for name in batch.names]
    assert len(set(names[:8])) == 8
    assert len(set(names[8:16])) == 8
    with pytest.raises(IndexError):
        source[len(source)]


def test_shares_of_sources_hold_in_a_round(tmp_path: Path) -> None:
    write_source(tmp_path, "many", 16)
    write_source(tmp_path, "few", 4)
    samples = read_samples(tmp_path).samples
    for sources, expected in (({}, 4 / 6), ({"few": 4.0}, 0.5), ({"many": 0.0}, 0.0)):
        names = [name for batch in _round(samples, sources) for name in batch.names]
        share = sum(name.startswith("many") for name in names) / len(names)
        assert share == pytest.approx(expected, abs=0.06), sources
    with pytest.raises(ConfigError, match="fewer"):
        _round(samples, {"fewer": 1.0})


def _round(samples: tuple[Sample, ...], sources: dict[str, float]) -> TrainingBatches:
    config = SamplingConfig(prompts=1, sources=sources)
    return TrainingBatches(samples, [Stage(20, 32, 1)], config, click_box=0.005, fill=FILL, seed=0)
