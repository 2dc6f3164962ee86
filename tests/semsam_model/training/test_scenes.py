"""Mosaics and pasted objects: pixels, masks and labels stay together, and only what is visible is claimed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import maximum_filter, minimum_filter

from semsam_model.data.mixture import Mixture
from semsam_model.data.samples import Annotation, CocoMask, Region, Sample
from semsam_model.data.vocabulary import NO_LABEL, Vocabulary
from semsam_model.training.augmentation import augment
from semsam_model.training.batches import TrainingBatches
from semsam_model.training.config import SamplingConfig, Stage
from semsam_model.training.scenes import NO_PARENT, OBJECT, PART, Cutout, Scene, SceneRegions, mosaic, pasted
from tests.semsam_model.houses import FILL

#: Colours of a region, by source and name; the ground is black.
COLOURS = {
    ("street", "house"): (250, 0, 0),
    ("street", "window"): (0, 250, 0),
    ("street", "tree"): (0, 0, 250),
    ("street", "door"): (120, 120, 0),
    ("farm", "house"): (250, 250, 0),
    ("farm", "window"): (0, 250, 250),
    ("farm", "tree"): (250, 0, 250),
    ("farm", "door"): (250, 250, 250),
}
#: rows and columns, and the region that encloses it
REGIONS = (
    ("object", "house", (10, 60, 8, 50), None),
    ("part", "window", (16, 30, 12, 26), 0),
    ("part", "door", (34, 58, 28, 44), 0),
    ("object", "tree", (20, 70, 58, 78), None),
)
EVERYTHING = SamplingConfig(
    prompts=60, jitter=0, min_area=9, turn=0.75, mosaic=0.4, paste=0.8, paste_scale_min=0.5, paste_scale_max=1.5
)


@dataclass(frozen=True)
class PaintedPhoto:
    """Every region in its own colour."""

    source: str
    number: int

    @property
    def path(self) -> Path:
        return Path(self.name)

    @property
    def name(self) -> str:
        return f"{self.number}.png"

    def pixels(self) -> np.ndarray:
        image = np.zeros((80, 90, 3), np.uint8)
        for _, name, (top, bottom, left, right), _ in REGIONS:
            image[top:bottom, left:right] = COLOURS[self.source, name]
        return image


def painted(source: str, number: int, *, partial: bool = False) -> Sample:
    regions = []
    for kind, name, (top, bottom, left, right), parent in REGIONS:
        mask = np.zeros((80, 90), bool)
        mask[top:bottom, left:right] = True
        regions.append(Region(CocoMask.of(mask), kind, name, parent))
    return Sample(PaintedPhoto(source, number), source, Annotation(90, 80, tuple(regions), partial))


SAMPLES = [painted(source, number) for source in ("street", "farm") for number in range(3)]


def batches(
    config: SamplingConfig, seed: int = 0, samples: list[Sample] = SAMPLES, named: list[Sample] | None = None
) -> TrainingBatches:
    """named: samples whose labels are known; None: those of all."""
    mixture = replace(Mixture.of(samples), turning=frozenset({"farm"}))
    return TrainingBatches(
        mixture,
        [Stage(6, 96, 2)],
        config,
        click_box=0.005,
        fill=FILL,
        seed=seed,
        vocabulary=Vocabulary.of(named or samples),
        object_queries=True,
    )


def off_the_blends(pixels: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """How far each pixel `(N, 3)` is from the nearest mixture of two colours, as the largest of three differences."""
    one, way = np.asarray(one, float), np.subtract(other, one, dtype=float)
    share = np.clip((pixels - one) @ way / max(way @ way, 1), 0, 1)
    return np.asarray(np.abs(pixels - one - share[:, None] * way).max(1))


@given(st.integers(0, 10_000))
@settings(max_examples=15)
def test_every_mask_shows_the_colour_of_its_label_after_mosaics_turns_and_pasting(seed: int) -> None:
    made = batches(EVERYTHING, seed)
    rows = Vocabulary.of(SAMPLES).rows
    batch = made[seed % len(made)]
    for image, masks, labels in zip(batch.images, batch.prompts.targets.masks, batch.prompts.labels, strict=True):
        pixels, shown = image.permute(1, 2, 0).numpy().astype(int), masks.numpy()
        smallest_last = np.argsort(-shown.sum((1, 2)), kind="stable")
        number = np.full(shown.shape[1:], -1)
        for index in smallest_last:
            number[shown[index]] = index
        # inside, two pixels from any outline, where pixels of two regions mix
        inner = (minimum_filter(number, 5) == maximum_filter(number, 5)) & (number >= 0)
        for index in np.unique(number[inner]):
            source, _, name = rows[labels[index]]
            found = pixels[inner & (number == index)]
            # a mostly hidden part goes, and what is left to see of it, with its outline, is the house's
            parts = ("window", "door") if name == "house" else (name,)
            off = [off_the_blends(found, COLOURS[source, name], COLOURS[source, part]) for part in parts]
            assert np.min(off, 0).max() <= 3, (name, batch.names)


def test_images_with_all_augmentation_depend_on_seed_and_number_alone() -> None:
    config = replace(EVERYTHING, jitter=0.3, colour=0.5, blur=0.5, jpeg=0.5)
    first, again, other = batches(config), batches(config), batches(config, seed=1)
    for index in reversed(range(len(first))):
        again[index]
    for index in (0, 5):
        one, two = first[index], again[index]
        assert torch.equal(one.images, two.images) and one.names == two.names
        assert torch.equal(one.prompts.targets.of_prompt, two.prompts.targets.of_prompt)
        assert not torch.equal(one.images, other[index].images)
    assert any("street" in name and "farm" in name for i in range(6) for name in first[i].names)


def test_only_sources_without_an_up_are_turned() -> None:
    config = SamplingConfig(prompts=8, jitter=0, flip=False, turn=1.0, scale_min=1, scale_max=1)
    covered = {"street": set(), "farm": set()}
    for index in range(6):
        batch = batches(config)[index]
        for name, image in zip(batch.names, batch.images, strict=True):
            photo = (image != int(FILL[0])).any(0)
            covered[name.split("/")[0]].add((int(photo.any(1).sum()), int(photo.any(0).sum())))
    assert covered["street"] == {(85, 96)}
    assert covered["farm"] == {(85, 96), (96, 85)}


def regions(*boxes: tuple[int, int, int, int], kinds: tuple[int, ...], parents: tuple[int, ...]) -> SceneRegions:
    masks = np.zeros((len(boxes), 32, 32), bool)
    for mask, (top, bottom, left, right) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    labels, supervised = np.full(len(boxes), NO_LABEL), np.ones((len(boxes), 3), np.float32)
    return SceneRegions(masks, np.array(kinds), labels, supervised, np.array(parents), np.zeros(len(boxes), bool))


def scene(found: SceneRegions, complete: tuple[bool, bool, bool] = (True, True, True)) -> Scene:
    return Scene(("below",), np.zeros((32, 32, 3), np.uint8), found, (32, 32), False, np.array(complete))


def cutout(complete: tuple[bool, bool, bool] = (True, True, True), *, annotates_parts: bool = True) -> Cutout:
    """A square of 10 pixels with a part in its upper left corner."""
    masks = np.zeros((2, 10, 10), bool)
    masks[0], masks[1, :4, :4] = True, True
    of_object = SceneRegions(
        masks,
        np.array([OBJECT, PART]),
        np.array([5, 6]),
        np.ones((2, 3), np.float32),
        np.array([NO_PARENT, 0]),
        np.zeros(2, bool),
    )
    pixels, alpha = np.full((10, 10, 3), 200, np.uint8), np.full((10, 10), 255, np.uint8)
    return Cutout("above", pixels, alpha, of_object, annotates_parts, np.array(complete))


def test_what_is_pasted_hides_what_lies_below_and_brings_its_parts() -> None:
    below = scene(regions((0, 20, 0, 20), (2, 8, 2, 8), kinds=(OBJECT, PART), parents=(NO_PARENT, 0)))
    found = pasted(below, [(cutout(), (5, 5)), (cutout(), (8, 8))], min_area=4)
    assert found.names == ("below", "above", "above")
    areas = found.regions.masks.sum((1, 2)).tolist()
    assert areas == [400 - 100 - 100 + 49, 36 - 9, 100 - 49, 16 - 1, 100, 16]
    assert found.regions.parents.tolist() == [NO_PARENT, 0, NO_PARENT, 2, NO_PARENT, 4]
    objects = found.regions.masks[found.regions.kinds == OBJECT]
    assert objects.sum(0).max() == 1, "visible masks of one kind are disjoint from those pasted above them"
    assert found.regions.labels.tolist()[2:] == [5, 6, 5, 6]
    assert (found.pixels[8:18, 8:18] == 200).all() and (found.pixels[:5] == 0).all()
    assert found.complete.all() and not found.partial
    assert below.regions.masks[0].sum() == 400, "the scene below is left as it was"


def test_a_mask_that_is_mostly_hidden_goes_and_its_parts_get_what_encloses_it() -> None:
    boxes = ((0, 32, 0, 32), (5, 16, 5, 16), (14, 16, 14, 16), (20, 26, 20, 26))
    below = regions(*boxes, kinds=(OBJECT, OBJECT, PART, PART), parents=(NO_PARENT, 0, 1, 0))
    found = pasted(scene(below), [(cutout(), (5, 5))], min_area=4)
    kept = found.regions.masks.sum((1, 2)).tolist()
    assert kept == [32 * 32 - 100, 3, 36, 100, 16] or kept == [32 * 32 - 100, 36, 100, 16]
    assert found.regions.parents[-3] == 0
    assert found.complete.tolist() == [False, False, True], "a little of a dropped object, and of a part, is still seen"


@pytest.mark.parametrize(
    ("complete", "annotates_parts", "expected", "partial"),
    [
        ((True, True, True), True, [True, True, True], False),
        ((False, False, False), False, [True, False, False], False),
        ((False, False, False), True, [True, False, False], True),
    ],
    ids=["everything annotated", "a photo of which not all objects are annotated", "nor all parts"],
)
def test_what_a_pasted_object_leaves_complete(
    complete: tuple[bool, bool, bool], annotates_parts: bool, expected: list[bool], partial: bool
) -> None:
    below = scene(regions((0, 4, 0, 4), kinds=(OBJECT,), parents=(NO_PARENT,)))
    found = pasted(below, [(cutout(complete, annotates_parts=annotates_parts), (10, 10))], min_area=4)
    assert found.complete.tolist() == expected
    assert found.partial is partial


def test_a_mosaic_claims_only_what_all_its_photos_do() -> None:
    cell = scene(regions((0, 4, 0, 4), (1, 3, 1, 3), kinds=(OBJECT, PART), parents=(NO_PARENT, 0)))
    other = replace(cell, partial=True, complete=np.array([False, True, True]))
    found = mosaic([cell, cell, cell, other])
    assert found.pixels.shape == (64, 64, 3)
    assert found.regions.parents.tolist() == [NO_PARENT, 0, NO_PARENT, 2, NO_PARENT, 4, NO_PARENT, 6]
    corners = [tuple(np.argwhere(mask)[0].tolist()) for mask in found.regions.masks[::2]]
    assert corners == [(0, 0), (0, 32), (32, 0), (32, 32)]
    assert found.complete.tolist() == [False, True, True] and found.partial


def test_what_a_photo_covers_is_said() -> None:
    photo = np.full((20, 40, 3), 7, np.uint8)
    config = SamplingConfig(scale_min=0.5, scale_max=0.5, jitter=0)
    pixels, _, covered = augment(photo, [], 64, config, FILL, np.random.default_rng(0))
    assert covered == (16, 32)
    assert (pixels[:16, :32] == 7).all() and (pixels[16:] == 128).all() and (pixels[:, 32:] == 128).all()
