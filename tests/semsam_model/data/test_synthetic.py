"""Made scenes: what they promise about their masks, and that they survive the disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from semsam_model.data.folder import read_samples
from semsam_model.data.scene_objects import SceneObject, scene_objects
from semsam_model.data.synthetic import SMALLEST_MASK, draw_scene, synthetic_samples, write_scenes
from tests.paths import ROOT

SIZE = (96, 128)

few = settings(max_examples=15, deadline=None)


def names_below(thing: SceneObject) -> set[str]:
    return {part.name for part in thing.parts}.union(*(names_below(part) for part in thing.parts))


@few
@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_two_masks_of_a_scene_are_nested_or_apart_and_parents_say_which(seed: int, index: int) -> None:
    scene = draw_scene(seed, index, SIZE)
    areas = scene.masks.sum((1, 2))
    assert (areas >= SMALLEST_MASK).all()

    def ancestors(number: int) -> set[int]:
        above = scene.parents[number]
        return set() if above is None else {above} | ancestors(above)

    for a in range(len(areas)):
        for b in range(len(areas)):
            shared = np.count_nonzero(scene.masks[a] & scene.masks[b])
            if b in ancestors(a):
                assert b < a and shared == areas[a] < areas[b]
            elif a != b and a not in ancestors(b):
                assert shared == 0


@few
@given(st.integers(0, 10_000))
def test_parts_bear_the_names_of_what_their_whole_is_made_of(seed: int) -> None:
    scene = draw_scene(seed, 0, SIZE)
    kinds = {thing.name: thing for thing in scene_objects()}
    for name, parent in zip(scene.names, scene.parents, strict=True):
        if parent is None:
            assert name in kinds
            continue
        above = parent
        while scene.parents[above] is not None:
            above = scene.parents[above]
        assert name in names_below(kinds[scene.names[above]])


def test_scenes_have_objects_parts_and_parts_of_parts() -> None:
    depths = set()
    for index in range(12):
        parents = draw_scene(3, index, SIZE).parents
        for number in range(len(parents)):
            depth, above = 0, parents[number]
            while above is not None:
                depth, above = depth + 1, parents[above]
            depths.add(depth)
    assert depths >= {0, 1, 2}


def test_a_scene_depends_on_its_seed_and_number_alone() -> None:
    first = draw_scene(5, 2, SIZE)
    draw_scene.cache_clear()
    again, other, next_one = draw_scene(5, 2, SIZE), draw_scene(6, 2, SIZE), draw_scene(5, 3, SIZE)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.masks, again.masks)
    assert not np.array_equal(first.image, other.image)
    assert not np.array_equal(first.image, next_one.image)


def test_scenes_written_to_disk_read_back_pixel_for_pixel(tmp_path: Path) -> None:
    path = write_scenes(tmp_path, 4, seed=9, size=SIZE, source="made")
    assert path == tmp_path / "made.json"
    dataset = read_samples(tmp_path)
    assert dataset.skipped == ()
    made = [sample for sample in synthetic_samples(4, seed=9, size=SIZE) if sample.regions]
    assert len(dataset.samples) == len(made)
    for back, sample in zip(dataset.samples, made, strict=True):
        assert np.array_equal(back.image(), sample.image())
        assert [(r.granularity, r.name, r.parent) for r in back.regions] == [
            (r.granularity, r.name, r.parent) for r in sample.regions
        ]
        for index in range(len(sample.regions)):
            assert np.array_equal(back.mask(index), sample.mask(index))


def test_scenes_are_drawn_without_torch() -> None:
    code = "import sys, semsam_model.data.synthetic; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
