"""Turning annotated photos into training batches."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semsam_model.config import parse_config
from semsam_model.data.folder import read_samples
from semsam_model.data.lazy_samples import LazySamples
from semsam_model.data.mixture import Mixture
from semsam_model.data.samples import Dataset, Sample
from semsam_model.errors import ConfigError
from semsam_model.training.augmentation import augment
from semsam_model.training.batches import Batch, TrainingBatches
from semsam_model.training.config import SamplingConfig, Stage
from tests.semsam_model.houses import FILL, batches, write_source


def test_a_batch_depends_on_seed_and_number_alone(tmp_path: Path) -> None:
    write_source(tmp_path, "houses", 5)
    samples = read_samples(tmp_path).samples
    first, again, other = batches(samples), batches(samples), batches(samples, seed=1)
    for index in reversed(range(len(first))):
        again[index]
    for index in (0, 3, 8):
        one, two = first[index], again[index]
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.prompts.boxes, two.prompts.boxes)
        assert torch.equal(one.prompts.targets.of_prompt, two.prompts.targets.of_prompt)
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
    return TrainingBatches(Mixture.of(samples), [Stage(20, 32, 1)], config, click_box=0.005, fill=FILL, seed=0)


def test_object_queries_learn_from_as_many_photos_of_a_batch_as_are_asked_for(tmp_path: Path) -> None:
    write_source(tmp_path, "houses", 3)
    mixture = Mixture.of(read_samples(tmp_path).samples)

    def batch(asked: int | None) -> Batch:
        config = SamplingConfig(prompts=2, generic_images=asked)
        return TrainingBatches(
            mixture, [Stage(1, 32, 4)], config, click_box=0.005, fill=FILL, seed=0, object_queries=True
        )[0]

    every = batch(None)
    assert len(every.object_queries) == 4
    for asked, got in ((1, 1), (3, 3), (9, 4)):
        found = batch(asked)
        assert torch.equal(found.images, every.images) and len(found.object_queries) == got
        for ours, theirs in zip(found.object_queries, every.object_queries, strict=False):
            assert torch.equal(ours.masks, theirs.masks) and torch.equal(ours.labels, theirs.labels)
    with pytest.raises(ConfigError, match="sampling: generic_images: expected at least 1, got 0"):
        parse_config(SamplingConfig, {"generic_images": 0}, "sampling")


def test_a_source_of_a_billion_photos_beside_a_small_one_is_never_gone_through(tmp_path: Path) -> None:
    write_source(tmp_path, "houses", 3)
    samples = read_samples(tmp_path).samples
    asked: list[int] = []

    def make(index: int) -> Sample:
        asked.append(index)
        return samples[index % 3]

    datasets = {"long": Dataset(LazySamples(10**9, make), ()), "houses": Dataset(samples, ())}
    mixture = Mixture(datasets, {"long": 3.0, "houses": 1.0})
    config = SamplingConfig(prompts=1)
    source = TrainingBatches(
        mixture, [Stage(9, 32, 4)], config, click_box=0.005, fill=FILL, seed=0, object_queries=True
    )
    del asked[:]
    batch = source[8]
    assert len(batch.names) == 4 and 1 <= len(asked) <= 4
    assert len(set(asked)) == len(asked) and max(asked) > 10**6


@given(st.integers(0, 10_000), st.sampled_from([(40, 70), (70, 40), (32, 32)]))
@settings(max_examples=25, deadline=None)
def test_masks_move_with_the_photo(seed: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, bool)
    y, x = rng.integers(0, 15, 2)
    mask[y : y + 16, x : x + 14] = True
    image = np.where(mask[..., None], np.uint8(250), np.uint8(5)).repeat(3, 2)
    photo, (moved,), _ = augment(image, [mask], 64, SamplingConfig(jitter=0), FILL, rng)
    seen = photo[..., 0] > 128
    # The photo is shrunk by area and the mask by interpolation: they may differ along the outline only.
    levels, around = np.pad(moved, 1, mode="edge").view(np.uint8), np.ones((3, 3), np.uint8)
    outline = (cv2.dilate(levels, around) != cv2.erode(levels, around))[1:-1, 1:-1]
    assert not (seen ^ moved)[~outline].any()
    scale_limits = 64 / max(shape) * np.array([0.6, 1.6])
    assert moved.sum() <= mask.sum() * (scale_limits[1] + 0.1) ** 2
